"""The log on standard error: one line per record, with UTC times, as JSON or for people.

Nothing that a client sends can break or forge a line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from enum import StrEnum
from functools import lru_cache
from typing import Final, TextIO

from tokenissuer.web.record import LogLine, quoted, shortened, timestamp

#: Seconds for which lines are collected before they are written.
BATCH_SECONDS: Final = 0.05
#: Records that may wait to be written; then requests wait too.
MAX_QUEUED: Final = 50_000
#: Seconds that a flush waits for a terminal or pipe that does not accept lines.
FLUSH_TIMEOUT: Final = 2.0
#: Characters of a line in which no field is worth shortening.
_SHORT_LINE: Final = 800
#: Characters kept of a message.
_MAX_MESSAGE: Final = 8000

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]|\\")

# What a reader on a terminal looks for first, in columns of these widths.
_COLUMNS: Final = (("status", 3), ("method", 4), ("path", 10), ("client", 15), ("who", 20), ("security", 13))


class LogFormat(StrEnum):
    """How lines are written."""

    #: Text on a terminal, else JSON.
    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


class JsonFormatter(logging.Formatter):
    """Writes each record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        head = f'{{"time": "{timestamp(record.created)}", {_origin(record.levelname, record.name, record.process)}'
        if security := _security(record):
            head += f'"security": "{security}", '
        if not isinstance(record.msg, LogLine):
            return f'{head}"message": {json.dumps(_message(record))}}}'
        fields = json.dumps(record.msg)
        if len(fields) > _SHORT_LINE:
            fields = json.dumps({name: shortened(name, value) for name, value in record.msg.items()})
        return head + fields[1:]


class TextFormatter(logging.Formatter):
    """Writes each record as one line for people: requests in columns, the rest as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        head = f"{timestamp(record.created)} {record.levelname:<7}"
        security = _security(record)
        if not isinstance(record.msg, LogLine):
            text = _UNPRINTABLE.sub(_escaped, _message(record))
            return f"{head} {record.name} {text}{f' security={security}' if security else ''}"
        fields = record.msg
        shown = {**fields, "who": fields.get("account") or fields.get("username") or "", "security": security}
        cells = [quoted(shortened(name, shown.get(name, "") or "-")).ljust(width) for name, width in _COLUMNS]
        in_columns = {"account", "username"} | {name for name, _ in _COLUMNS}
        rest = LogLine({name: value for name, value in fields.items() if name not in in_columns and value != ""})
        return f"{head} {' '.join(cells)} {rest}"


class LineHandler(logging.Handler):
    """Writes lines in batches, in one thread: no request waits for the disk or the terminal.

    An error is written before the call returns. A process that is killed loses at most the lines of the last
    `BATCH_SECONDS`.

    Args:
        stream: where to write.
        form: how.
    """

    _queue: queue.SimpleQueue[str | threading.Event]
    _has_thread: bool

    def __init__(self, stream: TextIO, form: LogFormat = LogFormat.AUTO) -> None:
        super().__init__()
        self._stream: Final = stream
        is_text = form is LogFormat.TEXT or (form is LogFormat.AUTO and _is_terminal(stream))
        self.setFormatter(TextFormatter() if is_text else JsonFormatter())
        self._begin()
        # A fork has none of the threads, and the parent writes what is in its own queue.
        os.register_at_fork(after_in_child=self._begin)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record's line over."""
        try:
            # Here, not in the thread: hundreds formatted at once would keep all requests waiting.
            line = f"{self.format(record)}\n"
        except Exception:
            # A record that a library has made wrongly must not fail what it reports.
            return
        # No thread before the first request: if a server forked while that held Python's lock, its child would hang.
        if not self._has_thread and isinstance(record.msg, LogLine):
            # If no thread can start, requests write their lines themselves.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._write_batches, name="log", daemon=True).start()
                self._has_thread = True
        if not self._has_thread:
            self._write(line)
            return
        self._queue.put(line)
        if record.levelno >= logging.ERROR or self._queue.qsize() > MAX_QUEUED:
            self.flush()

    def flush(self) -> None:
        """Wait until everything handed over has been written."""
        if self._has_thread and threading.current_thread().name != "log":
            written = threading.Event()
            self._queue.put(written)
            written.wait(FLUSH_TIMEOUT)

    def _begin(self) -> None:
        self._queue = queue.SimpleQueue()
        self._has_thread = False

    def _write_batches(self) -> None:
        while True:
            batch = [self._queue.get()]
            if isinstance(batch[0], str):
                time.sleep(BATCH_SECONDS)
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._queue.get_nowait())
            self._write("".join(item for item in batch if isinstance(item, str)))
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()

    def _write(self, lines: str) -> None:
        # Nobody can be told when this fails: this is the log.
        with contextlib.suppress(Exception):
            self._stream.write(lines)
            self._stream.flush()


def log_to_stderr(level: str, form: LogFormat = LogFormat.AUTO) -> None:
    """Write the whole program's log to standard error.

    Args:
        level: debug, info, warning or error.
        form: how.
    """
    # A message that cannot be formatted must not show its arguments.
    logging.raiseExceptions = False
    # No line shows thread or program name, and each costs time for each record.
    logging.logThreads = logging.logMultiprocessing = False
    logging.basicConfig(level=level.upper(), handlers=[LineHandler(sys.stderr, form)], force=True)
    # It warns at every busy moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def log_under_wsgi() -> None:
    """Write tokenissuer's log to standard error, unless the host program has set up logging."""
    ours = logging.getLogger("tokenissuer")
    if not ours.hasHandlers():
        ours.addHandler(LineHandler(sys.stderr))
        ours.setLevel(logging.INFO)


def _is_terminal(stream: TextIO) -> bool:
    # Apache's stream has no such method.
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty())


def _security(record: logging.LogRecord) -> str:
    """Return what the record means to those who watch for attacks and outages; empty if nothing."""
    return str(getattr(record, "security", ""))


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        # Not its text: it may have what a client sent.
        text += f" ({record.exc_info[0].__name__})"
    return text[:_MAX_MESSAGE]


@lru_cache(maxsize=64)
def _origin(level: str, logger: str, process: int | None) -> str:
    return f"{json.dumps({'level': level.lower(), 'logger': logger, 'process': process})[1:-1]}, "


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
