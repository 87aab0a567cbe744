"""What those who run it see: metrics and health in detail, on an address of its own.

Nobody else may reach it: it tells which account sources there are and what ails them.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore
from waitress.server import create_server

from tokenissuer.metrics import exposed

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_JSON: Final = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]


class Observatory:
    """Answers at an open socket, in a thread of its own. Several processes may share the socket; any of them answers.

    Args:
        sock: where.
        troubles: tells for each account source and store why it is down; empty if it is up.
    """

    def __init__(self, sock: socket.socket, troubles: Callable[[], Mapping[str, str]]) -> None:
        self._troubles: Final = troubles
        self._map: Final[dict[int, Any]] = {}
        self._server: Final = create_server(
            self._answer, map=self._map, sockets=[sock], threads=2, ident=None, connection_limit=50, channel_timeout=10
        )
        self._is_over: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="observatory", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._is_over.set()
        self._server.pull_trigger()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                wasyncore.loop(timeout=1.0, map=self._map, use_poll=True, count=1)
        finally:
            self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
            wasyncore.close_all(self._map)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        from prometheus_client import make_wsgi_app

        path = environ.get("PATH_INFO", "")
        if path == "/healthz":
            return _json(start_response, "200 OK", {"status": "up"})
        if path not in ("/metrics", "/readyz"):
            return _json(start_response, "404 Not Found", {"error": "there is /metrics, /readyz and /healthz"})
        # Each look at the metrics finds out, too, what is up.
        troubles = self._troubles()
        if path == "/metrics":
            answer: Iterable[bytes] = make_wsgi_app(exposed())(environ, start_response)
            return answer
        is_ready = not any(troubles.values())
        parts = {name: trouble or "up" for name, trouble in troubles.items()}
        return _json(
            start_response,
            "200 OK" if is_ready else "503 Service Unavailable",
            {"status": "ready" if is_ready else "not ready", "parts": parts},
        )


def _json(start_response: StartResponse, status: str, body: Mapping[str, object]) -> Iterable[bytes]:
    start_response(status, list(_JSON))
    return [json.dumps(body).encode("ascii")]
