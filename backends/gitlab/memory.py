"""Answers of GitLab, remembered briefly, so that a push of many layers asks for them once. No credential is kept."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from tokenissuer.errors import BackendUnavailable, InvalidCredentials
from tokenissuer_backends.gitlab.deadline import Deadline

T = TypeVar("T")

#: Answers kept at most; the oldest goes first.
MAX_ANSWERS: Final = 10_000
#: Seconds for which an answer about who somebody is may be kept at most.
MAX_LOGIN: Final = 60


class Memory(Generic[T]):
    """Answers by question. Whoever asks what is being asked already waits for that answer. An outage is not kept.

    Args:
        seconds: how long an answer is good for; 0 remembers nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        self._lock: Final = threading.Lock()
        self._answers: Final[OrderedDict[Hashable, tuple[float, T]]] = OrderedDict()
        self._asking: Final[dict[Hashable, Future[T]]] = {}

    def recall(self, question: Hashable, ask: Callable[[], T], deadline: Deadline) -> T:
        """Return the remembered answer, or ask for it.

        Args:
            question: must name the caller as well: two callers may get different answers.
            ask: gets the answer; its errors are passed on and forgotten.
            deadline: until when to wait for somebody else's asking.

        Raises:
            BackendUnavailable: if the answer did not come in time, or `ask` says so.
        """
        with self._lock:
            kept = self._answers.get(question)
            if kept is not None and time.monotonic() < kept[0]:
                return kept[1]
            asked = self._asking.get(question)
            if asked is None:
                mine: Future[T] = Future()
                self._asking[question] = mine
        if asked is not None:
            return _await(asked, deadline)
        return self._ask(question, ask, mine)

    def forget(self, question: Hashable) -> None:
        """Let the question be asked anew."""
        with self._lock:
            self._answers.pop(question, None)

    def _ask(self, question: Hashable, ask: Callable[[], T], mine: Future[T]) -> T:
        try:
            answer = ask()
        except BaseException as error:
            with self._lock:
                del self._asking[question]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._asking[question]
            if self._seconds > 0:
                self._answers.pop(question, None)
                self._answers[question] = (time.monotonic() + self._seconds, answer)
                while len(self._answers) > MAX_ANSWERS:
                    self._answers.popitem(last=False)
        mine.set_result(answer)
        return answer


def _await(asked: Future[T], deadline: Deadline) -> T:
    try:
        return asked.result(deadline.remaining())
    except TimeoutError:
        raise BackendUnavailable("GitLab did not answer in time") from None
    except BackendUnavailable as error:
        # One exception object in many threads would collect all their tracebacks.
        raise BackendUnavailable(error.reason, retry_after=error.retry_after) from None
    except InvalidCredentials as error:
        raise type(error)(error.sentence, reason=error.reason) from None
