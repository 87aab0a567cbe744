"""Guessing is slowed down, and nobody else is."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from limits.storage import MemoryStorage

from tests.support.accounts import logged_in
from tokenissuer.accounts.cache import Turn
from tokenissuer.accounts.chain import Login
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions, _open_redis
from tokenissuer.config import load_config
from tokenissuer.errors import BackendUnavailable, ConfigurationError, InvalidCredentials, TooManyAttempts
from tokenissuer.options import Secret

HOME = "192.0.2.1"
ELSEWHERE = "198.51.100.7"
RIGHT = {"alice": "alice-right", "bob": "bob-right"}


class World:
    """Accounts behind a throttle of 3 tries for an account and 9 for an address, in 60 seconds."""

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self.asked: list[str] = []

    def login(self, name: str, password: str, address: str | None = HOME) -> int:
        """Log in; the HTTP status."""
        try:
            self.throttle.run(
                name, password, ipaddress.ip_address(address) if address else None, lambda _: self.ask(name, password)
            )
        except (InvalidCredentials, TooManyAttempts) as error:
            return error.status
        return 200

    def ask(self, name: str, password: str) -> Login:
        """Be the backends."""
        self.asked.append(password)
        if RIGHT.get(name.strip().lower()) != password:
            raise InvalidCredentials
        return logged_in(name.strip().lower())

    def guess(self, name: str, count: int, address: str | None = HOME) -> list[int]:
        """Log in with so many different wrong passwords."""
        return [self.login(name, f"wrong-{time.perf_counter_ns()}", address) for _ in range(count)]

    def use_up(self, address: str = HOME) -> None:
        """Use up all that an address may try, on names nobody has."""
        for name in ("nobody-1", "nobody-2", "nobody-3"):
            self.guess(name, 3, address)


def throttle(account: int = 3, address: int = 9, redis: str = "") -> Throttle:
    options = ThrottleOptions(account, address, 60, Secret(redis) if redis else None)
    return Throttle(options, b"k" * 32)


def never(turn: Turn) -> Login:
    """What must not be asked."""
    raise AssertionError


def raising(error: Exception) -> Callable[[Turn], Login]:
    """A login that ends like this."""

    def login(turn: Turn) -> Login:
        raise error

    return login


@pytest.fixture
def world() -> World:
    """Nobody has tried anything yet."""
    return World(throttle())


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass."""
    now = time.time
    passed = [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + passed[0])

    def wait(seconds: float) -> None:
        passed[0] += seconds

    return wait


def test_different_wrong_passwords_are_refused_after_a_few(world: World) -> None:
    """And the source is not asked any more."""
    assert world.guess("alice", 5) == [401, 401, 401, 429, 429]
    assert len(world.asked) == 3


def test_the_answer_is_the_same_for_the_right_password(world: World) -> None:
    """It would be one more try else; the error names whole seconds to wait, and nothing of account or password."""
    world.guess("alice", 3)
    answers = set()
    for password in (RIGHT["alice"], "wrong"):
        with pytest.raises(TooManyAttempts) as caught:
            world.throttle.run("alice", password, _address(), never)
        answers.add((caught.value.description, caught.value.reason))
        assert 1 <= caught.value.retry_after <= 60
    assert len(answers) == 1
    assert "alice" not in str(answers)


def _address() -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(HOME)


def test_the_same_wrong_password_counts_once(world: World) -> None:
    """containerd sends it twice, oras-py five times per call, and a pipeline with a stale one all day."""
    assert [world.login("alice", "stale") for _ in range(50)] == [401] * 50
    assert world.guess("alice", 3) == [401, 401, 429]


def test_right_passwords_never_count(world: World) -> None:
    """Nor do they give tries back, or a colleague's login would let somebody go on guessing."""
    assert [world.login("alice", RIGHT["alice"]) for _ in range(50)] == [200] * 50
    assert world.guess("alice", 2) == [401, 401]
    assert world.login("alice", RIGHT["alice"]) == 200
    assert world.guess("alice", 2) == [401, 429]


def test_nobody_is_locked_out_from_another_address(world: World) -> None:
    """Nor by many sources together."""
    for host in range(1, 60):
        world.guess("alice", 5, f"203.0.113.{host}")
    assert world.login("alice", RIGHT["alice"]) == 200
    assert world.login("alice", RIGHT["alice"], "2001:db8::1") == 200


