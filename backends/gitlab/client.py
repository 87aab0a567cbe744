"""A pooled HTTP client for one GitLab: verified TLS, limits of time and size, no redirects."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import json
import math
import re
import socket
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError

from tokenissuer import BackendUnavailable, Deadline, QuotaExceeded, tls_context
from tokenissuer_backends.gitlab.credential import Credential

#: Seconds for one attempt to connect.
CONNECT_TIMEOUT: Final = 3.0
#: Seconds to wait for a free connection.
POOL_TIMEOUT: Final = 2.0
#: Bytes in one answer: a page of a hundred projects takes about a quarter of this.
MAX_ANSWER: Final = 1024 * 1024
#: Pages of one list: five thousand groups.
MAX_PAGES: Final = 50
PER_PAGE: Final = 100
#: Seconds to wait after a refusal, if GitLab does not say how long.
DEFAULT_RETRY_AFTER: Final = 10
MAX_RETRY_AFTER: Final = 3600
#: Callers that have reached their rate limit; the oldest is dropped first.
_MAX_PAUSES: Final = 1000

_MINUTE: Final = 60.0
# The status with which tokenissuer answers its own requests.
_LOOP: Final = 508
_RENAMED: Final = re.compile(r"/api/v4/projects/[0-9]+(?:[/?]|$)")


class GitLabAnswer(Exception):
    """GitLab answered with an error.

    Args:
        status: the HTTP status.
        explanation: GitLab's own words, for the log.
        date: the time by GitLab's clock, from the Date header.
    """

    def __init__(self, status: int, explanation: str, date: str) -> None:
        self.status = status
        self.date = date
        super().__init__(f"GitLab answered {status}: {explanation}")


class Refused(GitLabAnswer):
    """400, 401 or 403: the credential is not valid, or not for this."""


class Absent(GitLabAnswer):
    """404, or the 301 of a renamed project: it does not exist, or the caller may not see it."""


class TooManyPages(GitLabAnswer):
    """The list has more pages than are read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """GitLab's answer, read to its end.

    Args:
        status: the HTTP status.
        headers: by lower-case name.
        body: may have a token in it.
        place: the host and path, for the log.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    place: str

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            BackendUnavailable: if it is not JSON: something other than GitLab has answered.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise BackendUnavailable(f"{self.place}: the answer {self.status} is not JSON") from None

    def table(self) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            BackendUnavailable: if it is not one.
        """
        found = self.json()
        if not isinstance(found, dict):
            raise BackendUnavailable(f"{self.place}: the answer {self.status} is not a JSON object")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the body as a list of JSON objects.

        Raises:
            BackendUnavailable: if it is not one.
        """
        found = self.json()
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise BackendUnavailable(f"{self.place}: the answer {self.status} is not a list of JSON objects")
        return found

    @property
    def date(self) -> str:
        """The time by GitLab's clock, from the Date header."""
        return self.headers.get("date", "")

    def explanation(self) -> str:
        """Return GitLab's own words about an error, as one line for the log.

        Raises:
            BackendUnavailable: if they have neither of GitLab's two JSON forms: something in front of it answered.
        """
        said = self.table()
        words = said.get("message") or said.get("error_description") or said.get("error") or said.get("errors")
        if not words:
            raise BackendUnavailable(f"{self.place}: the answer {self.status} has a form that GitLab does not use")
        text = words if isinstance(words, str) else json.dumps(words)
        return "".join(character if character.isprintable() else " " for character in text[:300])


