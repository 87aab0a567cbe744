"""Passwords that are not tried again, as the core remembers them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tokenissuer.accounts import refusals
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.errors import InvalidCredentials, StoreUnavailable


@dataclass
class Shared:
    """A store for several processes, in memory."""

    kept: dict[bytes, tuple[str, str, float]] = field(default_factory=dict)
    is_down: bool = False

    def add_refusal(self, digest: bytes, account: str, version: str, until: float) -> None:
        """Keep one."""
        if self.is_down:
            raise StoreUnavailable("down")
        self.kept[digest] = (account, version, until)

    def find_refusal(self, digest: bytes) -> list[tuple[str, str, float]]:
        """Find it again."""
        if self.is_down:
            raise StoreUnavailable("down")
        return [self.kept[digest]] if digest in self.kept else []


class Directory(Backend):
    """One account, whose password is `right`."""

    def __init__(self) -> None:
        super().__init__(None)
        self.version = "1"
        self.is_locked = False
        self.tried: list[str] = []

    def authenticate(self, username: str, password: str) -> Account:
        """Count the try."""
        self.tried.append(password)
        if password != "right" or self.is_locked:
            raise InvalidCredentials(wrong_for=None if self.is_locked else ("alice", self.version))
        return self.lookup("alice", "")

    def lookup(self, name: str, password: str) -> Account:
        """Find it."""
        return Account("alice", password_version=self.version)


@pytest.fixture
def directory() -> Directory:
    """A source of accounts."""
    return Directory()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets, for both kinds of time."""
    moment = [1000.0]
    monkeypatch.setattr("time.time", lambda: moment[0])
    monkeypatch.setattr("time.monotonic", lambda: moment[0])
    return moment


def refused(backend: CachedBackend, username: str = "alice", password: str = "stale") -> None:
    """Log in with a wrong password."""
    with pytest.raises(InvalidCredentials):
        backend.authenticate(username, password)


def test_a_wrong_password_is_tried_once_until_the_password_changes(directory: Directory, now: list[float]) -> None:
    """However often a robot sends it; other passwords and other names are tried."""
    backend = CachedBackend("ldap", directory)
    for _ in range(10):
        refused(backend)
        now[0] += 61
    assert directory.tried == ["stale"]
    refused(backend, password="other")
    refused(backend, username="alice@example.com")
    assert directory.tried == ["stale", "other", "stale"]
    assert backend.authenticate("alice", "right").name == "alice"
    directory.version = "2"
    refused(backend)
    assert directory.tried[-1] == "stale"


def test_after_half_a_day_it_is_tried_again(directory: Directory, now: list[float]) -> None:
    """In case something else was wrong."""
    backend = CachedBackend("ldap", directory)
    refused(backend)
    now[0] += refusals.MAX_SECONDS - 1
    refused(backend)
    assert len(directory.tried) == 1
    now[0] += 2
    refused(backend)
    assert len(directory.tried) == 2


def test_a_refusal_that_may_not_be_about_the_password_lasts_a_minute(directory: Directory, now: list[float]) -> None:
    """A lock ends, and the right password is right again."""
    backend = CachedBackend("ldap", directory)
    directory.is_locked = True
    refused(backend, password="right")
    directory.is_locked = False
    now[0] += 61
    assert backend.authenticate("alice", "right").name == "alice"


def test_processes_share_it_through_the_store_and_do_without_it(directory: Directory, now: list[float]) -> None:
    """But not with another backend's name, and not without the same key."""
    store = Shared()
    first, second, third = (CachedBackend("ldap", directory, refusals=Refusals(b"key", store)) for _ in range(3))
    refused(first)
    refused(second)
    assert directory.tried == ["stale"]
    refused(CachedBackend("other", directory, refusals=Refusals(b"key", store)))
    refused(CachedBackend("ldap", directory, refusals=Refusals(b"another", store)))
    assert directory.tried == ["stale"] * 3
    store.is_down = True
    now[0] += 61
    refused(third)
    now[0] += 61
    refused(third)
    assert directory.tried == ["stale"] * 4


def test_memory_is_bounded(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    monkeypatch.setattr(refusals, "MAX_REFUSALS", 2)
    kept = Refusals(b"key")
    for password in ("1", "2", "3"):
        kept.add(kept.digest("ldap", "alice", password), "alice", "1")
    assert [kept.find(kept.digest("ldap", "alice", password)) for password in ("1", "2", "3")] == [
        None,
        ("alice", "1"),
        ("alice", "1"),
    ]


def test_who_wants_no_refusal_remembered_gets_none(directory: Directory, now: list[float]) -> None:
    """`failure = 0` in `[cache]`."""
    backend = CachedBackend("ldap", directory, CacheOptions(60, 0))
    for _ in range(3):
        refused(backend)
    assert len(directory.tried) == 3
