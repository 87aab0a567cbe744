"""`tokenissuer.wsgi:application`, for any WSGI server.

The configuration is `$TOKENISSUER_CONFIG`, `tokenissuer.toml` in the working folder, or the one in /etc. The server's
every process looks at the files by itself, when it is asked something.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tokenissuer.config import find_config
from tokenissuer.live import LiveApplication
from tokenissuer.log import log_beside_others

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log_beside_others()
# There only in a process of uWSGI.
_uwsgi: Final = importlib.import_module("uwsgi") if "uwsgi" in sys.modules else None
_live: Final = LiveApplication(find_config(None).absolute())


class _Chunks:
    """A body in chunks as uWSGI gives it away, through a call of its own.

    Args:
        read: returns the next piece, empty at the end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read: Final = read
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to so many bytes, none at the end."""
        if not self._rest:
            self._rest = self._read()
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request, by what the files say now."""
    _live.look()
    if _uwsgi is not None and environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        environ = {**environ, "wsgi.input": _Chunks(_uwsgi.chunked_read), "wsgi.input_terminated": True}
    return _live(environ, start_response)
