"""`tokenissuer.wsgi:application`, for any WSGI server.

The configuration is `$TOKENISSUER_CONFIG`, `tokenissuer.toml` in the working folder, or the one in /etc. Each process
of the server follows its files by itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tokenissuer.config import find_config
from tokenissuer.monitoring.log import log_under_wsgi
from tokenissuer.serving.reload import ReloadingApplication

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log_under_wsgi()
# Exists only in a process of uWSGI.
_uwsgi: Final = importlib.import_module("uwsgi") if "uwsgi" in sys.modules else None
_reloading: Final = ReloadingApplication(find_config(None).absolute())


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
    return _reloading(environ, start_response)