def test_one_persons_mistakes_do_not_cut_off_an_office(world: World) -> None:
    """However often and however different."""
    world.guess("alice", 100)
    assert world.login("bob", RIGHT["bob"]) == 200
    assert world.login("bob", "mistyped") == 401


def test_many_accounts_from_one_source_are_refused(world: World) -> None:
    """One password for each of many names is guessing, too."""
    answers = [world.login(f"name-{number}", "Summer2026!") for number in range(20)]
    assert answers == [401] * 9 + [429] * 11
    assert world.login("name-99", "Summer2026!", ELSEWHERE) == 401


def test_a_neighbour_who_has_logged_in_still_gets_in(world: World) -> None:
    """The source's tries are used up, by somebody else."""
    assert world.login("alice", RIGHT["alice"]) == 200
    world.use_up()
    assert world.login("bob", RIGHT["bob"]) == 429
    assert world.login("alice", RIGHT["alice"]) == 200


def test_the_neighbours_password_can_be_guessed_no_more_often_then(world: World) -> None:
    """An account that has logged in from the address is held to its own limit, and to no other."""
    world.login("alice", RIGHT["alice"])
    world.use_up()
    assert world.guess("nobody", 3) == [429, 429, 429]
    assert world.guess("alice", 5) == [401, 401, 401, 429, 429]
    assert world.login("alice", RIGHT["alice"]) == 429
    assert world.login("alice", RIGHT["alice"], ELSEWHERE) == 200


def test_made_up_names_take_no_room_when_a_source_is_refused(world: World) -> None:
    """Nothing is counted for them any more."""
    world.use_up()
    memory = world.throttle._memory
    before = len(memory._kept)
    for number in range(100):
        world.login(f"made-up-{number}", f"x{number}")
    assert len(memory._kept) == before


def test_time_gives_tries_back_one_by_one(world: World, later: Callable[[float], None]) -> None:
    """The oldest first."""
    world.guess("alice", 2)
    later(30)
    world.guess("alice", 1)
    assert world.login("alice", RIGHT["alice"]) == 429
    later(31)
    assert world.guess("alice", 3) == [401, 401, 429]
    later(61)
    assert world.login("alice", RIGHT["alice"]) == 200


def test_the_wait_it_names_is_long_enough_and_no_longer(world: World, later: Callable[[float], None]) -> None:
    """Clients that honour Retry-After come back when it has a point."""
    world.guess("alice", 3)
    later(20)
    with pytest.raises(TooManyAttempts) as caught:
        world.throttle.run("alice", "x", _address(), never)
    assert 39 <= caught.value.retry_after <= 41
    later(caught.value.retry_after + 1)
    assert world.login("alice", RIGHT["alice"]) == 200


@pytest.mark.parametrize(
    "spelling", ["ALICE", "Alice", "alice ", " a l i c e", "\N{FULLWIDTH LATIN SMALL LETTER A}lice"]
)
def test_spellings_of_a_name_share_its_tries(world: World, spelling: str) -> None:
    """A directory takes them for one account."""
    world.guess("alice", 3)
    assert world.login(spelling, RIGHT["alice"]) == 429


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", None, False),
    ],
)
def test_a_source_is_an_address_or_a_64(world: World, one: str, other: str | None, shared: bool) -> None:
    """A customer has a whole /64 of IPv6."""
    world.guess("alice", 3, one)
    assert world.login("alice", RIGHT["alice"], other) == (429 if shared else 200)


def test_a_customer_with_many_networks_of_ipv6_has_not_as_many_tries(world: World) -> None:
    """Two hundred /64s of one /48 are not two hundred attackers; another /48 is somebody else."""
    answers = [world.guess("alice", 1, f"2001:db8:1:{number:x}::1")[0] for number in range(200)]
    # Four times the limit of the account.
    assert answers.count(401) == 12
    assert world.login("alice", RIGHT["alice"], "2001:db8:1:ffff::1") == 429
    assert world.login("alice", RIGHT["alice"], "2001:db8:2:1::1") == 200


def test_connections_without_an_address_are_one_source(world: World) -> None:
    """They cannot be told apart."""
    assert world.guess("alice", 4, None) == [401, 401, 401, 429]


