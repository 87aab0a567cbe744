"""What is remembered of a login, for how long, and who waits for whom."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tokenissuer.memory
from tokenissuer.backend import Account, Backend, Chain, Source
from tokenissuer.errors import BackendUnavailable, InternalError, InvalidCredentials, UnknownAccount
from tokenissuer.memory import Memory
from tokenissuer.testing import BackendContract
from tokenissuer.turnstile import Turnstile
from tokenissuer_backends.htpasswd import HtpasswdBackend, HtpasswdOptions


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

    Options = dict

    def __init__(self, answer: Callable[[str, str], Account] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.number = 0
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

    def version(self) -> int:
        """Another number after each change."""
        return self.number


def memory_of(backend: Backend, success: int = 60, failure: int = 60, places: int = 8) -> Memory:
    """A memory with the usual settings."""
    return Memory(backend, success, failure, places)


def refused(memory: Backend, username: str, password: str) -> InvalidCredentials:
    """The refusal that a login meets."""
    with pytest.raises(InvalidCredentials) as caught:
        memory.authenticate(username, password)
    return caught.value


class TestContract(BackendContract):
    """A remembering backend is still a backend."""

    username, password = "alice", "right"

    @pytest.fixture
    def backend(self) -> Backend:
        """A memory of a small backend."""

        def decide(username: str, password: str) -> Account:
            if username != "alice":
                raise UnknownAccount
            if password != "right":
                raise InvalidCredentials
            return Account(username)

        return memory_of(Counting(decide))


def test_a_right_password_is_asked_for_once_a_minute(clock: Clock) -> None:
    """Not a second longer."""
    backend = Counting()
    memory = memory_of(backend)
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
    memory = memory_of(backend, failure=30)
    for _ in range(20):
        error = refused(memory, "bob", "stale")
        assert type(error) is InvalidCredentials
        assert error.sentence == "use a token"
        assert type(refused(memory, "unknown", "right")) is UnknownAccount
    assert len(backend.asked) == 2
    assert "remembered" in error.reason
    clock.now += 30
    refused(memory, "bob", "stale")
    assert len(backend.asked) == 3


def test_another_password_or_name_is_another_question() -> None:
    """Neither the right password after a wrong one, nor what only looks the same when put together."""
    backend = Counting()
    memory = memory_of(backend)
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
    strict, kind = Counting(), Counting(lambda username, password: Account("other"))
    chain = Chain([Source("strict", memory_of(strict)), Source("kind", memory_of(kind))])
    assert chain.authenticate("alice", "right").source.name == "strict"
    assert chain.authenticate("unknown", "right").account.name == "other"
    with pytest.raises(InvalidCredentials):
        chain.authenticate("alice", "wrong")
    for _ in range(3):
        assert chain.authenticate("unknown", "right").source.name == "kind"
    assert len(strict.asked) == 3
    assert len(kind.asked) == 1


def test_an_outage_is_never_remembered() -> None:
    """The next login asks again, and a right password remembered before it goes on to be good."""
    backend = Counting()
    memory = memory_of(backend)
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
    memory = memory_of(backend)

    def fail(username: str, password: str) -> Account:
        raise ZeroDivisionError

    backend.answer = fail
    with pytest.raises(ZeroDivisionError):
        memory.authenticate("alice", "right")
    backend.answer = backend.decide
    assert memory.authenticate("alice", "right").name == "alice"


def test_a_change_of_the_source_ends_what_was_remembered() -> None:
    """At once, for yes and for no."""
    backend = Counting()
    memory = memory_of(backend)
    memory.authenticate("alice", "right")
    refused(memory, "bob", "new")
    backend.number += 1
    memory.authenticate("alice", "right")
    refused(memory, "bob", "new")
    assert len(backend.asked) == 4


def test_a_changed_password_file_counts_at_once(tmp_path: Path) -> None:
    """The old password is refused and the new one taken, although both were asked for a moment ago."""
    path = tmp_path / "users.htpasswd"
    path.write_text("")
    backend = HtpasswdBackend(HtpasswdOptions(path))
    backend.set_password("alice", "old")
    memory = memory_of(backend)
    assert memory.authenticate("alice", "old").name == "alice"
    refused(memory, "alice", "new")
    memory.set_password("alice", "new")
    assert memory.authenticate("alice", "new").name == "alice"
    refused(memory, "alice", "old")


def test_nothing_is_remembered_where_that_is_said(clock: Clock) -> None:
    """Zero seconds, or a backend whose accounts carry secrets; its refusals may be remembered."""

    class Secretive(Counting):
        may_be_remembered = False

    forgetful, secretive = Counting(), Secretive()
    for memory in (memory_of(forgetful, 0, 0), memory_of(secretive)):
        for _ in range(2):
            memory.authenticate("alice", "right")
            refused(memory, "alice", "wrong")
    assert len(forgetful.asked) == 4
    assert secretive.asked == [("alice", "right"), ("alice", "wrong"), ("alice", "right")]


def test_an_account_is_not_remembered_longer_than_its_source_vouches_for_it() -> None:
    """Some logins end at a time of their own."""
    backend = Counting(lambda username, password: Account(username, valid_until=time.time() + 0.1))
    memory = memory_of(backend)
    memory.authenticate("alice", "right")
    memory.authenticate("alice", "right")
    assert len(backend.asked) == 1
    time.sleep(0.15)
    memory.authenticate("alice", "right")
    assert len(backend.asked) == 2


def test_the_time_counts_from_the_question_and_not_from_the_answer(clock: Clock) -> None:
    """A slow answer is old when it comes."""

    def slow(username: str, password: str) -> Account:
        clock.now += 10
        return Account(username)

    backend = Counting(slow)
    memory = memory_of(backend)
    memory.authenticate("alice", "right")
    clock.now += 51
    memory.authenticate("alice", "right")
    assert len(backend.asked) == 2


def test_the_memory_is_bounded_and_wrong_passwords_push_out_no_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever floods us with wrong passwords fills nothing but their own place."""
    monkeypatch.setattr(tokenissuer.memory, "MOST", 10)
    backend = Counting()
    memory = memory_of(backend)
    memory.authenticate("alice", "right")
    for number in range(1000):
        refused(memory, "mallory", f"guess-{number}")
    asked = len(backend.asked)
    memory.authenticate("alice", "right")
    assert len(backend.asked) == asked
    assert len(memory._refused._kept) == 10
    assert not memory._flights


