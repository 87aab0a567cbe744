"""What a source has said of a user name and password, remembered for a moment.

A client that pushes twenty layers sends its password twenty times, several at once. The source is asked once: a stale
password then counts as one wrong try, and does not lock the account out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Final

from tokenissuer.backend import Account, Backend, Finding, Step
from tokenissuer.errors import BackendUnavailable, InternalError, InvalidCredentials, UnknownAccount
from tokenissuer.metrics import metrics, timed
from tokenissuer.scope import Access
from tokenissuer.turnstile import Turnstile

#: Seconds after which even a right answer must be asked for again.
LONGEST: Final = 60
#: Answers of each kind that are kept; the oldest goes first.
MOST: Final = 10_000
#: Seconds that a request waits for another's identical question.
_FOLLOW: Final = 12.0


@dataclass(frozen=True, slots=True)
class _Acceptance:
    """The source said yes."""

    kind: ClassVar[str] = "accepted"
    account: Account

    def repeat(self) -> Account:
        """Say it again."""
        return self.account


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The source said no, or that it does not know the name."""

    kind: ClassVar[str] = "refused"
    error: type[InvalidCredentials]
    sentence: str
    reason: str

    @classmethod
    def of(cls, error: InvalidCredentials) -> _Refusal:
        """Keep what an error says, and not the error: that holds on to everything that was going on."""
        kind = UnknownAccount if isinstance(error, UnknownAccount) else InvalidCredentials
        return cls(kind, error.sentence, error.reason)

    def repeat(self) -> Account:
        """Say it again."""
        error = self.error(self.sentence, reason=f"{self.reason} (remembered)")
        error.is_remembered = True
        raise error


@dataclass(frozen=True, slots=True)
class _Failure:
    """The source could not say. It is passed on to who asks at the same time, and never remembered."""

    kind: ClassVar[str] = "unavailable"
    error: BackendUnavailable | None

    def repeat(self) -> Account:
        """Say it again."""
        if self.error is None:
            raise InternalError(reason="another request with the same credentials met a defect")
        raise BackendUnavailable(self.error.reason, retry_after=self.error.retry_after)


_Answer = _Acceptance | _Refusal | _Failure


@dataclass(frozen=True, slots=True)
class _Question:
    """A user name and password, as nobody can read them, and the state of the source they are held against."""

    digest: bytes
    version: Hashable


@dataclass(slots=True)
class _Flight:
    """A question that is being asked."""

    is_over: threading.Event = field(default_factory=threading.Event)
    answer: _Answer = _Failure(None)


@dataclass(frozen=True, slots=True)
class _Remembered:
    """An answer, until it is too old."""

    answer: _Acceptance | _Refusal
    version: Hashable
    end: float
    valid_until: float | None


class _Answers:
    """Answers of one kind: for a while, and no more of them than fit.

    Args:
        seconds: how long each is kept.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        self._kept: Final[OrderedDict[bytes, _Remembered]] = OrderedDict()

    def keep(self, question: _Question, answer: _Acceptance | _Refusal, asked: float) -> None:
        """Keep an answer, from the moment on when the question was asked."""
        valid_until = answer.account.valid_until if isinstance(answer, _Acceptance) else None
        self.drop(question)
        if self._seconds <= 0:
            return
        self._kept[question.digest] = _Remembered(answer, question.version, asked + self._seconds, valid_until)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def drop(self, question: _Question) -> None:
        """Forget an answer."""
        self._kept.pop(question.digest, None)

    def find(self, question: _Question) -> list[_Acceptance | _Refusal]:
        """Return the answer that still holds, if there is one."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values())).end <= now:
            self._kept.popitem(last=False)
        kept = self._kept.get(question.digest)
        if kept is None or kept.end <= now or kept.version != question.version:
            return []
        if kept.valid_until is not None and kept.valid_until <= time.time():
            return []
        return [kept.answer]


