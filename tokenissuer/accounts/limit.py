"""How many calls to a backend may be under way, and how many threads may wait for it.

A backend that is slow is waited for as long as clients wait. One that hangs must not keep the others from logging in.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tokenissuer.errors import BackendUnavailable, QuotaExceeded

#: Calls to one backend under way at once: more make a directory slower, not faster.
MAX_CALLS: Final = 16
#: Seconds that a request waits for a place, or for the answer to an identical request: docker gives up after 15.
WAIT: Final = 12.0
#: Seconds after which a call that fails has kept a thread from others.
SLOW: Final = 2.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which an answer must be there, however many steps it takes.

    Args:
        end: seconds on the monotonic clock.
    """

    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the moment that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def within(self, seconds: float) -> Deadline:
        """Return the earlier of this moment and the one that many seconds from now."""
        return Deadline(min(self.end, time.monotonic() + seconds))

    def share(self, tries: int) -> Deadline:
        """Return the deadline of the first of several tries: each gets an equal part of the time left.

        Args:
            tries: how many there are, at least one.
        """
        now = time.monotonic()
        return Deadline(now + (self.end - now) / tries)

    def remaining(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: if there are none.
        """
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no answer in time")
        return seconds


class Threads:
    """Keeps an eighth of the threads for whoever needs no backend now: they wait for backends only for a moment.

    While backends answer, a moment is enough: all threads may ask.

    Args:
        count: the threads that the server has.
    """

    def __init__(self, count: int) -> None:
        #: Calls to one backend under way at once: some threads must be left to wait, for they can be turned away.
        self.calls: Final = min(MAX_CALLS, max(1, count // 2))
        self._most: Final = max(1, count - max(1, count // 8))
        self._lock: Final = threading.Lock()
        self._held = 0

    @contextlib.contextmanager
    def hold(self, *, stalled: bool) -> Iterator[float]:
        """Hold a thread for as long as the block lasts, and return the seconds that it may wait for a backend.

        Args:
            stalled: whether the backend has answered nobody for a moment.

        Raises:
            BackendUnavailable: if all that may wait do so, and the backend is stalled.
        """
        with self._lock:
            is_spare = self._held >= self._most
            if is_spare and stalled:
                raise BackendUnavailable("too many requests wait for account sources")
            self._held += 1
        try:
            yield SLOW if is_spare else WAIT
        finally:
            with self._lock:
                self._held -= 1


class Limit:
    """Bounds the calls to one backend that are under way at once.

    Requests wait for a place. Once a call has timed out the backend is taken to hang: those who
    wait are turned away, and one call at a time finds out whether it answers again.

    Args:
        places: calls under way at once.
    """

    def __init__(self, places: int) -> None:
        self._changed: Final = threading.Condition()
        self._places: Final = places
        self._free = places
        self._answered = 0.0
        self._hangs = False
        self._is_retrying = False

    @property
    def is_stalled(self) -> bool:
        """Whether calls are under way and none has been answered for a moment."""
        return self._free < self._places and time.monotonic() - self._answered > SLOW

    @contextlib.contextmanager
    def place(self, wait: float = WAIT) -> Iterator[None]:
        """Hold a place for as long as the block lasts.

        Args:
            wait: seconds to wait for it.

        Raises:
            BackendUnavailable: if there is none in time.
        """
        is_retry = self._enter(wait)
        started = time.monotonic()
        failed = False
        try:
            yield
        except BackendUnavailable as error:
            failed = not isinstance(error, QuotaExceeded)
            raise
        finally:
            self._leave(is_retry=is_retry, failed=failed, hangs=failed and time.monotonic() - started > SLOW)

    def _enter(self, wait: float) -> bool:
        """Take a place, and return whether it is that of the one call that tries a backend that hangs."""
        end = time.monotonic() + wait
        with self._changed:
            while not self._hangs:
                if self._free:
                    if self._free == self._places:
                        self._answered = time.monotonic()
                    self._free -= 1
                    return False
                if not self._changed.wait(end - time.monotonic()):
                    raise BackendUnavailable(f"too many calls are under way (waited {wait:.0f} s)")
            if self._is_retrying:
                raise BackendUnavailable("it does not answer; one call tries")
            self._is_retrying = True
            return True

    def _leave(self, *, is_retry: bool, failed: bool, hangs: bool) -> None:
        with self._changed:
            if not failed:
                self._answered = time.monotonic()
            if is_retry:
                self._is_retrying = False
            else:
                self._free += 1
            self._hangs = hangs
            if hangs:
                self._changed.notify_all()
            else:
                self._changed.notify()
