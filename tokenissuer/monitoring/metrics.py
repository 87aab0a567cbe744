"""What is counted and measured in this process, for Prometheus. No label has what a client chose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from tokenissuer.errors import BackendUnavailable, ConfigurationError, InvalidCredentials, TooManyAttempts
from tokenissuer.net import HostPort
from tokenissuer.options import option
from tokenissuer.service import Password, RefreshToken, TokenResponse
from tokenissuer.web.record import Exchange

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Seconds: from a remembered answer to a client that gives up.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)
#: The outcome of a request, by its status; any other is `invalid`.
_OUTCOMES: Final = {
    200: "good",
    401: "refused",
    403: "denied",
    429: "throttled",
    500: "failed",
    503: "unavailable",
}
#: What an outage is counted for if no backend is its cause.
STORE: Final = "refresh.store"

# Not the library's default registry, which a host program may use for its own metrics.
REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"tokenissuer_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(f"tokenissuer_{name}", text, labels, registry=REGISTRY, buckets=_BUCKETS)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"tokenissuer_{name}", text, labels, registry=REGISTRY)


REQUESTS: Final = _counter("requests", "Requests.", "endpoint", "outcome")
REQUEST_SECONDS: Final = _histogram("request_seconds", "Seconds until the answer.", "endpoint")
LOGINS: Final = _counter("logins", "Logins with a password.", "backend", "outcome")
BACKEND_SECONDS: Final = _histogram("backend_seconds", "Seconds a backend took.", "backend", "question")
OUTAGES: Final = _counter("outages", "Requests that failed because a backend or store did not answer.", "part")
REMEMBERED: Final = _counter("remembered", "Logins answered from the cache.", "backend")
THROTTLED: Final = _counter("throttled", "Logins refused after too many wrong passwords.", "limit")
REFRESH_TOKENS: Final = _counter("refresh_tokens", "What happened to refresh tokens.", "event")
CERTIFICATE_END: Final = _gauge(
    "certificate_end_timestamp_seconds", "When the certificate ends, in seconds since 1970."
)
UNUSABLE_ACCOUNTS: Final = _gauge(
    "unusable_accounts",
    "Accounts in a backend's own file that can never log in, such as with a damaged hash.",
    "backend",
)
RELOADS: Final = _counter("reloads", "Changes of the configuration or a file that it names.", "outcome")
UP: Final = _gauge("part_up", "Whether a backend or the session store can be asked.", "part")

# For Prometheus a counter that begins at 1 has not risen.
for _counted, _values in (
    (THROTTLED, ("account", "address", "source", "anonymous")),
    (REFRESH_TOKENS, ("issued", "redeemed", "refused", "revoked")),
    (RELOADS, ("good", "failed")),
):
    for _value in _values:
        _counted.labels(_value)
for _value in (*_OUTCOMES.values(), "invalid"):
    REQUESTS.labels("token", _value)


def begin(backends: Iterable[str]) -> None:
    """Begin the counters of these backends, and of the session store, at 0.

    Args:
        backends: their names.
    """
    for backend in backends:
        OUTAGES.labels(backend)
        for outcome in ("accepted", "refused", "unavailable"):
            LOGINS.labels(backend, outcome)
    OUTAGES.labels(STORE)


@cache
def _bound(metric: Any, *labels: str) -> Any:
    """Return the one series with these labels; there are few."""
    return metric.labels(*labels)


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """The `[metrics]` table. Without it nothing is served."""

    listen: str = option("HOST:PORT for /metrics, and /readyz in detail; only you should reach it")

    def __post_init__(self) -> None:
        try:
            HostPort.parse(self.listen)
        except ValueError:
            raise ValueError(f"'listen' is '{self.listen}'; use HOST:PORT such as 127.0.0.1:9001") from None


def observe_backend(backend: str, question: str, seconds: float) -> None:
    """Count one question to a backend, or one answer from the cache."""
    if question == "remembered":
        _bound(REMEMBERED, backend).inc()
    else:
        _bound(BACKEND_SECONDS, backend, question).observe(seconds)


def observe_request(exchange: Exchange) -> None:
    """Count one request and what came of it."""
    outcome = _OUTCOMES.get(exchange.outcome, "invalid")
    _bound(REQUESTS, exchange.endpoint, outcome).inc()
    _bound(REQUEST_SECONDS, exchange.endpoint).observe(exchange.seconds)
    result = exchange.result
    credentials = exchange.request.credentials if exchange.request else None
    if isinstance(result, BackendUnavailable):
        _bound(OUTAGES, result.backend or STORE).inc()
    if isinstance(result, TooManyAttempts):
        _bound(THROTTLED, result.limit).inc()
    elif exchange.endpoint == "revoke" and exchange.status == 200:
        _bound(REFRESH_TOKENS, "revoked").inc()
    elif isinstance(credentials, RefreshToken):
        if isinstance(result, TokenResponse):
            _bound(REFRESH_TOKENS, "redeemed").inc()
        elif isinstance(result, InvalidCredentials):
            _bound(REFRESH_TOKENS, "refused").inc()
    elif isinstance(credentials, Password):
        if isinstance(result, TokenResponse):
            _bound(LOGINS, result.backend, "accepted").inc()
            if result.refresh_token:
                _bound(REFRESH_TOKENS, "issued").inc()
        elif isinstance(result, InvalidCredentials):
            _bound(LOGINS, result.backend or "none", "refused").inc()
        elif isinstance(result, BackendUnavailable):
            _bound(LOGINS, result.backend or "none", "unavailable").inc()


@contextmanager
def serve_metrics(listen: HostPort, troubles: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Serve /metrics, /readyz in detail and /healthz as long as the block lasts, in a thread of their own.

    Args:
        listen: where. Nobody else may reach it: it says which backends there are and what is wrong with them.
        troubles: for each backend and store, why it cannot be asked; empty if it can.

    Raises:
        ConfigurationError: if nothing can listen there.
    """
    try:
        server, thread = start_http_server(listen.port, listen.host, REGISTRY)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"[metrics] cannot listen on {listen}: {cause}; use another address") from None
    metrics: Any = server.get_app()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/healthz":
            return _json(start_response, "200 OK", {"status": "up"})
        if path not in ("/metrics", "/readyz"):
            return _json(start_response, "404 Not Found", {"error": "use /metrics, /readyz or /healthz"})
        # Each look at the metrics also finds out what is up.
        found = troubles()
        if path == "/metrics":
            body: Iterable[bytes] = metrics(environ, start_response)
            return body
        is_ready = not any(found.values())
        status = "200 OK" if is_ready else "503 Service Unavailable"
        parts = {name: trouble or "up" for name, trouble in found.items()}
        return _json(start_response, status, {"status": "ready" if is_ready else "not ready", "parts": parts})

    server.set_app(answer)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _json(start_response: StartResponse, status: str, body: Mapping[str, object]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(body).encode("ascii")]