class Memory(Backend):
    """A backend that asks another one only what it has not answered within the last moment.

    It keeps no password: a question is known by a digest under a key that this process made up and tells nobody.

    Args:
        backend: the one that is asked.
        success: seconds for which a right password is remembered, at most 60; 0 for not at all.
        failure: seconds for which a refusal is remembered, at most 60; 0 for not at all.
        places: threads that may be asking it at once.
        name: what it is called where its answers are counted.
    """

    def __init__(self, backend: Backend, success: int, failure: int, places: int, name: str = "") -> None:
        self._name: Final = name
        self.is_even = backend.is_even
        self._backend: Final = backend
        self._turnstile: Final = Turnstile(places)
        self._key: Final = secrets.token_bytes(32)
        self._lock: Final = threading.Lock()
        # Two, so that no flood of wrong passwords can push out the right ones.
        self._accepted: Final = _Answers(min(success, LONGEST) if backend.may_be_remembered else 0)
        self._refused: Final = _Answers(min(failure, LONGEST))
        self._flights: Final[dict[_Question, _Flight]] = {}

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is this account's: by a remembered answer, or by asking.

        Raises:
            UnknownAccount: if the source does not know the name.
            InvalidCredentials: if it knows the name and refuses.
            BackendUnavailable: if it cannot tell, or is too busy to be asked.
        """
        question = _Question(self._digest(username, password), self._backend.version())
        for answer in self._recall(question):
            return self._repeat(answer)
        with self._turnstile.passage():
            return self._ask(question, username, password)

    def is_guessable(self, username: str, password: str) -> bool:
        """Ask the source."""
        return self._backend.is_guessable(username, password)

    def lookup(self, name: str, keepsake: str) -> Account:
        """Ask the source; never answered from memory."""
        with self._turnstile.passage(), self._timed("lookup"):
            return self._backend.lookup(name, keepsake)

    def grants(self, account: Account, access: Access) -> frozenset[str]:
        """Ask the source."""
        with self._turnstile.passage(), self._timed("grants"):
            return self._backend.grants(account, access)

    def public_grants(self, access: Access) -> frozenset[str]:
        """Ask the source."""
        with self._turnstile.passage(), self._timed("public_grants"):
            return self._backend.public_grants(access)

    def keepsake(self, account: Account, password: str) -> str:
        """Ask the source."""
        return self._backend.keepsake(account, password)

    def check(self) -> None:
        """Ask the source."""
        self._backend.check()

    def findings(self) -> Iterable[Finding]:
        """Ask the source."""
        return self._backend.findings()

    def repository_findings(self, access: Access) -> Iterable[Finding]:
        """Ask the source."""
        return self._backend.repository_findings(access)

    def probe(self) -> Iterable[Step]:
        """Ask the source."""
        return self._backend.probe()

    def trace(self, name: str) -> Iterable[Step]:
        """Ask the source."""
        return self._backend.trace(name)

    def version(self) -> Hashable:
        """Ask the source."""
        return self._backend.version()

    def set_password(self, username: str, password: str) -> None:
        """Let the source do it."""
        self._backend.set_password(username, password)

    def close(self) -> None:
        """Close the source."""
        self._backend.close()

    def _digest(self, username: str, password: str) -> bytes:
        # The length tells where the name ends: no other pair can give the same bytes.
        name = username.encode("utf-8", "surrogatepass")
        message = len(name).to_bytes(8, "big") + name + password.encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).digest()

    def _timed(self, question: str) -> AbstractContextManager[None]:
        return timed(metrics().backend_seconds, self._name, question)

    def _repeat(self, answer: _Answer) -> Account:
        metrics().remembered.labels(self._name, answer.kind).inc()
        return answer.repeat()

    def _recall(self, question: _Question) -> list[_Acceptance | _Refusal]:
        with self._lock:
            return self._accepted.find(question) or self._refused.find(question)

    def _ask(self, question: _Question, username: str, password: str) -> Account:
        mine = _Flight()
        with self._lock:
            # Between the first look and this one somebody else may have been told.
            remembered = self._accepted.find(question) or self._refused.find(question)
            flight = mine if remembered else self._flights.setdefault(question, mine)
        for answer in remembered:
            return self._repeat(answer)
        if flight is mine:
            return self._fly(mine, question, username, password)
        if not flight.is_over.wait(_FOLLOW):
            raise BackendUnavailable("another request with the same credentials has waited for it too long")
        return self._repeat(flight.answer)

    def _fly(self, flight: _Flight, question: _Question, username: str, password: str) -> Account:
        """Ask the source, and tell everybody who asks the same meanwhile."""
        asked = time.monotonic()
        try:
            with self._timed("authenticate"):
                account = self._backend.authenticate(username, password)
            flight.answer = _Acceptance(account)
            return account
        except InvalidCredentials as error:
            flight.answer = _Refusal.of(error)
            raise
        except BackendUnavailable as error:
            flight.answer = _Failure(error)
            raise
        finally:
            with self._lock:
                del self._flights[question]
                self._keep(question, flight.answer, asked)
            flight.is_over.set()

    def _keep(self, question: _Question, answer: _Answer, asked: float) -> None:
        if isinstance(answer, _Acceptance):
            self._refused.drop(question)
            self._accepted.keep(question, answer, asked)
        elif isinstance(answer, _Refusal):
            self._accepted.drop(question)
            self._refused.keep(question, answer, asked)
