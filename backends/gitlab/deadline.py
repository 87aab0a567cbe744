"""The moment by which an answer must be there, however many requests it takes."""

from __future__ import annotations

import time

from tokenissuer.errors import BackendUnavailable


class Deadline:
    """A point in time that every step towards one answer shares.

    Args:
        seconds: from now.
    """

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left.

        Raises:
            BackendUnavailable: if there are none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise BackendUnavailable("GitLab did not answer in time")
        return left
