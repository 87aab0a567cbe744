"""What GitLab's backend says of a password that cannot be a guess."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from tests.support.gitlab import asking, serving
from tests.support.machine import wait_until
from tokenissuer.accounts import throttle as throttle_module
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions
from tokenissuer.errors import InvalidCredentials, TooManyAttempts
from tokenissuer.options import Secret


def throttle(account: int = 3, address: int = 9, redis: str = "") -> Throttle:
    options = ThrottleOptions(account, address, 60, Secret(redis) if redis else None)
    return Throttle(options, b"k" * 32)


@pytest.mark.parametrize(
    ("name", "password", "guessable"),
    [
        ("gitlab-ci-token", "glcbt-64_" + "x" * 20, False),
        ("gitlab-ci-token", "x" * 20, False),
        ("alice", "glpat-" + "x" * 20, False),
        ("alice", "glpat-short", True),
        ("gitlab-ci-token", "short", True),
        ("alice", "a-long-password-that-is-remembered", True),
        ("alice", "glorious.password." + "x" * 20, True),
        ("alice", "Glpat-" + "x" * 20, True),
    ],
)
def test_gitlab_knows_its_tokens(name: str, password: str, guessable: bool) -> None:
    """By their prefixes, and those of jobs by the name, which older versions gave no prefix."""
    with serving() as gitlab, asking(gitlab) as backend:
        with pytest.raises(InvalidCredentials) as caught:
            backend.authenticate(name, password)
        assert caught.value.is_guess is guessable


def test_wrong_tokens_from_one_address_stay_below_the_ban_of_gitlab() -> None:
    """GitLab would refuse everybody for an hour."""
    with serving() as gitlab, asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        alice = gitlab.user("alice", password="right")
        good = gitlab.token(alice, "read_registry")
        chain = Chain([CachedBackend("gitlab", backend, CacheOptions(0, 0))])
        limit = throttle(account=100, address=1000)

        def login(name: str, password: str, address: str = "192.0.2.1") -> str:
            try:
                limit.run(name, password, ip_address(address), lambda turn: chain.authenticate(name, password, turn))
            except (InvalidCredentials, TooManyAttempts) as error:
                return type(error).__name__
            return "in"

        assert login("alice", good) == "in"
        before = gitlab.asked("/jwt/auth")
        answers = [login(f"user{number}", f"glpat-{number:020d}") for number in range(40)]
        assert answers == ["InvalidCredentials"] * 9 + ["TooManyAttempts"] * 31
        assert gitlab.asked("/jwt/auth") - before == 9
        # Nobody from there: GitLab would refuse everybody. Every other address goes on.
        assert login("alice", "right") == "TooManyAttempts"
        assert login("bob", "glpat-" + "x" * 20, "192.0.2.2") == "InvalidCredentials"


def test_neither_twice_at_once_nor_many_networks_get_past_the_limit() -> None:
    """Equal requests share one question, and a customer has many networks of IPv6."""
    with serving() as gitlab, asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        chain = Chain([CachedBackend("gitlab", backend)])
        limit = throttle(account=100, address=1000)

        def login(number: int, address: str) -> None:
            name, password = f"user{number}", f"glpat-{number:020d}"
            with contextlib.suppress(InvalidCredentials, TooManyAttempts):
                limit.run(name, password, ip_address(address), lambda turn: chain.authenticate(name, password, turn))

        for number in range(20):
            threads = [threading.Thread(target=login, args=(number, "192.0.2.1")) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        # Twice at once may count twice, and never less.
        assert 4 <= gitlab.asked("/jwt/auth") <= 9
        before = gitlab.asked("/jwt/auth")
        for number in range(40):
            login(100 + number, f"2001:db8:1:{number:x}::1")
        assert gitlab.asked("/jwt/auth") - before == 9


def test_a_burst_of_wrong_logins_stays_below_the_limit_too() -> None:
    """None has been counted when the last one begins. Right logins at the same time only wait a moment."""
    with serving() as gitlab, asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        people = [f"user{number}" for number in range(20)]
        tokens = {name: gitlab.token(gitlab.user(name), "read_registry") for name in people}
        chain = Chain([CachedBackend("gitlab", backend)])
        limit = throttle(account=100, address=1000)

        def login(name: str, password: str, address: str) -> str:
            try:
                limit.run(name, password, ip_address(address), lambda turn: chain.authenticate(name, password, turn))
            except (InvalidCredentials, TooManyAttempts) as error:
                return type(error).__name__
            return "in"

        with ThreadPoolExecutor(60) as threads:
            answers = [threads.submit(login, name, tokens[name], "192.0.2.2") for name in people]
            assert {answer.result() for answer in answers} == {"in"}
            before = gitlab.asked("/jwt/auth")
            wrong = [threads.submit(login, "alice", f"glpat-{number:020d}", "192.0.2.1") for number in range(60)]
            counts = Counter(answer.result() for answer in wrong)
        assert counts == {"InvalidCredentials": 9, "TooManyAttempts": 51}
        assert gitlab.asked("/jwt/auth") - before == 9
        assert limit._trying == limit._at_source == {}


def test_a_remembered_refusal_does_not_count_again() -> None:
    """A push of twenty layers with one stale token is one wrong login for GitLab."""
    with serving() as gitlab, asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        good = gitlab.token(gitlab.user("bob"), "read_registry")
        chain = Chain([CachedBackend("gitlab", backend)])
        limit = throttle(account=100, address=1000)

        def login(name: str, password: str) -> None:
            limit.run(name, password, ip_address("192.0.2.1"), lambda turn: chain.authenticate(name, password, turn))

        with ThreadPoolExecutor(5) as threads:
            layers = [threads.submit(login, "alice", "glpat-" + "x" * 20) for _ in range(20)]
            assert {type(layer.exception()) for layer in layers} == {InvalidCredentials}
        login("bob", good)


class Hangs(Backend):
    """Its source answers when the test lets it."""

    bans_servers = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.goes_on = threading.Event()

    def authenticate(self, username: str, password: str) -> Account:
        self.asked.append(username)
        self.goes_on.wait(20)
        return Account(username)


def test_a_login_that_waits_too_long_for_its_turn_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """GitLab hangs. Whoever is remembered or comes from elsewhere does not wait."""
    monkeypatch.setattr(throttle_module, "_TURN_WAIT", 0.5)
    limit, backend = throttle(account=100, address=1000), Hangs()
    chain = Chain([CachedBackend("gitlab", backend, places=40)])

    def login(name: str, at: str = "192.0.2.1") -> str:
        return limit.run(name, "x", ip_address(at), lambda turn: chain.authenticate(name, "x", turn)).account.name

    backend.goes_on.set()
    assert login("known") == "known"
    backend.goes_on.clear()
    with ThreadPoolExecutor(40) as threads:
        for number in range(9):
            threads.submit(login, f"user{number}")
        assert wait_until(lambda: len(backend.asked) == 1 + 9)
        late = [threads.submit(login, f"late{number}") for number in range(20)]
        assert login("known") == "known"
        other = threads.submit(login, "other", "192.0.2.2")
        assert wait_until(lambda: "other" in backend.asked)
        limits = [error.limit for each in late if isinstance(error := each.exception(), TooManyAttempts)]
        assert limits == ["turn"] * 20
        backend.goes_on.set()
        assert other.result() == "other"
    assert limit._trying == limit._at_source == {}


def test_jobs_do_not_count_for_the_ban_of_gitlab() -> None:
    """GitLab does not count them either, and a runner may start many with expired tokens."""
    with serving() as gitlab, asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        chain = Chain([CachedBackend("gitlab", backend, CacheOptions(0, 0))])
        limit = throttle(account=100, address=1000)
        for number in range(20):
            token = f"glcbt-64_{number:020d}"
            with pytest.raises(InvalidCredentials):
                limit.run(
                    "gitlab-ci-token",
                    token,
                    ip_address("192.0.2.1"),
                    lambda turn, token=token: chain.authenticate("gitlab-ci-token", token, turn),  # type: ignore[misc]
                )