def test_no_password_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the memory, nor in a log, nor in a repeated error."""
    caplog.set_level(logging.DEBUG)
    memory = memory_of(Counting())
    memory.authenticate("alice", "right")
    errors = [refused(memory, "alice", "planted-secret") for _ in range(2)]
    seen: set[int] = set()
    text = "".join(map(str, walk(memory._accepted, seen))) + "".join(map(str, walk(memory._refused, seen)))
    text += "".join(traceback.format_exception(errors[-1])) + caplog.text + repr(vars(memory))
    assert "planted-secret" not in text
    digest = memory._digest("alice", "right")
    assert digest not in (memory_of(Counting())._digest("alice", "right"), b"")


def walk(value: Any, seen: set[int]) -> Iterator[object]:
    """Everything that can be reached."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(key, seen)
            yield from walk(item, seen)
    elif isinstance(value, (str, bytes, int, float)):
        yield value
    else:
        names = [*getattr(value, "__slots__", ()), *getattr(value, "__dict__", {})]
        for name in names:
            yield from walk(getattr(value, name, None), seen)


def test_forty_stale_logins_at_once_ask_once() -> None:
    """This is a push of many layers with an outdated password."""
    backend = Counting()

    def slow(username: str, password: str) -> Account:
        time.sleep(0.1)
        return backend.decide(username, password)

    backend.answer = slow
    memory = memory_of(backend, places=8)
    with ThreadPoolExecutor(40) as threads:
        errors = list(threads.map(lambda _: refused(memory, "bob", "stale"), range(40)))
    assert len(backend.asked) == 1
    assert len(set(map(id, errors))) == 40
    with ThreadPoolExecutor(40) as threads:
        accounts = list(threads.map(lambda _: memory.authenticate("bob", "right"), range(200)))
    assert {account.name for account in accounts} == {"bob"}
    assert len(backend.asked) == 2
    assert not memory._flights


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
        memory = memory_of(backend, places=5)
        with ThreadPoolExecutor(5) as threads:
            errors = list(threads.map(log_in, [username] * 5))
        assert len(backend.asked) == 1
        if username == "alice":
            assert {(type(error), error.retry_after) for error in errors} == {(BackendUnavailable, 7)}  # type: ignore[attr-defined]
        else:
            assert sorted(type(error).__name__ for error in errors) == ["InternalError"] * 4 + ["ZeroDivisionError"]


def test_a_source_that_hangs_holds_only_its_places() -> None:
    """Remembered logins and other sources are served at once, and the surplus is turned away with 503."""
    is_over, hanging = threading.Event(), Counting()
    memory, other = memory_of(hanging, places=2), memory_of(Counting(), places=2)
    memory.authenticate("alice", "right")

    def hang(username: str, password: str) -> Account:
        is_over.wait(30)
        raise BackendUnavailable("no answer in time")

    hanging.answer = hang
    with ThreadPoolExecutor(10) as threads:
        logins = [threads.submit(memory.authenticate, f"user-{number}", "right") for number in range(10)]
        started = time.monotonic()
        assert memory.authenticate("alice", "right").name == "alice"
        assert other.authenticate("bob", "right").name == "bob"
        assert time.monotonic() - started < 0.5
        time.sleep(1.5)
        assert sum(login.done() for login in logins) == 8
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match="requests wait for it already"):
            memory.authenticate("late", "right")
        with pytest.raises(BackendUnavailable, match="requests wait for it already"):
            memory.lookup("late", "")
        assert time.monotonic() - started < 0.5
        is_over.set()
    for login in logins:
        assert isinstance(login.exception(), BackendUnavailable)
    hanging.answer = hanging.decide
    assert memory.authenticate("late", "right").name == "late"


def test_after_an_outage_nobody_waits_for_a_place_until_the_source_answers_again() -> None:
    """Those inside find out; waiting would only hold threads."""
    turnstile = Turnstile(1, patience=5)
    with pytest.raises(BackendUnavailable, match="down"), turnstile.passage():
        raise BackendUnavailable("down")
    started = time.monotonic()
    with turnstile.passage(), pytest.raises(BackendUnavailable, match="wait for it"), turnstile.passage():
        pass
    assert time.monotonic() - started < 1


def test_a_place_that_becomes_free_is_taken_by_who_waits_for_it() -> None:
    """A burst is served in turn while the source moves on."""
    turnstile = Turnstile(2, patience=2)
    inside: list[int] = []
    most = []

    def pass_through(number: int) -> None:
        with turnstile.passage():
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(pass_through, range(40)))
    assert len(most) == 40
    assert max(most) == 2


def test_every_question_reaches_the_source() -> None:
    """What a backend can be asked, a remembering one passes on: nothing falls back to the base class."""
    questions = {name for name, value in inspect.getmembers(Backend, inspect.isfunction) if not name.startswith("_")}
    assert questions <= set(vars(Memory))
