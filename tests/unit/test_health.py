"""Readiness is found out in the background."""

from __future__ import annotations

import threading
import time

import pytest

import tokenissuer.monitoring.health
from tests.support.machine import wait_until
from tokenissuer.errors import BackendUnavailable
from tokenissuer.monitoring.health import Health


class Part:
    """Something that is up, down, or hangs."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def check(self) -> None:
        self.asked += 1
        self.free.wait(10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def part() -> Part:
    """One that is up."""
    return Part()


def test_each_part_is_told_apart(part: Part) -> None:
    """What is down, and why; the rest is up."""
    down = Part()
    down.error = BackendUnavailable("ldap: connection refused")
    health = Health({"backend a": part.check, "backend b": down.check})
    assert health.troubles() == {"backend a": "", "backend b": "ldap: connection refused"}
    with pytest.raises(BackendUnavailable) as caught:
        health.prove()
    assert caught.value.reason == "backend b: ldap: connection refused"
    assert "ldap" not in caught.value.description


def test_all_up_is_ready(part: Part) -> None:
    """And no parts at all are, too."""
    Health({"a": part.check}).prove()
    Health({}).prove()


def test_asking_often_asks_the_part_once(part: Part) -> None:
    """A flood of probes does not reach it."""
    health = Health({"a": part.check})
    for _ in range(200):
        health.prove()
    assert part.asked == 1


def test_a_part_that_hangs_makes_nobody_wait(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """One second at first, nothing later; at most one thread hangs with it."""
    monkeypatch.setattr(tokenissuer.monitoring.health, "WAIT", 0.2)
    part.free.clear()
    health = Health({"a": part.check, "b": Part().check})
    started = time.monotonic()
    assert health.troubles() == {"a": "no answer yet", "b": ""}
    assert time.monotonic() - started < 1
    monkeypatch.setattr(tokenissuer.monitoring.health, "PROBE_TIMEOUT", 0.0)
    for _ in range(5):
        assert health.troubles()["a"] == "no answer for 0 seconds"
    assert part.asked == 1
    part.free.set()


def test_during_a_probe_the_last_result_counts(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once; an old one does not hold for ever."""
    health = Health({"a": part.check})
    health.prove()
    monkeypatch.setattr(tokenissuer.monitoring.health, "PROBE_INTERVAL", 0.0)
    part.free.clear()
    started = time.monotonic()
    health.prove()
    health.prove()
    assert time.monotonic() - started < 0.5
    assert wait_until(lambda: part.asked == 2)
    monkeypatch.setattr(tokenissuer.monitoring.health, "MAX_AGE", 0.0)
    monkeypatch.setattr(tokenissuer.monitoring.health, "WAIT", 0.05)
    assert health.troubles() == {"a": "no answer yet"}
    part.free.set()


def test_a_recovery_is_seen(part: Part, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line when it goes, one when it comes."""
    caplog.set_level("INFO")
    monkeypatch.setattr(tokenissuer.monitoring.health, "PROBE_INTERVAL", 0.0)
    part.error = BackendUnavailable("gone")
    health = Health({"backend a": part.check})
    assert wait_until(lambda: health.troubles() == {"backend a": "gone"} and part.asked > 3)
    part.error = None
    assert wait_until(lambda: health.troubles() == {"backend a": ""})
    assert wait_until(lambda: len(caplog.records) == 2)
    assert [record.__dict__["security"] for record in caplog.records] == ["outage", "outage_over"]


def test_a_defect_is_down_and_not_quoted(part: Part) -> None:
    """A stranger's text may hold a secret."""
    part.error = ValueError("planted")
    assert Health({"a": part.check}).troubles() == {"a": "ValueError in the probe; this is a bug"}
