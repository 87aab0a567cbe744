"""`tokenissuer.wsgi:application`, for any WSGI server.

The configuration is `$TOKENISSUER_CONFIG`, `tokenissuer.toml` in the working folder, or the one in /etc. The server's
every process looks at the files by itself, when it is asked something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tokenissuer.config import find_config
from tokenissuer.live import LiveApplication
from tokenissuer.log import log_beside_others

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log_beside_others()
_live: Final = LiveApplication(find_config(None).absolute())


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request, by what the files say now."""
    _live.look()
    return _live(environ, start_response)
