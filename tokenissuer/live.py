"""The application that follows its files: whole, or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokenissuer.app import Application
from tokenissuer.config import Config, load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.metrics import metrics
from tokenissuer.stamp import file_stamp

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_log: Final = logging.getLogger("tokenissuer")

#: Seconds between two looks at the files.
LOOK_INTERVAL: Final = 1.0
#: Seconds that a file must have been left alone: whoever writes key and certificate is not done after the first.
_SETTLED: Final = 1.0
#: Seconds after which files that could not be used are tried again, even unchanged: what stopped them may be elsewhere.
_RETRY_INTERVAL: Final = 5.0

_KEY_CHANGED: Final = {"security": "key_changed"}

_Stamp = Mapping[Path, tuple[int, ...]]


class _Version:
    """One application, the number of requests in it, and whether another has taken its place."""

    def __init__(self, application: Application) -> None:
        self.application: Final = application
        self.users = 0
        self.is_replaced = False


class LiveApplication:
    """The token server as a WSGI application that can be built anew while it answers.

    A request is answered by the application it began with. One that has been replaced is closed when it is done with
    its last request. An instance may be forked, as long as nobody else is using it.

    Args:
        path: the configuration file.
        threads: requests that the server answers at once.

    Raises:
        ConfigurationError: if the application cannot be built.
    """

    def __init__(self, path: Path, threads: int = 8) -> None:
        self._path: Final = path
        self._threads: Final = threads
        # A fork of this process does what its parent did before: that is no further reload.
        self._process: Final = os.getpid()
        self._counting: Final = threading.Lock()
        self._building: Final = threading.Lock()
        self._next_look = 0.0
        self._trouble = ""
        self._retry_at = 0.0
        self._in_force: _Stamp = {}
        self._seen: _Stamp = {}
        self._version = _Version(self._build())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._counting:
            version = self._version
            version.users += 1
        try:
            # What comes back is whole: nothing of the answer is made later.
            return version.application(environ, start_response)
        finally:
            with self._counting:
                version.users -= 1
                is_done = version.is_replaced and version.users == 0
            if is_done:
                version.application.close()

    def look(self) -> bool:
        """Build it anew if its files have changed, at most once a second. Without success the log has one line.

        Returns:
            Whether another application is in force now.
        """
        now = time.monotonic()
        if now < self._next_look or not self._building.acquire(blocking=False):
            # Whoever finds another thread building goes on with what is in force.
            return False
        try:
            self._next_look = now + LOOK_INTERVAL
            return self._is_due(now) and self._try(now)
        finally:
            self._building.release()

    def reload(self) -> bool:
        """Build it anew now. Without success the log has one line.

        Returns:
            Whether another application is in force now.
        """
        with self._building:
            self._trouble = ""
            return self._try(time.monotonic())

    def troubles(self) -> dict[str, str]:
        """Return for each account source and store why it is down; empty if it is up."""
        return self._version.application.health.troubles()

    def close(self) -> None:
        """Let go of what the application holds; no request is answered afterwards."""
        self._version.application.close()

    def _is_due(self, now: float) -> bool:
        stamp = _take_stamp(self._in_force)
        if stamp == self._in_force:
            self._seen = stamp
            return bool(self._trouble) and now >= self._retry_at
        is_settled = stamp == self._seen or _age(stamp) > _SETTLED
        self._seen = stamp
        return is_settled

    def _try(self, now: float) -> bool:
        try:
            application = self._build()
        except ConfigurationError as error:
            self._report(str(error))
        except Exception as error:
            # Only where and what kind: a stranger's text may hold a secret.
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._report(f"{type(error).__name__} in {place.filename}, line {place.lineno}; this is a defect")
        else:
            self._trouble = ""
            self._replace(application)
            self._count("good")
            return True
        self._retry_at = now + _RETRY_INTERVAL
        return False

    def _count(self, outcome: str) -> None:
        if os.getpid() == self._process:
            metrics().reloads.labels(outcome).inc()

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._count("failed")
            _log.error("%s; what was in force before stays in force", trouble, extra={"security": "reload_failed"})
        self._trouble = trouble

    def _build(self) -> Application:
        # Before anything is read: what changes meanwhile is found by the next look.
        before = _take_stamp({**self._in_force, self._path: ()})
        self._in_force = before
        config = load_config(self._path)
        self._in_force = _take_stamp(config.files()) | {
            path: stamp for path, stamp in before.items() if path in config.files()
        }
        self._seen = self._in_force
        return _application(config, self._threads)

    def _replace(self, application: Application) -> None:
        with self._counting:
            old, self._version = self._version, _Version(application)
            old.is_replaced = True
            is_done = old.users == 0
        _log.info("%s: read again, with all it names", self._path, extra={"security": "reload"})
        before, now = old.application.key_id, application.key_id
        if now != before:
            _log.warning("tokens are signed with the key %s now, before with %s", now, before, extra=_KEY_CHANGED)
        if is_done:
            old.application.close()


def _application(config: Config, threads: int) -> Application:
    now = time.time()
    application = Application(config.build(now, threads), config.server.proxies())
    for finding in config.findings(now):
        _log.warning("%s", finding)
    return application


def _take_stamp(paths: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    return {path: file_stamp(path) for path in paths}


def _age(stamp: _Stamp) -> float:
    """Return how long ago the last of these changes was, in seconds by the wall clock."""
    return time.time() - max((values[1] / 1e9 for values in stamp.values() if values), default=0.0)
