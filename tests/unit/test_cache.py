"""What is remembered of a login, for how long, and who waits for whom."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import pytest

from tokenissuer.accounts import cache, limit
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.limit import Limit, Threads
from tokenissuer.errors import BackendUnavailable, InternalError, InvalidCredentials, QuotaExceeded, UnknownAccount


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time under control."""
    return Clock(monkeypatch)


class Counting(Backend):
    """A backend that counts how often it is asked, and answers as it is told."""

    def __init__(self, answer: Callable[[str, str], Account] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer = answer or self.decide
        self.lock = threading.Lock()

    def authenticate(self, username: str, password: str) -> Account:
        """Everybody's password is `right`, and nobody is called `unknown`."""
        with self.lock:
            self.asked.append((username, password))
        return self.answer(username, password)

    def decide(self, username: str, password: str) -> Account:
        """Yes or no."""
        if username == "unknown":
            raise UnknownAccount(reason="no such name")
        if password != "right":
            raise InvalidCredentials("use a token", reason="the password is wrong")
        return Account(username.lower(), frozenset({"team"}))


def cached(backend: Backend, success: int = 60, failure: int = 60, places: int = 8) -> CachedBackend:
    """A cached backend with the usual settings."""
    return CachedBackend("tested", backend, CacheOptions(success, failure), places=places)


def refused(memory: CachedBackend, username: str, password: str) -> InvalidCredentials:
    """The refusal that a login meets."""
    with pytest.raises(InvalidCredentials) as caught:
        memory.authenticate(username, password)
    return caught.value


def test_a_right_password_is_asked_for_once_a_minute(clock: Clock) -> None:
    """Not a second longer."""
    backend = Counting()
    memory = cached(backend)
    first = memory.authenticate("Alice", "right")
    clock.now += 59.9
    assert memory.authenticate("Alice", "right") == first
    assert len(backend.asked) == 1
    clock.now += 0.2
    memory.authenticate("Alice", "right")
    assert len(backend.asked) == 2


def test_a_refusal_is_remembered_with_its_kind_and_sentence(clock: Clock) -> None:
    """The chain goes on after an unknown name, and only then; the client is told the same."""
    backend = Counting()
    memory = cached(backend, failure=30)
    for _ in range(20):
        error = refused(memory, "bob", "stale")
        assert type(error) is InvalidCredentials
        assert error.description == "use a token"
        assert type(refused(memory, "unknown", "right")) is UnknownAccount
    assert len(backend.asked) == 2
    assert "remembered" in error.reason
    clock.now += 30
    refused(memory, "bob", "stale")
    assert len(backend.asked) == 3


def test_another_password_or_name_is_another_question() -> None:
    """Neither the right password after a wrong one, nor what only looks the same when put together."""
    backend = Counting()
    memory = cached(backend)
    refused(memory, "alice", "stale")
    assert memory.authenticate("alice", "right").name == "alice"
    refused(memory, "alic", "eright")
    refused(memory, "alice", "righ")
    refused(memory, "alicer", "ight")
    refused(memory, "alice", "right ")
    assert memory.authenticate("ALICE", "right").name == "alice"
    assert len(backend.asked) == 7


def test_two_backends_share_nothing() -> None:
    """What one has said of a name and password is nothing to the other."""
    strict, kind = Counting(), Counting(lambda username, password: Account("unknown"))
    chain = Chain([CachedBackend("strict", strict), CachedBackend("kind", kind)])
    assert chain.authenticate("alice", "right").backend.name == "strict"
    assert chain.authenticate("unknown", "right").backend.name == "kind"
    with pytest.raises(InvalidCredentials):
        chain.authenticate("alice", "wrong")
    for _ in range(3):
        assert chain.authenticate("unknown", "right").backend.name == "kind"
    assert len(strict.asked) == 3
    assert len(kind.asked) == 1


def test_an_outage_is_never_remembered() -> None:
    """The next login asks again, and a right password remembered before it goes on to be good."""
    backend = Counting()
    memory = cached(backend)
    memory.authenticate("alice", "right")

    def fail(username: str, password: str) -> Account:
        raise BackendUnavailable("down", retry_after=7)

    backend.answer = fail
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            memory.authenticate("bob", "right")
    assert memory.authenticate("alice", "right").name == "alice"
    backend.answer = backend.decide
    assert memory.authenticate("bob", "right").name == "bob"
    assert len(backend.asked) == 5


def test_a_defect_is_never_remembered() -> None:
    """It is passed on as it is."""
    backend = Counting()
    memory = cached(backend)

    def fail(username: str, password: str) -> Account:
        raise ZeroDivisionError

    backend.answer = fail
    with pytest.raises(ZeroDivisionError):
        memory.authenticate("alice", "right")
    backend.answer = backend.decide
    assert memory.authenticate("alice", "right").name == "alice"


def test_nothing_is_remembered_for_zero_seconds(clock: Clock) -> None:
    """Neither a right password nor a refusal."""
    backend = Counting()
    memory = cached(backend, 0, 0)
    for _ in range(2):
        memory.authenticate("alice", "right")
        refused(memory, "alice", "wrong")
    assert len(backend.asked) == 4


def test_an_account_is_remembered_for_half_of_the_time_that_its_backend_vouches_for_it(clock: Clock) -> None:
    """A token for it must still be valid for a while."""
    backend = Counting(lambda username, password: Account(username, valid_until=time.time() + 40))
    memory = cached(backend)
    memory.authenticate("alice", "right")
    clock.now += 19
    memory.authenticate("alice", "right")
    assert len(backend.asked) == 1
    clock.now += 2
    memory.authenticate("alice", "right")
    assert len(backend.asked) == 2


def test_the_time_counts_from_the_question_and_not_from_the_answer(clock: Clock) -> None:
    """A slow answer is old when it comes."""

    def slow(username: str, password: str) -> Account:
        clock.now += 10
        return Account(username)

    backend = Counting(slow)
    memory = cached(backend)
    memory.authenticate("alice", "right")
    clock.now += 51
    memory.authenticate("alice", "right")
    assert len(backend.asked) == 2


def test_the_memory_is_bounded_and_wrong_passwords_push_out_no_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever floods us with wrong passwords fills nothing but their own place."""
    monkeypatch.setattr(cache, "MAX_ANSWERS", 10)
    backend = Counting()
    memory = cached(backend)
    memory.authenticate("alice", "right")
    for number in range(1000):
        refused(memory, "mallory", f"guess-{number}")
    asked = len(backend.asked)
    memory.authenticate("alice", "right")
    assert len(backend.asked) == asked
    assert len(memory._logins._refusals) == 10
    assert not memory._logins._calls


def test_no_password_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the memory, nor in a log, nor in a repeated error."""
    caplog.set_level(logging.DEBUG)
    memory = cached(Counting())
    memory.authenticate("alice", "right")
    errors = [refused(memory, "alice", "planted-secret") for _ in range(2)]
    seen: set[int] = set()
    text = "".join(map(str, walk(memory._logins, seen)))
    text += "".join(traceback.format_exception(errors[-1])) + caplog.text + repr(vars(memory))
    assert "planted-secret" not in text
    digest = memory._digest("alice", "right")
    assert digest not in (cached(Counting())._digest("alice", "right"), b"")


def walk(value: Any, seen: set[int]) -> Iterator[object]:
    """Everything that can be reached."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from walk(item, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk(key, seen)
            yield from walk(item, seen)
    elif isinstance(value, (str, bytes, int, float)):
        yield value
    else:
        names = [*(getattr(value, "__slots__", None) or ()), *getattr(value, "__dict__", {})]
        for name in names:
            yield from walk(getattr(value, name, None), seen)


def test_forty_stale_logins_at_once_ask_once() -> None:
    """This is a push of many layers with an outdated password."""
    backend = Counting()

    def slow(username: str, password: str) -> Account:
        time.sleep(0.1)
        return backend.decide(username, password)

    backend.answer = slow
    memory = cached(backend, places=8)
    with ThreadPoolExecutor(40) as threads:
        errors = list(threads.map(lambda _: refused(memory, "bob", "stale"), range(40)))
    assert len(backend.asked) == 1
    assert len(set(map(id, errors))) == 40
    with ThreadPoolExecutor(40) as threads:
        accounts = list(threads.map(lambda _: memory.authenticate("bob", "right"), range(200)))
    assert {account.name for account in accounts} == {"bob"}
    assert len(backend.asked) == 2
    assert not memory._logins._calls


def test_an_outage_is_told_to_everybody_who_waits_for_the_same_answer() -> None:
    """Without each of them asking anew, and a defect likewise."""
    barrier = threading.Barrier(5)

    def fail(username: str, password: str) -> Account:
        time.sleep(0.2)
        if username == "defect":
            raise ZeroDivisionError
        raise BackendUnavailable("down", retry_after=7)

    def log_in(username: str) -> BaseException:
        barrier.wait()
        with pytest.raises((BackendUnavailable, InternalError, ZeroDivisionError)) as caught:
            memory.authenticate(username, "right")
        return caught.value

    for username in ("alice", "defect"):
        backend = Counting(fail)
        memory = cached(backend, places=5)
        with ThreadPoolExecutor(5) as threads:
            errors = list(threads.map(log_in, [username] * 5))
        assert len(backend.asked) == 1
        if username == "alice":
            assert {(type(error), error.retry_after) for error in errors} == {(BackendUnavailable, 7)}  # type: ignore[attr-defined]
        else:
            assert sorted(type(error).__name__ for error in errors) == ["InternalError"] * 4 + ["ZeroDivisionError"]


def test_a_backend_that_hangs_turns_away_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first call that times out. Remembered logins and other backends are served at once all the time."""
    monkeypatch.setattr(limit, "SLOW", 0.1)
    is_over, has_timed_out = threading.Event(), threading.Event()
    hanging = Counting()
    memory, other = cached(hanging, places=2), cached(Counting(), places=2)
    memory.authenticate("alice", "right")

    def hang(username: str, password: str) -> Account:
        (has_timed_out if username == "first" else is_over).wait(30)
        raise BackendUnavailable("no answer in time")

    hanging.answer = hang
    with ThreadPoolExecutor(11) as threads:
        logins = [threads.submit(memory.authenticate, name, "right") for name in ("first", *map(str, range(8)))]
        started = time.monotonic()
        assert memory.authenticate("alice", "right").name == "alice"
        assert other.authenticate("bob", "right").name == "bob"
        assert time.monotonic() - started < 1
        time.sleep(0.15)
        assert not any(login.done() for login in logins)
        has_timed_out.set()
        wait(logins, timeout=0.4)
        # One is the other call that hangs, and one finds out whether it answers again; nobody waits.
        assert sum(not login.done() for login in logins) == 2
        for question in (memory.authenticate, memory.lookup):
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="it does not answer"):
                question("late", "right")
            assert time.monotonic() - started < 1
        is_over.set()
    for login in logins:
        assert isinstance(login.exception(), BackendUnavailable)
    hanging.answer = hanging.decide
    assert memory.authenticate("late", "right").name == "late"
    assert memory.authenticate("later", "right").name == "later"