class Client:
    """Sends GET requests to one GitLab.

    Args:
        url: its address, with the path it is installed under if any.
        ca_file: certificates to trust instead of the system's.
        connections: requests under way at once.
        anonymous_requests: requests in a minute for anonymous callers.

    Raises:
        ConfigurationError: if the certificates cannot be read.
    """

    def __init__(self, url: str, ca_file: Path | None, connections: int, anonymous_requests: int) -> None:
        parts = urllib.parse.urlsplit(url)
        self._root: Final = parts.path.rstrip("/")
        self._name: Final = parts.netloc
        self._pauses: Final = _Pauses()
        self._anonymous: Final = _Budget(anonymous_requests)
        # `block`: never more connections than these, so that a slow GitLab cannot use up threads and sockets.
        shared: dict[str, Any] = {"port": parts.port, "maxsize": connections, "block": True, "retries": False}
        self._pool: urllib3.HTTPConnectionPool
        if parts.scheme == "https":
            self._pool = _HTTPSPool(parts.hostname or "", ssl_context=tls_context(ca_file), **shared)
        else:
            self._pool = _HTTPPool(parts.hostname or "", **shared)

    def get(
        self, path: str, credential: Credential, deadline: Deadline, query: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """Ask for one page.

        Args:
            path: below GitLab's address, percent-encoded.
            credential: who asks.
            deadline: for the whole answer.
            query: parameters; never a secret, because they appear in logs.

        Raises:
            Refused: for 400, 401 and 403.
            Absent: for 404 and for the redirect of a renamed project.
            BackendUnavailable: for every other status but 200, for 429 (until its time is over), and if no complete
                answer came.
        """
        place = f"{self._name} {path}"
        self._pauses.check(credential, place)
        if credential.is_for_anonymous:
            self._anonymous.spend(place)
        answer = self._exchange(path, credential, deadline, query, place)
        if answer.status == 200:
            return answer
        if answer.status in (400, 401, 403):
            raise Refused(answer.status, answer.explanation(), answer.date)
        if answer.status == 404:
            raise Absent(404, answer.explanation(), answer.date)
        if 300 <= answer.status < 400:
            raise self._redirected(answer)
        raise self._outage(answer, credential)

    def pages(
        self, path: str, credential: Credential, deadline: Deadline, query: Iterable[tuple[str, str]] = ()
    ) -> Iterator[Answer]:
        """Ask for every page of a list.

        Args:
            path: as for `get`.
            credential: who asks.
            deadline: for all pages together.
            query: as for `get`, without the page.

        Raises:
            TooManyPages: if there are more than `MAX_PAGES`.
        """
        for page in range(1, MAX_PAGES + 1):
            numbers = [("per_page", str(PER_PAGE)), ("page", str(page))]
            answer = self.get(path, credential, deadline, [*query, *numbers])
            yield answer
            # Very long lists lack the header, and in an answer with two lists it describes only the second.
            if not answer.headers.get("x-next-page") and not _is_full(answer.json()):
                return
        raise TooManyPages(200, f"the list has more than {MAX_PAGES} pages of {PER_PAGE}", "")

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _exchange(
        self, path: str, credential: Credential, deadline: Deadline, query: Iterable[tuple[str, str]], place: str
    ) -> Answer:
        target = f"{self._root}{path}" + (f"?{urllib.parse.urlencode(list(query))}" if query else "")
        try:
            try:
                return self._send(target, credential, deadline, place)
            except ProtocolError:
                # GitLab closes idle connections; only using one shows that it is closed.
                return self._send(target, credential, deadline, place)
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            # Neither the error itself nor a chain: it may have anything in it.
            raise BackendUnavailable(f"{place}: {_cause(error)}") from None

    def _send(self, target: str, credential: Credential, deadline: Deadline, place: str) -> Answer:
        left = deadline.remaining()
        wait: Any = min(POOL_TIMEOUT, left)
        response = self._pool.urlopen(
            "GET",
            target,
            # A compressed answer could be much larger than it looks.
            headers={
                **credential.headers(),
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": "tokenissuer",
                # Where the address leads back to tokenissuer, it answers this at once with 508.
                "X-Tokenissuer": "1",
            },
            # Never: a redirect would send the credential to another place.
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(total=left, connect=min(CONNECT_TIMEOUT, left)),
            pool_timeout=wait,  # annotated as whole seconds
            preload_content=False,
            decode_content=False,
        )
        body = b""
        try:
            while piece := response.read(65536, decode_content=False):
                body += piece
                if len(body) > MAX_ANSWER:
                    raise BackendUnavailable(f"{place}: the answer has more than {MAX_ANSWER} bytes")
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, body, place)

    def _redirected(self, answer: Answer) -> Exception:
        location = answer.headers.get("location", "")
        try:
            parts = urllib.parse.urlsplit(location)
            target = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
        except ValueError:
            return BackendUnavailable(f"{answer.place}: redirected ({answer.status}) to an unreadable address")
        # GitLab redirects from the old path to the number of the project. Other redirects keep the path that was asked.
        if answer.status == 301 and _RENAMED.search(parts.path) and not _RENAMED.search(answer.place):
            # GitLab's own registry does not follow renamed projects either.
            return Absent(301, "the project has another path now", answer.date)
        return BackendUnavailable(
            f"{answer.place}: redirected ({answer.status}) to {target!a}; set the backend's url to GitLab's own address"
        )

    def _outage(self, answer: Answer, credential: Credential) -> BackendUnavailable:
        if answer.status == _LOOP:
            return BackendUnavailable(
                f"{answer.place}: tokenissuer itself has answered; set the backend's url to an address at which GitLab "
                "answers (its Workhorse)"
            )
        after = _retry_after(answer.headers)
        if answer.status == 429 or "retry-after" in answer.headers:
            self._pauses.add(credential, after)
        return BackendUnavailable(f"{answer.place}: GitLab answered {answer.status}", retry_after=after)


