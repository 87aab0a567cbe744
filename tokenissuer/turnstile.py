"""A turnstile lets only so many threads ask a source at once: one that hangs must not hold them all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from tokenissuer.errors import BackendUnavailable

#: Seconds that a source may take without being thought to hang.
PATIENCE: Final = 1.0


class Turnstile:
    """Lets threads in as long as there are places.

    When all are taken, further threads wait for one while the source moves on. When it does not, they are turned away
    at once: the thread is free for requests that need another source, or none.

    Args:
        places: threads let in at once, at least one.
        patience: seconds that those inside may take before those outside are turned away.
    """

    def __init__(self, places: int, patience: float = PATIENCE) -> None:
        self._places: Final = max(1, places)
        self._patience: Final = patience
        self._changed: Final = threading.Condition()
        self._entered: Final[dict[object, float]] = {}
        self._is_out: bool = False

    @contextlib.contextmanager
    def passage(self) -> Iterator[None]:
        """Be inside for as long as the block lasts.

        Raises:
            BackendUnavailable: if all places are taken and nobody comes out.
        """
        ticket = object()
        self._enter(ticket)
        is_out = False
        try:
            yield
        except BackendUnavailable:
            is_out = True
            raise
        finally:
            with self._changed:
                del self._entered[ticket]
                self._is_out = is_out
                self._changed.notify_all()

    def _enter(self, ticket: object) -> None:
        end = time.monotonic() + self._patience
        with self._changed:
            while len(self._entered) >= self._places:
                now = time.monotonic()
                longest = now - min(self._entered.values())
                left = min(end - now, self._patience - longest)
                # After an outage somebody inside finds out whether it is over; the others need not wait for that.
                if left <= 0 or self._is_out:
                    raise BackendUnavailable(
                        f"{len(self._entered)} requests wait for it already, the first for {longest:.1f} seconds"
                    )
                self._changed.wait(left)
            self._entered[ticket] = time.monotonic()