def test_a_place_is_waited_for_as_long_as_a_client_waits() -> None:
    """Then it is an outage, and nothing says that the backend hangs."""
    one = Limit(1)
    with one.place(), pytest.raises(BackendUnavailable, match="too many calls"), one.place(0.1):
        pass
    with one.place():
        pass


def test_a_call_that_fails_at_once_keeps_nobody_waiting() -> None:
    """One user's rate limit at the source must not turn others away."""
    one = Limit(2)
    for _ in range(2):
        with one.place(), pytest.raises(BackendUnavailable, match="down"), one.place():
            raise BackendUnavailable("down")


def test_some_threads_are_left_for_who_needs_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait for it: once none has had an answer for a while, the next is turned away at once."""
    monkeypatch.setattr(limit, "SLOW", 0.1)
    is_over = threading.Event()
    hanging = Counting(lambda username, password: Account(username) if is_over.wait(10) else Account(""))
    memory = CachedBackend("test", hanging, threads=Threads(8), places=2)
    with ThreadPoolExecutor(8) as threads:
        logins = [threads.submit(memory.authenticate, str(number), "right") for number in range(7)]
        time.sleep(0.2)
        logins.append(threads.submit(memory.authenticate, "late", "right"))
        done, _ = wait(logins, timeout=5, return_when=FIRST_COMPLETED)
        assert [getattr(login.exception(), "reason", "") for login in done] == [
            "too many requests wait for account sources"
        ]
        is_over.set()
    assert sum(login.exception() is None for login in logins) == 7


def test_the_last_threads_wait_only_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask at the same moment, one thread is soon free again."""
    monkeypatch.setattr(limit, "SLOW", 0.1)
    is_over = threading.Event()
    hanging = Counting(lambda username, password: Account(username) if is_over.wait(10) else Account(""))
    memory = CachedBackend("test", hanging, threads=Threads(4))
    with ThreadPoolExecutor(4) as threads:
        logins = [threads.submit(memory.authenticate, str(number), "right") for number in range(4)]
        done, waiting = wait(logins, timeout=2, return_when=FIRST_COMPLETED)
        assert [getattr(login.exception(), "reason", "") for login in done] == [
            "too many calls are under way (waited 0 s)"
        ]
        assert len(waiting) == 3
        assert len(hanging.asked) == 2
        is_over.set()


