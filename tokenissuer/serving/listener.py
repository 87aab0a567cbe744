"""Waitress on sockets, in one process. Requests that have arrived are answered before it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask

from tokenissuer.errors import ConfigurationError
from tokenissuer.net import HostPort

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: Seconds that a stop waits for requests that have arrived.
STOP_TIMEOUT: Final = 30.0
#: Seconds for which a connection without a request may still send one during a stop.
_LAST_CHANCE: Final = 1.0

#: Connections at once; further ones wait until one ends.
MAX_CONNECTIONS: Final = 500
#: Seconds after which a connection on which nothing happens is closed.
IDLE_TIMEOUT: Final = 30
#: Bytes of a header: a query with every possible mount source, and an access token or password.
_MAX_HEADER_SIZE: Final = 128 * 1024
#: Bytes of a body: more than the application reads, so that the application refuses it in its own words.
_MAX_BODY_SIZE: Final = 128 * 1024
#: Connections that wait in the kernel to be accepted; the kernel may use less.
_BACKLOG: Final = 1024
# More than an answer has: the loop's thread sends it, whole. A worker that sends gives Python's lock away and waits to
# get it back, which at sixteen connections is most of its time.
_SEND_BYTES: Final = 18_000
# The first of the sockets that systemd hands over (sd_listen_fds(3)).
_FIRST_INHERITED: Final = 3

_log: Final = logging.getLogger("tokenissuer")


def open_sockets(listen: HostPort, flag: str = "--listen") -> list[socket.socket]:
    """Listen on every address of a host.

    Args:
        listen: host and port.
        flag: the option that names them, for the message.

    Raises:
        ConfigurationError: if that fails.
    """
    with ExitStack() as opened:
        try:
            sockets = []
            for family, kind, protocol, _, address in socket.getaddrinfo(
                listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                sock = opened.enter_context(socket.socket(family, kind, protocol))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.listen(_BACKLOG)
                sockets.append(sock)
        except (OSError, UnicodeError) as error:
            cause = (getattr(error, "strerror", None) or str(error)).lower()
            raise ConfigurationError(
                f"cannot listen on {listen}: {cause}; stop what listens there, or use {flag} with another port"
            ) from None
        opened.pop_all()
    return sockets


def inherited_sockets() -> list[socket.socket]:
    """Return the sockets that systemd opened for this process (socket activation); none if it did not."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=number) for number in range(_FIRST_INHERITED, _FIRST_INHERITED + count)]


class _LastFirst(threading.Condition):
    """Wakes the thread that has waited for the shortest time: what it needs is still in the processor's cache."""

    def notify(self, n: int = 1) -> None:
        """Wake it."""
        self._waiters: deque[Any]
        self._waiters.rotate(1)
        super().notify(n)


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Waitress's threads, of which no more are awake than are needed."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.queue_cv = _LastFirst(self.lock)
        self.set_thread_count(threads)


class Listener:
    """Waitress on open sockets.

    Args:
        application: answers.
        sockets: what to listen on; they are closed at the end.
        threads: requests answered at once.
    """

    def __init__(self, application: WSGIApplication, sockets: Sequence[socket.socket], threads: int) -> None:
        self._map: Final[dict[int, Any]] = {}
        self._is_stopping = False
        self._server: Final = create_server(
            application,
            map=self._map,
            _dispatcher=_Dispatcher(threads),
            sockets=list(sockets),
            threads=threads,
            ident=None,
            backlog=_BACKLOG,
            connection_limit=MAX_CONNECTIONS,
            channel_timeout=IDLE_TIMEOUT,
            # Never to a file: 500 bodies fit into memory, and there may be no disk to write to.
            inbuf_overflow=2 * _MAX_BODY_SIZE,
            max_request_header_size=_MAX_HEADER_SIZE,
            max_request_body_size=_MAX_BODY_SIZE,
            # `[server] trusted_proxies` says which of them count.
            clear_untrusted_proxy_headers=False,
            asyncore_use_poll=True,
        )
        self._accepting: Final = [item for item in self._map.values() if isinstance(item, BaseWSGIServer)]
        for server in self._accepting:
            server.channel_class = self._channel_class()
            # As an argument of `create_server` it is deprecated.
            server.adj.send_bytes = _SEND_BYTES

    def run(self) -> None:
        """Answer until `stop`, and then what has arrived until then."""
        try:
            while not self._is_stopping:
                wasyncore.loop(timeout=1.0, map=self._map, use_poll=True, count=1)
            self._drain()
        finally:
            self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
            wasyncore.close_all(self._map)

    def stop(self) -> None:
        """End `run`; a signal handler or another thread may call this, more than once."""
        self._is_stopping = True
        for server in self._accepting:
            server.pull_trigger()

    @contextmanager
    def stopped_by(self, *numbers: signal.Signals) -> Iterator[None]:
        """Let these signals stop it. Later ones are ignored: programs often send them twice."""
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self._is_stopping else handler)

    def _drain(self) -> None:
        for server in self._accepting:
            # Connections that wait in the kernel expect an answer. At most as many as the kernel holds: under load new
            # ones arrive all the time.
            for _ in range(_BACKLOG):
                known = len(server.active_channels)
                server.handle_accept()
                if len(server.active_channels) == known:
                    break
            # Only the socket: what wakes this loop when an answer is ready must stay.
            wasyncore.dispatcher.close(server)
        end = time.monotonic() + STOP_TIMEOUT
        while channels := [item for item in self._map.values() if isinstance(item, HTTPChannel)]:
            if time.monotonic() > end:
                _log.warning("stopping with %d connections unfinished", len(channels))
                return
            idle_since = time.time() - _LAST_CHANCE
            for channel in channels:
                if not (channel.requests or channel.request or channel.total_outbufs_len):
                    channel.will_close = channel.will_close or channel.last_activity < idle_since
            wasyncore.loop(timeout=0.1, map=self._map, use_poll=True, count=1)

    def _channel_class(self) -> type[HTTPChannel]:
        listener = self

        class Task(WSGITask):  # type: ignore[misc]
            def build_response_header(self) -> Any:
                """Tell the client not to send more on a connection that is about to end."""
                if listener._is_stopping:
                    self.request.headers["CONNECTION"] = "close"
                return super().build_response_header()

        class Channel(HTTPChannel):  # type: ignore[misc]
            task_class = Task

            def writable(self) -> Any:
                """Whether there is something to send now. While the connection's next request is answered there is not,
                and the loop would ask without a pause.
                """
                if self.requests and self.total_outbufs_len < _SEND_BYTES:
                    return self.will_close or self.close_when_flushed
                return super().writable()

        return Channel