class _Pauses:
    """Until when GitLab's rate limit refuses each caller."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._ends: Final[OrderedDict[bytes, float]] = OrderedDict()

    def add(self, credential: Credential, seconds: int) -> None:
        with self._lock:
            self._ends.pop(credential.fingerprint, None)
            self._ends[credential.fingerprint] = time.monotonic() + seconds
            while len(self._ends) > _MAX_PAUSES:
                self._ends.popitem(last=False)

    def check(self, credential: Credential, place: str) -> None:
        with self._lock:
            end = self._ends.get(credential.fingerprint)
            left = 0.0 if end is None else end - time.monotonic()
            if end is not None and left <= 0:
                del self._ends[credential.fingerprint]
        if left > 0:
            raise QuotaExceeded(f"{place}: GitLab's rate limit is reached", retry_after=int(left) + 1)


class _Budget:
    """Requests that may be made in a minute.

    Args:
        number: how many; as many may come at once.
    """

    def __init__(self, number: int) -> None:
        self._number: Final = number
        self._lock: Final = threading.Lock()
        self._left = float(number)
        self._filled = time.monotonic()

    def spend(self, place: str) -> None:
        """Take one.

        Raises:
            QuotaExceeded: if the requests of this minute are used up.
        """
        with self._lock:
            now = time.monotonic()
            self._left = min(self._number, self._left + (now - self._filled) * self._number / _MINUTE)
            self._filled = now
            if self._left < 1:
                raise QuotaExceeded(
                    f"{place}: anonymous callers have used up 'anonymous_requests'",
                    retry_after=math.ceil((1 - self._left) * _MINUTE / self._number),
                )
            self._left -= 1


class _TimedStream(io.RawIOBase):
    """A response's bytes with one timeout for all: with a timeout per read, a slow sender could go on for ever."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._seconds = sock.gettimeout() or CONNECT_TIMEOUT
        self._end = time.monotonic() + self._seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        # urllib3 has set the socket's timeout to what is left of the deadline.
        buffered: Any = self.fp
        self.fp = io.BufferedReader(_TimedStream(buffered.detach(), sock))


class _HTTP(HTTPConnection):
    response_class = _TimedResponse


class _HTTPS(HTTPSConnection):
    response_class = _TimedResponse


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTP


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPS


def _is_full(page: Any) -> bool:
    """Whether a page, or any list in it, has the maximum length."""
    lists = [page] if isinstance(page, list) else [value for value in page.values() if isinstance(value, list)]
    return any(len(rows) >= PER_PAGE for rows in lists)


def _cause(error: BaseException) -> str:
    """Name what went wrong at the bottom of urllib3's errors."""
    kind = type(error).__name__
    inner = error.args[-1] if error.args else None
    if isinstance(inner, BaseException):
        return f"{kind}: {type(inner).__name__}: {inner}"
    return f"{kind}: {getattr(error, 'reason', None) or inner or 'no details'}"


def _retry_after(headers: Mapping[str, str]) -> int:
    """Read `Retry-After` (https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3) or GitLab's `RateLimit-Reset`."""
    said = headers.get("retry-after", "").strip()
    reset = headers.get("ratelimit-reset", "").strip()
    seconds: float = DEFAULT_RETRY_AFTER
    if said.isascii() and said.isdigit():
        seconds = float(said[:9])
    elif said:
        with contextlib.suppress(ValueError, OverflowError):
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    elif reset.isascii() and reset.isdigit():
        seconds = float(reset[:12]) - time.time()
    return int(min(max(seconds, 1), MAX_RETRY_AFTER))
