"""No answer tells by its time which names there are."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tokenissuer.backend import Account, Backend, Chain, Source
from tokenissuer.errors import InvalidCredentials, UnknownAccount
from tokenissuer.memory import Memory


class Clock:
    """Time that passes only when somebody takes it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited = 0.0

    def take(self, seconds: float) -> None:
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds


class Slow(Backend):
    """Takes one time to look for a name and another to refuse a password."""

    Options = object

    def __init__(self, clock: Clock, name: str, unknown: float, refused: float, is_even: bool = False) -> None:
        self.clock, self.name, self.times, self.is_even = clock, name, (unknown, refused), is_even
        self.asked = 0

    def authenticate(self, username: str, password: str) -> Account:
        self.asked += 1
        if username != self.name:
            self.clock.take(self.times[0])
            raise UnknownAccount
        if password == "right":
            return Account(username)
        self.clock.take(self.times[1])
        raise InvalidCredentials


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of the real one."""
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


@pytest.fixture
def took(clock: Clock) -> Callable[[Chain, str, str], float]:
    """How long a refused login took."""

    def measured(chain: Chain, name: str, password: str = "wrong") -> float:
        begun = clock.now
        with pytest.raises(InvalidCredentials):
            chain.authenticate(name, password)
        return round(clock.now - begun, 6)

    return measured


def test_an_unknown_name_takes_as_long_as_a_wrong_password(clock: Clock, took: Callable[..., float]) -> None:
    """In a directory, which needs two questions for one of them."""
    chain = Chain([Source("ldap", Slow(clock, "alice", 0.01, 0.05))])
    assert took(chain, "alice") == took(chain, "nobody") == took(chain, "alice") == 0.05


def test_every_place_in_the_chain_takes_as_long(clock: Clock, took: Callable[..., float]) -> None:
    """Whichever source knows the name, and if none does."""
    chain = Chain(
        [
            Source("file", Slow(clock, "alice", 0.2, 0.2, is_even=True)),
            Source("ldap", Slow(clock, "bob", 0.01, 0.05)),
            Source("gitlab", Slow(clock, "carol", 0.02, 0.03)),
        ]
    )
    for name in ("alice", "bob", "carol"):
        took(chain, name)
    assert {took(chain, name) for name in ("alice", "bob", "carol", "nobody")} == {0.28}


def test_a_right_password_waits_for_nothing(clock: Clock, took: Callable[..., float]) -> None:
    """It has nothing to hide."""
    chain = Chain([Source("a", Slow(clock, "alice", 0.5, 1)), Source("b", Slow(clock, "bob", 0.5, 1))])
    took(chain, "bob")
    clock.waited = 0
    assert chain.authenticate("alice", "right").account.name == "alice"
    assert clock.waited == 0


def test_what_is_remembered_is_answered_at_once(clock: Clock, took: Callable[..., float]) -> None:
    """Known or not."""
    slow = Slow(clock, "alice", 0.01, 0.05)
    other = Slow(clock, "bob", 0.02, 0.04)
    chain = Chain([Source("a", Memory(slow, 60, 60, 4)), Source("b", Memory(other, 60, 60, 4))])
    assert chain.sources[0].backend.is_even is False
    for name in ("alice", "bob", "nobody"):
        took(chain, name)
    asked = slow.asked
    assert [took(chain, name) for name in ("alice", "bob", "nobody")] == [0, 0, 0]
    assert slow.asked == asked


def test_what_is_refused_without_asking_sets_no_pace(clock: Clock, took: Callable[..., float]) -> None:
    """Or anybody could set it, with names that are too long."""
    slow = Slow(clock, "alice", 0.01, 0.05)
    chain = Chain([Source("ldap", slow)])
    took(chain, "nobody")
    took(chain, "alice")
    slow.times = (0.01, 0.0)
    for _ in range(200):
        took(chain, "alice")
    assert took(chain, "nobody") == 0.05


def test_nobody_waits_for_ever(clock: Clock, took: Callable[..., float]) -> None:
    """However slow a source was."""
    chain = Chain([Source("ldap", Slow(clock, "alice", 0.01, 30))])
    took(chain, "alice")
    assert took(chain, "nobody") == 2.01
