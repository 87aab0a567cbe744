"""The baseline: an application that does nothing, under the same server with the same settings."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenissuer.config import THREADS
from tokenissuer.net import HostPort
from tokenissuer.serving.listener import Listener, open_sockets

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with an empty object."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
    return [b"{}"]


if __name__ == "__main__":
    Listener(application, open_sockets(HostPort("127.0.0.1", int(sys.argv[1]))), THREADS).run()
