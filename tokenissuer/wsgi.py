"""`tokenissuer.wsgi:application`, for any WSGI server.

The configuration is `$TOKENISSUER_CONFIG`, `tokenissuer.toml` in the working folder, or the one in /etc. Each process
of the server follows its files by itself. While the configuration cannot be used, requests are answered with 503, and
one line in the log says why.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tokenissuer.config import find_config
from tokenissuer.errors import BackendUnavailable, ConfigurationError
from tokenissuer.monitoring.log import log_under_wsgi
from tokenissuer.serving.reload import RETRY_INTERVAL, ReloadingApplication
from tokenissuer.web.protocol import error_response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_log: Final = logging.getLogger("tokenissuer")

log_under_wsgi()
# Exists only in a process of uWSGI.
_uwsgi: Final = importlib.import_module("uwsgi") if "uwsgi" in sys.modules else None


class _LateApplication:
    """The application, built when that is possible. If the import failed, Apache would repeat it with each request."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._built: ReloadingApplication | None = None
        self._tried = float("-inf")
        self._trouble = ""
        self._build()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._built is None:
            self._build()
        if self._built is not None:
            return self._built(environ, start_response)
        trouble = BackendUnavailable(
            self._trouble,
            retry_after=int(RETRY_INTERVAL),
            description="the configuration of this token server cannot be used; its log says why",
        )
        answer: Iterable[bytes] = error_response(trouble, "tokenissuer")(environ, start_response)
        return answer

    def _build(self) -> None:
        with self._lock:
            if self._built is not None or time.monotonic() < self._tried + RETRY_INTERVAL:
                return
            self._tried = time.monotonic()
            try:
                self._built = ReloadingApplication(find_config(None).absolute())
            except (ConfigurationError, OSError) as error:
                if str(error) != self._trouble:
                    _log.error("%s; until this is mended, requests are answered with 503", error)
                self._trouble = str(error)


_late: Final = _LateApplication()


class _Chunks:
    """A chunked body as uWSGI gives it to the application: through its own function.

    Args:
        read: returns the next piece, empty at the end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read: Final = read
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none at the end."""
        if not self._rest:
            self._rest = self._read()
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request."""
    if _uwsgi is not None and environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        environ = {**environ, "wsgi.input": _Chunks(_uwsgi.chunked_read), "wsgi.input_terminated": True}
    return _late(environ, start_response)
