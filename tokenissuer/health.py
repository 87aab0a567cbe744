"""Whether each account source and store can be asked: found out in the background, answered at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from tokenissuer.errors import BackendUnavailable
from tokenissuer.metrics import metrics

#: Seconds after which a part is looked at again.
FRESH: Final = 10.0
#: Seconds after which what was found counts for nothing.
STALE: Final = 30.0
#: Seconds after which a part that has not answered counts as down.
LATE: Final = 5.0
#: Seconds that somebody waits for what nobody has found out yet.
PATIENCE: Final = 1.0

_log: Final = logging.getLogger("tokenissuer.health")


class _Part:
    """One thing that can be up or down. At most one thread looks at it at a time.

    Args:
        name: what the log calls it.
        check: raises if it is down.
    """

    def __init__(self, name: str, check: Callable[[], None]) -> None:
        self._name: Final = name
        self._check: Final = check
        self._lock: Final = threading.Lock()
        self._found: Final = threading.Event()
        self._trouble = "nobody has looked yet"
        self._looked = float("-inf")
        self._began: float | None = None

    def look(self) -> None:
        """Begin to look, if that is due."""
        now = time.monotonic()
        with self._lock:
            if now - self._looked > STALE:
                self._found.clear()
            if self._began is not None or now - self._looked < FRESH:
                return
            self._began = now
        threading.Thread(target=self._find_out, name=f"health of {self._name}", daemon=True).start()

    def trouble(self, patience: float) -> str:
        """Return why it is down; empty if it is up.

        Args:
            patience: seconds to wait if nothing that was found still counts.
        """
        self._found.wait(max(0.0, patience))
        with self._lock:
            if self._began is not None and time.monotonic() - self._began > LATE:
                return f"it has not answered for {LATE:.0f} seconds"
            if not self._found.is_set():
                return "it has not answered yet"
            return self._trouble

    def _find_out(self) -> None:
        trouble = ""
        try:
            self._check()
        except BackendUnavailable as error:
            trouble = error.reason or "it is not available"
        except Exception as error:
            # Not its text, which may hold anything.
            trouble = f"{type(error).__name__} while looking; this is a defect"
        with self._lock:
            before, self._trouble = self._trouble, trouble
            is_first = self._looked == float("-inf")
            self._looked, self._began = time.monotonic(), None
            self._found.set()
        metrics().up.labels(self._name).set(0 if trouble else 1)
        if trouble and (is_first or not before):
            _log.error("'%s' is down: %s", self._name, trouble, extra={"security": "outage"})
        elif before and not trouble and not is_first:
            _log.warning("'%s' is up again", self._name, extra={"security": "outage_over"})


class Health:
    """Answers at once, however slow what it asks is.

    Args:
        checks: for each part, by name, what raises if it is down.
    """

    def __init__(self, checks: Mapping[str, Callable[[], None]]) -> None:
        self._parts: Final = {name: _Part(name, check) for name, check in checks.items()}

    def troubles(self) -> dict[str, str]:
        """Return for each part why it is down; empty if it is up. Takes no more than a second."""
        end = time.monotonic() + PATIENCE
        for part in self._parts.values():
            part.look()
        return {name: part.trouble(end - time.monotonic()) for name, part in self._parts.items()}

    def prove(self) -> None:
        """Prove that all parts are up.

        Raises:
            BackendUnavailable: if one is down; only the log is told which.
        """
        down = [f"{name}: {trouble}" for name, trouble in self.troubles().items() if trouble]
        if down:
            raise BackendUnavailable("; ".join(down))
