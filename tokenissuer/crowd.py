"""The connections of a server: who is too slow, or stands in others' way, has to go.

Waitress reads all connections in one thread and gives a whole request to another, so a slow client holds up nobody. But
it takes a place, and there are only so many: one that sends a byte now and then would keep it for ever.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask
from waitress.utilities import Error

from tokenissuer.errors import (
    ContentTooLarge,
    HeaderTooLarge,
    InternalError,
    InvalidRequest,
    RequestError,
    RequestTooSlow,
)
from tokenissuer.line import logfmt
from tokenissuer.metrics import metrics
from tokenissuer.protocol import error_response

#: Connections at a time.
MOST: Final = 500
#: Seconds that a request may take to come, and an answer to be taken.
SLOW: Final = 15.0
#: Seconds that a connection may stand idle.
IDLE: Final = 30.0
#: Seconds for which nobody is sent away, however full it is.
GRACE: Final = 1.0
#: The part of the places that is made free at once when all are taken.
_ROOM: Final = 0.1

_TURN: Final = 0.5
_REPORT_INTERVAL: Final = 10.0

_log: Final = logging.getLogger("tokenissuer.crowd")
_requests: Final = logging.getLogger("tokenissuer.requests")


class Refusal(ErrorTask):  # type: ignore[misc]
    """Answers what the server itself refuses: as the application does, and with a line in the log."""

    response_headers: list[tuple[str, str]]
    _errors: ClassVar[dict[int, type[RequestError]]] = {
        400: InvalidRequest,
        408: RequestTooSlow,
        413: ContentTooLarge,
        431: HeaderTooLarge,
        501: InvalidRequest,
    }

    def execute(self) -> None:
        """Write the answer."""
        error = self._errors.get(self.request.error.code, InternalError)()
        response = error_response(error, "tokenissuer")
        request_id = secrets.token_hex(8)
        self.status = response.status
        headers = [pair for pair in response.headerlist if pair[0] != "Content-Length"]
        self.response_headers.extend([*headers, ("X-Request-Id", request_id)])
        self.content_length = len(response.body)
        self.set_close_on_finish()
        addr = self.channel.addr
        line = {
            "request_id": request_id,
            "status": error.status,
            "client": addr[0] if isinstance(addr, tuple) else "",
            "error": error.sentence,
        }
        _requests.info("%s", logfmt(line), extra={"fields": line})
        self.write(response.body)


class _TooSlow(Error):  # type: ignore[misc]
    code = 408
    reason = "Request Timeout"


class Crowd:
    """Sends connections away that others need the place of. Only the thread that reads them may ask it to.

    Args:
        servers: which have the connections.
    """

    def __init__(self, servers: Sequence[BaseWSGIServer]) -> None:
        self._servers: Final = servers
        self._next_turn = 0.0
        self._begun: Final[WeakKeyDictionary[HTTPRequestParser, float]] = WeakKeyDictionary()
        self._gone: Final[Counter[str]] = Counter()
        self._next_report = 0.0

    def tend(self) -> None:
        """Send away who has to go."""
        now = time.monotonic()
        count = sum(len(server.active_channels) for server in self._servers)
        if now < self._next_turn and count < MOST:
            return
        self._next_turn = now + _TURN
        channels = [channel for server in self._servers for channel in list(server.active_channels.values())]
        for channel in channels:
            self._hurry(channel, now)
        if count >= MOST:
            self._make_room([channel for channel in channels if _is_waiting(channel)], count)
        self._report(now)

    def _hurry(self, channel: HTTPChannel, now: float) -> None:
        if channel.requests:
            return
        idle = time.time() - channel.last_activity
        if channel.total_outbufs_len:
            if idle > SLOW:
                self._send_away(channel, "takes_no_answer")
        elif (request := channel.request) is not None:
            if now - self._begun.setdefault(request, now) > SLOW:
                self._refuse(channel)
        elif idle > IDLE:
            # Nothing is lost, and nothing need be said.
            channel.handle_close()

    def _refuse(self, channel: HTTPChannel) -> None:
        """Answer a request that has not come yet, and never will."""
        with channel.requests_lock:
            request = channel.request
            request.error = _TooSlow("")
            request.completed = True
            channel.request = None
            channel.requests.append(request)
        self._note("slow")
        channel.server.add_task(channel)

    def _make_room(self, channels: Iterable[HTTPChannel], count: int) -> None:
        """Send those away that have waited for longest, first of those who have the most connections."""
        channels = list(channels)
        have = Counter(_address(channel) for channel in channels)
        before = time.time() - GRACE
        old = [channel for channel in channels if channel.creation_time < before]
        old.sort(key=lambda channel: (-have[_address(channel)], channel.last_activity))
        for channel in old[: count - int(MOST * (1 - _ROOM))]:
            self._send_away(channel, "crowded")

    def _send_away(self, channel: HTTPChannel, reason: str) -> None:
        self._note(reason)
        channel.handle_close()

    def _note(self, reason: str) -> None:
        self._gone[reason] += 1
        metrics().closed.labels(reason).inc()

    def _report(self, now: float) -> None:
        if self._gone and now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(self._gone.items()))
            _log.warning("connections closed: %s", said, extra={"security": "shed"})
            self._gone.clear()


def _is_waiting(channel: HTTPChannel) -> bool:
    """Whether there is no whole request that somebody may be answering, and no answer to be taken."""
    return not channel.requests and not channel.total_outbufs_len


def _address(channel: HTTPChannel) -> Any:
    return channel.addr[0] if isinstance(channel.addr, tuple) else ""
