"""The application that follows its files: it is built again when one changes, whole or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokenissuer.config import THREADS, Running, config_findings, file_stamps, load_config
from tokenissuer.diagnosis import log_findings
from tokenissuer.errors import ConfigurationError
from tokenissuer.monitoring.metrics import RELOADS
from tokenissuer.serving.notify import notify

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Seconds between two looks at the files. A change counts when two looks have seen the same: who writes a key and its
#: certificate, or a password file in place, has not finished after the first write.
WATCH_INTERVAL: Final = 0.5
#: Seconds after which files that could not be used are tried again, even if they have not changed.
RETRY_INTERVAL: Final = 5.0
#: Seconds after which what a reload has replaced is closed: the requests that use it have ended.
CLOSE_AFTER: Final = 30.0

_log: Final = logging.getLogger("tokenissuer")


class ReloadingApplication:
    """The token server as a WSGI application that is built again while it answers.

    Each process has its own: at the first request in a process that was forked from the one that made it, it is built
    again and begins to watch the files.

    Args:
        path: the configuration file.
        threads: requests that the server answers at once.

    Raises:
        ConfigurationError: if the application cannot be built.
    """

    def __init__(self, path: Path, threads: int = THREADS) -> None:
        self._path: Final = path
        self._threads: Final = threads
        self._lock: Final = threading.Lock()
        self._pid: Final = os.getpid()
        self._watcher = 0
        self._stop: Final = threading.Event()
        self._wake: Final = threading.Event()
        self._trouble = ""
        self._replaced: list[tuple[float, Running]] = []
        self._files: frozenset[Path] = frozenset({path})
        self._stamps = file_stamps(self._files)
        self._running = self._build(None)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._watcher != os.getpid():
            self.watch()
        return self._running.application(environ, start_response)

    def watch(self) -> None:
        """Begin to watch the files, in a thread."""
        with self._lock:
            pid = os.getpid()
            if self._watcher == pid:
                return
            if pid != self._pid:
                # Nothing of the parent's is closed: it may still use the same connections.
                self._replace(keep_parts=False)
            elif file_stamps(self._files) != self._stamps:
                # The process may have waited for hours, and an account may be gone since.
                self._replace()
            threading.Thread(target=self._watch, name="reload", daemon=True).start()
            self._watcher = pid
            self._running.health.probe()

    def reload(self) -> None:
        """Build it again soon, whether or not a file has changed. A signal handler may call this."""
        self._trouble = ""
        self._wake.set()

    def troubles(self) -> dict[str, str]:
        """Return for each backend and store why it cannot be asked; empty if it can."""
        return self._running.health.troubles()

    def close(self) -> None:
        """Stop watching and close everything; no request is answered afterwards."""
        self._stop.set()
        self._wake.set()
        for _, replaced in self._replaced:
            replaced.close(keep=(self._running,))
        self._running.close()

    def _watch(self) -> None:
        seen, tried, asked = self._stamps, time.monotonic(), False
        while not self._stop.is_set():
            asked = self._wake.wait(WATCH_INTERVAL) or asked
            self._wake.clear()
            if self._stop.is_set():
                return
            stamps, now = file_stamps(self._files), time.monotonic()
            # A signal or a second try must not read a file that is half written: its other accounts would be gone.
            is_settled = stamps == seen
            has_changed = stamps != self._stamps
            is_due = bool(self._trouble) and now >= tried + RETRY_INTERVAL
            seen = stamps
            if is_settled and (asked or has_changed or is_due):
                tried, asked = now, False
                self._replace()
                seen = self._stamps
            self._close_replaced(now)

    def _replace(self, *, keep_parts: bool = True) -> None:
        before = self._running
        try:
            self._running = self._build(before if keep_parts else None)
        except ConfigurationError as error:
            self._report(str(error))
            return
        except Exception as error:
            # Only the place and the kind: the text of a plug-in's exception may have a secret.
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._report(f"{type(error).__name__} in {place.filename}, line {place.lineno}; this is a bug")
            return
        self._trouble = ""
        if not keep_parts:
            return
        RELOADS.labels("good").inc()
        self._replaced.append((time.monotonic() + CLOSE_AFTER, before))
        self._running.health.probe()
        _log.info("reloaded %s and the files that it names", self._path, extra={"security": "reload"})
        notify(f"reloaded {self._path}")
        if self._running.key_id != before.key_id:
            _log.warning(
                "tokens are signed with the key %s from now on, until now with %s",
                *(self._running.key_id, before.key_id),
                extra={"security": "key_changed"},
            )

    def _build(self, before: Running | None) -> Running:
        # Before anything is read: a file that changes while it is read is found by the next look.
        stamps = dict(file_stamps(self._files))
        self._stamps = tuple(stamps.items())
        config = load_config(self._path)
        files = config.files()
        self._files = files
        self._stamps = tuple((path, stamps.get(path, stamp)) for path, stamp in file_stamps(files))
        running = config.build(self._threads, before)
        log_findings(_log, config_findings(config, time.time()))
        return running

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            RELOADS.labels("failed").inc()
            _log.error("%s; the previous configuration stays in force", trouble, extra={"security": "reload_failed"})
            notify(f"{trouble}; the previous configuration stays in force")
        self._trouble = trouble

    def _close_replaced(self, now: float) -> None:
        while self._replaced and now >= self._replaced[0][0]:
            replaced = self._replaced.pop(0)[1]
            replaced.close(keep=(self._running, *(other for _, other in self._replaced)))
