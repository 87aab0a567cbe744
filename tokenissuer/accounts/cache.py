"""What is remembered of a backend's answers.

A client that pushes twenty layers sends its password twenty times, several at once. The backend is asked once: a stale
password then counts as one wrong try at the source, and does not lock the account.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.limit import MAX_CALLS, Limit, Threads
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.errors import (
    BackendUnavailable,
    InternalError,
    InvalidCredentials,
    RequestError,
    UnknownAccount,
)
from tokenissuer.options import option
from tokenissuer.scope import Access

T = TypeVar("T")

#: Seconds after which even a right password is checked again.
MAX_SECONDS: Final = 60
#: Answers of each kind kept in memory; the oldest is dropped first.
MAX_ANSWERS: Final = 10_000
#: Is told the backend's name, what was asked (or `remembered`), and how many seconds it took.
Observe = Callable[[str, str, float], None]
#: Waits until the account source may be asked about one more password, and tells when it has answered.
Turn = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """The `[cache]` table: how long answers of the backends are remembered."""

    success: int = option("seconds for which a right password is remembered, 0 to 60", default=MAX_SECONDS)
    failure: int = option("seconds for which a refused password is remembered, 0 to 60", default=MAX_SECONDS)

    def __post_init__(self) -> None:
        for key, seconds in (("success", self.success), ("failure", self.failure)):
            if not 0 <= seconds <= MAX_SECONDS:
                raise ValueError(f"'{key}' is {seconds}; use 0 to {MAX_SECONDS} seconds")


@dataclass(slots=True)
class _Call(Generic[T]):
    """A question that one thread asks and others may wait for."""

    done: threading.Event = field(default_factory=threading.Event)
    answer: T | None = None
    error: BaseException | None = None

    def result(self, seconds: float) -> T:
        """Return or raise what the other thread got."""
        if not self.done.wait(seconds):
            raise BackendUnavailable(f"timed out after {seconds:.0f} s waiting for the answer to an identical request")
        if self.error is None:
            return self.answer  # type: ignore[return-value]  # set before `done`
        raise _copy(self.error)


def _copy(error: BaseException) -> RequestError:
    """Return a new error that says the same: the original holds a traceback, and with it the password.

    The account source was asked once, so it has counted a wrong password once.
    """
    if not isinstance(error, RequestError):
        return InternalError(reason="an identical request failed with an internal error")
    copied = type(error).__new__(type(error))
    copied.args = error.args
    copied.__dict__.update(error.__dict__)
    if isinstance(copied, InvalidCredentials):
        copied.is_counted = False
    return copied


class Cache(Generic[T]):
    """Remembered answers, by question. While one thread asks, others with the same question wait for its answer.

    Args:
        seconds: how long an answer is remembered; 0 for not at all.
        refusal_seconds: how long an `InvalidCredentials` is remembered. Other errors never are.
    """

    def __init__(self, seconds: Callable[[T], float], refusal_seconds: float = 0) -> None:
        self._seconds: Final = seconds
        self._refusal_seconds: Final = refusal_seconds
        self._lock: Final = threading.Lock()
        self._answers: Final[OrderedDict[Hashable, tuple[float, T]]] = OrderedDict()
        # Kept apart: many wrong passwords must not push out the right ones.
        self._refusals: Final[OrderedDict[Hashable, tuple[float, RequestError]]] = OrderedDict()
        self._calls: Final[dict[Hashable, _Call[T]]] = {}

    def remembered(self, question: Hashable) -> T:
        """Return the remembered answer.

        Raises:
            InvalidCredentials: if a refusal is remembered.
            KeyError: if nothing is.
        """
        now = time.monotonic()
        answer = self._answers.get(question)
        if answer is not None and now < answer[0]:
            return answer[1]
        refusal = self._refusals.get(question)
        if refusal is not None and now < refusal[0]:
            raise _copy(refusal[1])
        raise KeyError(question)

    def ask(self, question: Hashable, call: Callable[[], T], seconds: float) -> T:
        """Return the remembered answer, or ask for it.

        Args:
            question: names the caller as well, where different callers get different answers. Never a secret.
            call: gets the answer; its errors are passed on.
            seconds: how long to wait for another thread's call.

        Raises:
            BackendUnavailable: if the other thread's answer did not come in time.
        """
        mine = _Call[T]()
        with self._lock:
            # Under the same lock: a call that ends in between would be made twice.
            with suppress(KeyError):
                return self.remembered(question)
            first = self._calls.setdefault(question, mine)
        return self._run(question, call, mine) if first is mine else first.result(seconds)

    def _run(self, question: Hashable, call: Callable[[], T], mine: _Call[T]) -> T:
        asked = time.monotonic()
        try:
            mine.answer = answer = call()
        except BaseException as error:
            mine.error = error
            with self._lock:
                if isinstance(error, InvalidCredentials):
                    self._answers.pop(question, None)
                    refusal = _copy(error)
                    refusal.reason += " (remembered)"
                    _keep(self._refusals, question, asked + self._refusal_seconds, refusal)
            raise
        else:
            with self._lock:
                self._refusals.pop(question, None)
                _keep(self._answers, question, asked + self._seconds(answer), answer)
            return answer
        finally:
            with self._lock:
                del self._calls[question]
            mine.done.set()


def _keep(kept: OrderedDict[Hashable, tuple[float, T]], question: Hashable, end: float, answer: T) -> None:
    if end <= time.monotonic():
        return
    kept.pop(question, None)
    kept[question] = (end, answer)
    while len(kept) > MAX_ANSWERS:
        kept.popitem(last=False)


class CachedBackend:
    """A backend with its name in the configuration, asked only for what it has not answered within the last moment.

    It keeps no password: a login is known by a digest under a key that this process made up.

    Args:
        name: what logs, messages and refresh tokens call it.
        backend: the backend itself.
        options: how long answers are remembered.
        threads: bounds the threads that ask or wait.
        places: calls under way at once; 0 for as many as `threads` allows.
        observe: is told each call.
        refusals: for the backend, which may remember wrong passwords for longer; None for some of its own.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        options: CacheOptions | None = None,
        threads: Threads | None = None,
        places: int = 0,
        observe: Observe = lambda name, question, seconds: None,
        refusals: Refusals | None = None,
    ) -> None:
        options = options or CacheOptions()
        self.name: Final = name
        self.backend: Final = backend
        self._success: Final = options.success
        self._logins: Final = Cache[Account](self._remember, options.failure)
        self._names: Final = Cache[bool](lambda is_known: float(options.success), 0)
        self._threads: Final = threads or Threads(8 * MAX_CALLS)
        self._limit: Final = Limit(places or self._threads.calls)
        self._observe: Final = observe
        self._key: Final = secrets.token_bytes(32)
        backend.refusals = (refusals or Refusals(name, self._key)) if options.failure else None

    def authenticate(self, username: str, password: str, turn: Turn = nullcontext) -> Account:
        """Prove that the password is this account's: from the cache, or by asking.

        Args:
            username: what the client typed.
            password: what the client typed.
            turn: waited for before a source that bans servers is asked.

        Raises:
            UnknownAccount: if the backend does not know the name.
            InvalidCredentials: if it knows the name and refuses.
            BackendUnavailable: if it cannot answer, or too many calls are under way.
        """
        question = self._digest(username, password)
        try:
            account = self._logins.remembered(question)
        except KeyError:
            if not self.backend.bans_servers:
                turn = nullcontext
            with self._named(), self._threads.hold(stalled=self._limit.is_stalled) as wait, turn():
                return self._logins.ask(
                    question, lambda: self._call("authenticate", lambda: self._prove(username, password), wait), wait
                )
        except InvalidCredentials as error:
            error.backend = self.name
            self._observe(self.name, "remembered", 0)
            raise
        self._observe(self.name, "remembered", 0)
        return account

    def lookup(self, name: str, password: str) -> Account:
        """Find an account again, for a refresh token; never from the cache.

        Raises:
            InvalidCredentials: if the backend no longer vouches for it.
            BackendUnavailable: if it cannot answer, or too many calls are under way.
        """
        with self._named(), self._threads.hold(stalled=self._limit.is_stalled) as wait:
            account = self._call("lookup", lambda: self.backend.lookup(name, password), wait)
        if account.name != name:
            raise InvalidCredentials(reason="the backend now has another name for the account")
        return account

    def knows(self, name: str) -> bool:
        """Whether the backend has an account of this name, as far as it can tell without a password.

        Raises:
            BackendUnavailable: if it cannot answer, or too many calls are under way.
        """
        try:
            return self._names.remembered(name)
        except KeyError:
            with self._named(), self._threads.hold(stalled=self._limit.is_stalled) as wait:
                return self._names.ask(name, lambda: self._call("find", lambda: self._has(name), wait), wait)

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        """Return the actions that the backend itself allows.

        Raises:
            BackendUnavailable: if it cannot answer, or too many calls are under way.
        """
        if not self.backend.may_grant:
            return frozenset()
        with self._named(), self._threads.hold(stalled=self._limit.is_stalled) as wait:
            return self._call("grants", lambda: self.backend.grants(account, access), wait)

    def _prove(self, username: str, password: str) -> Account:
        account = self.backend.authenticate(username, password)
        if not account.name:
            # A token would show it as nobody.
            raise BackendUnavailable("the backend returned an account without a name")
        return account

    def _has(self, name: str) -> bool:
        if (listing := self.backend.listing()) is not None:
            return name in listing.accounts
        try:
            return self.backend.find(name).name == name
        except UnknownAccount:
            return False
        except InvalidCredentials:
            # It is locked, or the like, and its name is no other's for that.
            return True

    def _remember(self, account: Account) -> float:
        seconds = float(self._success)
        if account.credential_ends is not None:
            seconds = min(seconds, account.credential_ends - time.time())
        if account.valid_until is not None:
            # Half of what is left: a token for it must be valid for a while.
            seconds = min(seconds, (account.valid_until - time.time()) / 2)
        return seconds

    def _digest(self, username: str, password: str) -> bytes:
        # The length says where the name ends: no other pair can give the same bytes.
        name = username.encode("utf-8", "surrogatepass")
        message = len(name).to_bytes(8, "big") + name + password.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(message, key=self._key).digest()

    def _call(self, question: str, call: Callable[[], T], wait: float) -> T:
        with self._limit.place(wait):
            started = time.perf_counter()
            try:
                return call()
            finally:
                self._observe(self.name, question, time.perf_counter() - started)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RequestError as error:
            error.backend = self.name
            raise
