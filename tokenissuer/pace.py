"""How long a source takes to refuse a password, so that one that does not know a name can take as long.

Who guesses must not learn from the time of an answer which names there are. A directory needs two questions for a name
it knows and one for another; and where several sources stand in a row, only those are asked that come before the one
that knows the name. What is missing is waited for: as long as a refusal of late took, one picked at random, so that
both kinds of answers have the same times, not only on average.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from typing import Final

#: Refusals of late from which one is picked.
KEPT: Final = 64
#: Seconds: nobody is kept waiting for longer, or a source that hangs would hold up twice as many.
LONGEST: Final = 2.0

_random: Final = random.SystemRandom()


class Pace:
    """The pace of one source.

    Args:
        is_even: whether the source itself takes as long for a name that it does not know.
    """

    def __init__(self, is_even: bool) -> None:
        self._is_even: Final = is_even
        self._refused: Final[deque[float]] = deque(maxlen=KEPT)
        self._unknown: Final[deque[float]] = deque(maxlen=KEPT)

    def refused(self, seconds: float) -> None:
        """Note how long it took to refuse a password.

        What is refused without asking anybody takes less than a name that is looked for in vain, and does not count:
        anybody could send as much of it as he likes.
        """
        if not self._unknown or seconds >= min(self._unknown):
            self._refused.append(seconds)

    def unknown(self, seconds: float) -> float:
        """Note how long it took to find that a name is unknown; return how much longer a refusal takes."""
        if self._is_even:
            self._refused.append(seconds)
            return 0.0
        self._unknown.append(seconds)
        return max(0.0, self.draw() - seconds)

    def draw(self) -> float:
        """Return how long one of the refusals of late took; 0 if there was none."""
        try:
            return _random.choice(self._refused)
        except IndexError:
            return 0.0


class Pause:
    """Waits, and takes into account how late a busy machine wakes it."""

    def __init__(self) -> None:
        self._late: Final[deque[float]] = deque([0.0], maxlen=KEPT)

    def wait(self, seconds: float) -> None:
        """Wait for what is missing."""
        seconds = min(seconds, LONGEST) - statistics.median(self._late.copy())
        if seconds > 0:
            begun = time.perf_counter()
            time.sleep(seconds)
            self._late.append(time.perf_counter() - begun - seconds)
