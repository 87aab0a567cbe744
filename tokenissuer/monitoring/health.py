"""Whether each backend and the session store can be asked: probed in the background, answered at once."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from tokenissuer.errors import BackendUnavailable
from tokenissuer.monitoring.metrics import UP

#: Seconds after which a part is probed again.
PROBE_INTERVAL: Final = 10.0
#: Seconds after which the result of a probe no longer counts.
MAX_AGE: Final = 30.0
#: Seconds after which a part whose probe has not ended counts as down.
PROBE_TIMEOUT: Final = 5.0
#: Seconds that a request waits for the first result.
WAIT: Final = 0.1

_log: Final = logging.getLogger("tokenissuer.health")


class _Part:
    """One thing that can be up or down. At most one thread probes it at a time.

    Args:
        name: its name in the log.
        check: raises if it is down.
    """

    def __init__(self, name: str, check: Callable[[], None]) -> None:
        self._name: Final = name
        self._check: Final = check
        self._lock: Final = threading.Lock()
        self._has_result: Final = threading.Event()
        self._trouble = ""
        self._probed = float("-inf")
        self._started: float | None = None

    def probe(self) -> None:
        """Start a probe, if one is due."""
        now = time.monotonic()
        with self._lock:
            if now - self._probed > MAX_AGE:
                self._has_result.clear()
            if self._started is not None or now - self._probed < PROBE_INTERVAL:
                return
            # If no thread can start, the next question tries again.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._run, name=f"probe of {self._name}", daemon=True).start()
                self._started = now

    def trouble(self, wait: float) -> str:
        """Return why it is down; empty if it is up.

        Args:
            wait: seconds to wait if there is no result.
        """
        self._has_result.wait(max(0.0, wait))
        with self._lock:
            if self._started is not None and time.monotonic() - self._started > PROBE_TIMEOUT:
                return f"no answer for {PROBE_TIMEOUT:.0f} seconds"
            if not self._has_result.is_set():
                return "no answer yet"
            return self._trouble

    def _run(self) -> None:
        trouble = ""
        try:
            self._check()
        except BackendUnavailable as error:
            trouble = error.reason or "not available"
        except Exception as error:
            # Not its text, which may have anything in it.
            trouble = f"{type(error).__name__} in the probe; this is a bug"
        with self._lock:
            before, self._trouble = self._trouble, trouble
            self._probed, self._started = time.monotonic(), None
            self._has_result.set()
        UP.labels(self._name).set(0 if trouble else 1)
        if trouble and not before:
            _log.error("'%s' is down: %s", self._name, trouble, extra={"security": "outage"})
        elif before and not trouble:
            _log.warning("'%s' is up again", self._name, extra={"security": "outage_over"})


class Health:
    """Answers at once, however slow the parts are.

    Args:
        checks: for each part, by name, what raises if it is down.
    """

    def __init__(self, checks: Mapping[str, Callable[[], None]]) -> None:
        self._parts: Final = {name: _Part(name, check) for name, check in checks.items()}

    def probe(self) -> None:
        """Start the probes that are due; the log tells what is down."""
        for part in self._parts.values():
            part.probe()

    def troubles(self) -> dict[str, str]:
        """Return for each part why it is down; empty if it is up. Takes at most `WAIT` seconds."""
        end = time.monotonic() + WAIT
        self.probe()
        return {name: part.trouble(end - time.monotonic()) for name, part in self._parts.items()}

    def prove(self) -> None:
        """Prove that all parts are up.

        Raises:
            BackendUnavailable: if one is down; only the log gets its name.
        """
        down = [f"{name}: {trouble}" for name, trouble in self.troubles().items() if trouble]
        if down:
            raise BackendUnavailable("; ".join(down))