def test_what_is_no_guess_counts_for_the_address_alone(world: World) -> None:
    """All jobs of a runner use one name, each with its own token, and some have expired; but each is asked about."""
    error = InvalidCredentials(is_guess=False)
    for number in range(8):
        with pytest.raises(InvalidCredentials):
            world.throttle.run("alice", f"expired token {number}", _address(), raising(error))
    assert world.guess("alice", 1) == [401]
    with pytest.raises(TooManyAttempts):
        world.throttle.run("carol", "made up token", _address(), never)


def test_many_tokens_at_once_for_a_known_name_get_in(world: World) -> None:
    """A runner starts many jobs, each with its own token."""
    login, address = world.throttle.run, _address()

    def nested(number: int) -> Login:
        if number == 4 * 3:
            return logged_in("alice")
        return login("gitlab-ci-token", f"token {number}", address, lambda _: nested(number + 1))

    with pytest.raises(TooManyAttempts):
        nested(0)
    login("gitlab-ci-token", "token", address, lambda _: logged_in("alice"))
    assert nested(0).account.name == "alice"


def test_a_machine_that_types_somebodys_name_does_not_lift_the_limit(world: World) -> None:
    """With a backend that takes any name, one good token would be good for guesses at all accounts."""
    for name in ("alice", "bob"):
        world.throttle.run(name, "a job's token", _address(), lambda _: logged_in("ci:job"))
    world.use_up()
    assert world.guess("alice", 1) == world.guess("bob", 1) == [429]


def test_it_lifts_the_limit_on_many_at_once_no_further_than_for_jobs(world: World) -> None:
    """Four times as many, whoever has logged in under the name."""
    login, address = world.throttle.run, _address()
    login("alice", "a job's token", address, lambda _: logged_in("ci:job"))
    deepest = 0

    def guess(number: int) -> Login:
        nonlocal deepest
        deepest = number
        return login("alice", f"guess {number}", address, lambda _: guess(number + 1))

    with pytest.raises(TooManyAttempts):
        guess(0)
    assert deepest == 4 * 3


def test_a_login_under_another_spelling_is_the_accounts_own(world: World) -> None:
    """Directories take several."""
    assert world.login(" ALICE", RIGHT["alice"]) == 200
    world.use_up()
    assert world.login("alice", RIGHT["alice"]) == 200


def test_an_outage_does_not_count(world: World) -> None:
    """Nobody knows whether the password was wrong."""
    for number in range(20):
        with pytest.raises(BackendUnavailable):
            world.throttle.run("alice", f"p{number}", _address(), raising(BackendUnavailable()))
    assert world.login("alice", RIGHT["alice"]) == 200


def test_guesses_at_the_same_time_get_no_more_tries(world: World) -> None:
    """The answers come after all of them have begun."""
    begun = 0

    def guess(turn: Turn) -> Login:
        nonlocal begun
        begun += 1
        with contextlib.suppress(TooManyAttempts, InvalidCredentials):
            world.throttle.run("alice", f"guess {begun}", _address(), guess)
        raise InvalidCredentials

    with pytest.raises(InvalidCredentials):
        guess(nullcontext)
    # The first was outside, and the fourth inside was refused.
    assert begun == 1 + 3
    assert world.throttle._trying == {}


