"""The log, on standard error: one line each, with UTC times, as JSON or for people."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, TextIO

from tokenissuer.line import JsonFormatter, TextFormatter


class LogFormat(StrEnum):
    """How lines are written."""

    #: For people if it goes to a terminal, else JSON.
    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


class LineHandler(logging.Handler):
    """Writes each record in one piece, also beside other processes that were forked from this one.

    Args:
        stream: where to.
        form: how.
    """

    def __init__(self, stream: TextIO, form: LogFormat = LogFormat.AUTO) -> None:
        super().__init__()
        self._stream: Final = stream
        # A lock of this kind ends with its process, however that ends. In memory: there may be no disk to write to.
        self._turns: Final = _nameless_file()
        is_text = form is LogFormat.TEXT or (form is LogFormat.AUTO and _is_terminal(stream))
        self.setFormatter(TextFormatter() if is_text else JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            line = self.format(record) + "\n"
            with self._turn():
                self._stream.write(line)
                self._stream.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._turns)
        super().close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        fcntl.lockf(self._turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._turns, fcntl.LOCK_UN)


def log_to_stderr(level: str, form: LogFormat = LogFormat.AUTO) -> None:
    """Write the whole program's log to standard error.

    Args:
        level: debug, info, warning or error.
        form: how.
    """
    # A message that cannot be made must not show its arguments.
    logging.raiseExceptions = False
    logging.basicConfig(level=level.upper(), handlers=[LineHandler(sys.stderr, form)], force=True)
    # It warns at every busy moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def log_beside_others() -> None:
    """Write our own log to standard error, unless whoever runs us has set up logging."""
    ours = logging.getLogger("tokenissuer")
    if not ours.hasHandlers():
        ours.addHandler(LineHandler(sys.stderr))
        ours.setLevel(logging.INFO)


def _is_terminal(stream: TextIO) -> bool:
    # Apache's has no such method.
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty())


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tokenissuer-log")
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor
