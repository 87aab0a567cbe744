"""A moment by which something must be over, however many steps it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock.

    Args:
        end: seconds on that clock.
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
        """Return a deadline that leaves as much time for each of the tries to come.

        Args:
            tries: how many there are, with this one; at least one.
        """
        now = time.monotonic()
        return Deadline(now + (self.end - now) / tries)

    def remaining(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: if none are.
        """
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no answer in time")
        return seconds
