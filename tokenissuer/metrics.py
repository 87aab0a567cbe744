"""What is counted and measured, for Prometheus. No label holds what a client chose."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: With this environment variable, a folder, several processes count together.
FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

#: Seconds: from a remembered answer to a client that gives up.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of this process, or of all that share a folder.

    Args:
        requests: by endpoint and outcome.
        request_seconds: by endpoint.
        logins: by backend and outcome.
        backend_seconds: by backend and question.
        outages: requests that failed because something could not be asked, by what that was.
        remembered: answers that no backend was asked for, by backend and answer.
        throttled: by whose tries were used up.
        refresh_tokens: by what happened.
        signing_seconds: by algorithm.
        certificate_end: seconds since 1970.
        reloads: by outcome.
        closed: connections closed before they were served, by reason.
        up: 1 or 0 for each account source and store.
    """

    requests: Counter
    request_seconds: Histogram
    logins: Counter
    backend_seconds: Histogram
    outages: Counter
    remembered: Counter
    throttled: Counter
    refresh_tokens: Counter
    signing_seconds: Histogram
    certificate_end: Gauge
    reloads: Counter
    closed: Counter
    up: Gauge


@cache
def metrics() -> Metrics:
    """Return the metrics."""
    # Not before it is needed: the library decides when it is imported whether several processes count together.
    from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

    disable_created_metrics()  # type: ignore[no-untyped-call]
    # The newest value counts, whichever process has set it.
    newest = "mostrecent"
    made = Metrics(
        requests=Counter("tokenissuer_requests", "Requests.", ["endpoint", "outcome"]),
        request_seconds=Histogram(
            "tokenissuer_request_seconds", "Seconds until the answer.", ["endpoint"], buckets=_SECONDS
        ),
        logins=Counter("tokenissuer_logins", "Logins with a password.", ["backend", "outcome"]),
        backend_seconds=Histogram(
            "tokenissuer_backend_seconds", "Seconds a backend took.", ["backend", "question"], buckets=_SECONDS
        ),
        outages=Counter("tokenissuer_outages", "Requests failed by what could not be asked.", ["part"]),
        remembered=Counter("tokenissuer_remembered", "Answers without asking the backend.", ["backend", "answer"]),
        throttled=Counter("tokenissuer_throttled", "Logins refused after too many wrong passwords.", ["limit"]),
        refresh_tokens=Counter("tokenissuer_refresh_tokens", "What happened to refresh tokens.", ["event"]),
        signing_seconds=Histogram(
            "tokenissuer_signing_seconds", "Seconds a signature took.", ["algorithm"], buckets=_SECONDS[:10]
        ),
        certificate_end=Gauge(
            "tokenissuer_certificate_end_timestamp_seconds",
            "When the certificate ends, in seconds since 1970.",
            multiprocess_mode=newest,  # type: ignore[arg-type]
        ),
        reloads=Counter("tokenissuer_reloads", "Changes of the configuration or a file it names.", ["outcome"]),
        closed=Counter("tokenissuer_connections_closed", "Connections closed before they were served.", ["reason"]),
        up=Gauge(
            "tokenissuer_part_up",
            "Whether an account source or store can be asked.",
            ["part"],
            multiprocess_mode=newest,  # type: ignore[arg-type]
        ),
    )
    # A counter that begins at 1 has not risen, as Prometheus sees it.
    for counter, values in (
        (made.throttled, ("account", "address")),
        (made.refresh_tokens, ("issued", "redeemed", "refused", "revoked")),
        (made.reloads, ("good", "failed")),
        (made.closed, ("slow", "takes_no_answer", "crowded")),
    ):
        for value in values:
            counter.labels(value)
    for outcome in ("good", "refused", "denied", "throttled", "invalid", "failed", "unavailable"):
        made.requests.labels("token", outcome)
    return made


@contextlib.contextmanager
def counting_together() -> Iterator[None]:
    """Let all processes that are forked inside the block count together. Nothing may have been counted before."""
    if os.environ.get(FOLDER_VARIABLE):
        yield
        return
    # In memory where that can be: nobody sweeps it, as some do /tmp while a server runs for weeks.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="tokenissuer-metrics-", dir=memory) as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER_VARIABLE]


@contextlib.contextmanager
def timed(histogram: Histogram, *labels: str) -> Iterator[None]:
    """Measure how long the block takes, however it ends."""
    started = time.perf_counter()
    try:
        yield
    finally:
        histogram.labels(*labels).observe(time.perf_counter() - started)


def exposed() -> CollectorRegistry:
    """Return what there is to be read: of all processes that share a folder, else of this one."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    metrics()
    if not os.environ.get(FOLDER_VARIABLE):
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