def test_a_burst_on_few_threads_is_served_while_the_backend_answers() -> None:
    """Nobody is turned away because others are being served."""

    def slow(username: str, password: str) -> Account:
        time.sleep(0.01)
        return Account(username)

    memory = CachedBackend("test", Counting(slow), threads=Threads(4), places=2)
    with ThreadPoolExecutor(4) as threads:
        names = [str(number) for number in range(40)]
        found = list(threads.map(lambda name: memory.authenticate(name, "right").name, names))
    assert found == names


def test_a_place_that_becomes_free_is_taken_by_who_waits_for_it() -> None:
    """A burst is served in turn while the backend answers."""
    one = Limit(2)
    inside: list[int] = []
    most = []

    def enter(number: int) -> None:
        with one.place():
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.005)
            inside.remove(number)

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(enter, range(40)))
    assert len(most) == 40
    assert max(most) == 2


def test_who_waits_for_an_identical_question_holds_no_place() -> None:
    """Five requests of one docker push leave room for another user."""
    backend = Counting()
    is_over = threading.Event()

    def slow(username: str, password: str) -> Account:
        if username == "alice":
            is_over.wait(10)
        return Account(username)

    backend.answer = slow
    memory = cached(backend, places=2)
    with ThreadPoolExecutor(5) as threads:
        pushes = [threads.submit(memory.authenticate, "alice", "right") for _ in range(5)]
        assert memory.authenticate("bob", "right").name == "bob"
        is_over.set()
        assert {push.result().name for push in pushes} == {"alice"}
    assert sorted(backend.asked) == [("alice", "right"), ("bob", "right")]


def test_a_limit_on_questions_is_no_sign_that_a_backend_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the question has taken before."""
    monkeypatch.setattr(limit, "SLOW", 0.0)
    for error, hangs in ((QuotaExceeded("enough"), False), (BackendUnavailable("no answer"), True)):
        places = limit.Limit(1)
        with pytest.raises(BackendUnavailable), places.place():
            raise error
        assert places._hangs is hangs
