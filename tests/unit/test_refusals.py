"""Passwords that are not tried again, as the core remembers them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from tokenissuer.accounts import refusals
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.errors import BackendUnavailable, InvalidCredentials


@dataclass
class Shared:
    """A store for several processes, in memory."""

    kept: dict[bytes, float] = field(default_factory=dict)
    is_down: bool = False

    def add_refusal(self, digest: bytes, until: float) -> None:
        """Keep one."""
        if self.is_down:
            raise BackendUnavailable("down")
        self.kept[digest] = until

    def has_refusal(self, digest: bytes) -> bool:
        """Find it again."""
        if self.is_down:
            raise BackendUnavailable("down")
        return self.kept.get(digest, 0) > time.time()


ALICE = Account("alice", password_version="1")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    moment = [1000.0]
    monkeypatch.setattr("time.time", lambda: moment[0])
    return moment


def test_a_password_stays_wrong_until_the_accounts_changes(now: list[float]) -> None:
    """Of this account, and no other password is."""
    kept = Refusals("ldap", b"key")
    kept.add(ALICE, "stale")
    assert kept.holds(ALICE, "stale")
    assert not kept.holds(ALICE, "other")
    assert not kept.holds(Account("bob", password_version="1"), "stale")
    assert not kept.holds(Account("alice", password_version="2"), "stale")
    now[0] += refusals.MAX_SECONDS - 1
    assert kept.holds(ALICE, "stale")
    now[0] += 2
    assert not kept.holds(ALICE, "stale")


def test_an_account_that_shows_no_change_is_not_remembered() -> None:
    """Its password may be right by now."""
    kept = Refusals("ldap", b"key")
    kept.add(Account("alice"), "stale")
    assert not kept.holds(Account("alice"), "stale")


def test_no_text_passes_for_another() -> None:
    """Account, version and password have their own places."""
    kept = Refusals("ldap", b"key")
    kept.add(Account("a", password_version="bc"), "d")
    assert not kept.holds(Account("ab", password_version="c"), "d")
    assert not kept.holds(Account("a", password_version="b"), "cd")


def test_processes_share_it_through_the_store(now: list[float]) -> None:
    """But not with another backend's name, and not without the same key."""
    store = Shared()
    Refusals("ldap", b"key", store).add(ALICE, "stale")
    assert Refusals("ldap", b"key", store).holds(ALICE, "stale")
    assert not Refusals("other", b"key", store).holds(ALICE, "stale")
    assert not Refusals("ldap", b"another", store).holds(ALICE, "stale")
    now[0] += refusals.MAX_SECONDS + 1
    assert not Refusals("ldap", b"key", store).holds(ALICE, "stale")


def test_without_the_store_a_process_remembers_by_itself() -> None:
    """And no login fails."""
    kept = Refusals("ldap", b"key", Shared(is_down=True))
    kept.add(ALICE, "stale")
    assert kept.holds(ALICE, "stale")
    assert not kept.holds(ALICE, "other")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    monkeypatch.setattr(refusals, "MAX_REFUSALS", 2)
    kept = Refusals("ldap", b"key")
    for password in ("1", "2", "3"):
        kept.add(ALICE, password)
    assert [kept.holds(ALICE, password) for password in ("1", "2", "3")] == [False, True, True]


class Source(Backend):
    """Knows nobody."""

    def authenticate(self, username: str, password: str) -> Account:
        """Refuse."""
        raise InvalidCredentials


def test_who_wants_no_refusal_remembered_gets_none() -> None:
    """`failure = 0` in `[cache]`."""
    backend = Source(None)
    CachedBackend("ldap", backend)
    assert backend.refusals is not None
    CachedBackend("ldap", backend, CacheOptions(60, 0))
    assert backend.refusals is None