def test_a_push_of_many_layers_at_once_gets_in(world: World) -> None:
    """Twenty requests with one right password, while two wrong ones have been counted."""
    world.guess("alice", 2)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(world.login("alice", RIGHT["alice"]))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 20


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, passwords and addresses without end."""
    monkeypatch.setattr("tokenissuer.accounts.throttle.MAX_COUNTERS", 50)
    small = throttle()
    world = World(small)
    world.login("alice", RIGHT["alice"])
    counters = small._memory
    for number in range(2000):
        world.login(f"name-{number}", f"x{number}", str(ipaddress.ip_address(number + 2**24)))
    storage = counters._fixed.storage
    assert isinstance(storage, MemoryStorage)
    assert len(storage.storage) <= 52
    assert len(storage.events) <= 50
    assert len(storage.expirations) <= 52
    # And who has proven a password is not pushed out.
    world.use_up()
    assert world.login("alice", RIGHT["alice"]) == 200


@pytest.mark.parametrize(("account", "address", "expected"), [(0, 9, [401] * 9 + [429]), (3, 0, [401] * 3 + [429])])
def test_either_limit_may_be_off(account: int, address: int, expected: list[int]) -> None:
    """By 0."""
    assert World(throttle(account, address)).guess("alice", len(expected)) == expected


def test_without_the_accounts_limit_the_address_bounds_known_accounts_too() -> None:
    """Who shares an address with an account that has logged in could try any number of passwords."""
    world = World(throttle(0, 9))
    assert world.login("alice", RIGHT["alice"]) == 200
    assert world.guess("alice", 10) == [401] * 9 + [429]


def test_a_restart_forgets_and_a_redis_that_is_down_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once, without the URL, and counting goes on in memory."""
    world = World(throttle(redis="redis://:planted-secret@127.0.0.1:9/0"))
    started = time.monotonic()
    assert world.guess("alice", 5) == [401, 401, 401, 429, 429]
    assert world.login("bob", RIGHT["bob"]) == 200
    assert time.monotonic() - started < 5
    (record,) = caplog.records
    assert "Redis" in record.getMessage()
    assert record.__dict__["security"] == "outage"
    assert "planted" not in caplog.text
    assert World(throttle()).login("alice", RIGHT["alice"]) == 200


@pytest.mark.parametrize("bad_url", ["http://x", "redis://host:notaport/0", "memory://", "x", ""])
def test_a_url_that_is_none_is_refused(bad_url: str) -> None:
    """Without being shown: it may hold a password."""
    with pytest.raises(ConfigurationError, match="'redis'") as caught:
        _open_redis(bad_url)
    assert "host:notaport" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("account = -1", "'account' is -1"),
        ("account = 10\naddress = 5", "'address' is 5"),
        ("window = 0", "'window' is 0"),
        ('redis = "mysql://:planted@x/"', "'redis' must be a URL"),
        ("accounts = 3", "did you mean 'account'"),
    ],
)
def test_the_table_is_checked(set_up: Path, table: str, said: str) -> None:
    """One line that says what to change, without the secret."""
    path = set_up / "tokenissuer.toml"
    path.write_text(f"{path.read_text()}\n[throttle]\n{table}\n")
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_config(path)
    assert "planted" not in str(caught.value)


def test_it_is_on_by_default_and_off_by_two_zeros(set_up: Path) -> None:
    """Nobody needs to know of it to be safe."""
    config = load_config(set_up / "tokenissuer.toml")
    key = config.load_key()
    off = replace(config, throttle=ThrottleOptions(account=0, address=0))
    with closing(config.open_chain()) as chain:
        assert config._throttle(key, chain) is not None
        assert off._throttle(key, chain) is None
    assert "Secret(***)" in repr(ThrottleOptions(redis=Secret("redis://:planted@127.0.0.1")))


def test_anonymous_callers_are_slowed_down_by_what_is_not_granted(world: World) -> None:
    """Each question counts once, and granted ones do not; who logs in from there does not wait for them."""
    asked: list[str] = []

    def ask(question: str, address: str = HOME) -> frozenset[str]:
        def backends() -> frozenset[str]:
            asked.append(question)
            return frozenset({"pull"} if "public" in question else ())

        return world.throttle.ask_for_anonymous(question, ipaddress.ip_address(address), backends)

    for number in range(20):
        assert ask(f"public/{number}")
        assert not ask("the same")
    for number in range(8):
        assert not ask(f"invented/{number}")
    count = len(asked)
    for question in ("invented/8", "public/1"):
        with pytest.raises(TooManyAttempts, match="requests without a login"):
            ask(question)
    assert len(asked) == count
    assert not ask("invented/8", ELSEWHERE)
    assert world.login("alice", "alice-right") == 200
    assert world.guess("bob", 3) == [401] * 3


def test_a_question_that_cannot_be_answered_counts_too(world: World) -> None:
    """What it cost is gone: else fresh names could use up all that anonymous callers may ask."""

    def fail() -> frozenset[str]:
        raise BackendUnavailable("too many")

    address = ipaddress.ip_address(HOME)
    for number in range(9):
        with pytest.raises(BackendUnavailable):
            world.throttle.ask_for_anonymous(f"invented/{number}", address, fail)
    with pytest.raises(TooManyAttempts):
        world.throttle.ask_for_anonymous("one more", address, fail)
