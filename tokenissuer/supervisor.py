"""Several processes that do the same work: started, watched, replaced and stopped."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

_log: Final = logging.getLogger("tokenissuer")

#: Seconds between two turns of housekeeping.
_TURN: Final = 1.0
#: Seconds that a worker's place stays empty at most if its process ends as soon as it has begun.
_RESTART_INTERVAL: Final = 1.0

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_HEARD: Final = frozenset({*_STOPPING, signal.SIGHUP, signal.SIGCHLD})


@dataclass(slots=True)
class _Place:
    """One worker's place.

    Args:
        pid: its process; 0 if there is none now.
        started: monotonic seconds.
    """

    pid: int = 0
    started: float = -_RESTART_INTERVAL


class Supervisor:
    """Keeps a number of worker processes running. It must have no threads: workers are forks of it.

    Args:
        work: what a worker does; signals are blocked when it begins, and it must end by itself after SIGTERM.
        count: how many workers.
        look: called every second, and with True on SIGHUP; returns whether the workers shall be told (SIGHUP).
        patience: seconds after which a worker that was told to stop is killed.
    """

    def __init__(self, work: Callable[[], None], count: int, look: Callable[[bool], bool], patience: float) -> None:
        self._work: Final = work
        self._places: Final = [_Place() for _ in range(count)]
        self._look: Final = look
        self._patience: Final = patience

    def run(self, stopping: Callable[[], None]) -> None:
        """Run the workers until SIGTERM or SIGINT; then stop them all and wait for them.

        Args:
            stopping: called when that signal has come, before the workers are told.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        try:
            self._keep()
            stopping()
            self._end()
        finally:
            # What was sent twice, to us and to our group, has been heard.
            while signal.sigtimedwait(_HEARD, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _keep(self) -> None:
        next_look = time.monotonic() + _TURN
        while True:
            self._reap()
            for place in self._places:
                if not place.pid and time.monotonic() >= place.started + _RESTART_INTERVAL:
                    self._start(place)
            heard = signal.sigtimedwait(_HEARD, max(0.0, min(_TURN, next_look - time.monotonic())))
            number = heard.si_signo if heard else 0
            if number in _STOPPING:
                return
            if number == signal.SIGHUP or time.monotonic() >= next_look:
                next_look = time.monotonic() + _TURN
                if self._look(number == signal.SIGHUP):
                    self._tell(signal.SIGHUP)

    def _start(self, place: _Place) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        place.started = time.monotonic()
        place.pid = os.fork()
        if place.pid == 0:
            self._become_worker()

    def _become_worker(self) -> NoReturn:
        code = 1
        try:
            self._work()
            code = 0
        except BaseException as error:
            where = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
            _log.error("%s in a worker; this is a defect:\n%s", type(error).__name__, where)
        finally:
            # Nothing of what the parent had begun may be finished twice.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for place in self._places:
            if not place.pid:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                ending = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
                _log.warning("worker %d has ended (%s); another takes its place", pid, ending)
                place.pid = 0

    def _tell(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                # Not reaped yet, so the number is still that process's.
                os.kill(place.pid, number)

    def _end(self) -> None:
        self._tell(signal.SIGTERM)
        end = time.monotonic() + self._patience
        for place in self._places:
            while place.pid and os.waitpid(place.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > end:
                    _log.warning("worker %d does not end; killing it", place.pid)
                    os.kill(place.pid, signal.SIGKILL)
                    os.waitpid(place.pid, 0)
                    break
                time.sleep(0.02)
            place.pid = 0
