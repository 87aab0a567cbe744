"""The log on standard error: one line per record, with UTC times, as JSON or for people.

Nothing that a client sends can break or forge a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TextIO

from tokenissuer.web.record import LogLine, quoted, shortened

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
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        if security := _security(record):
            line["security"] = security
        if isinstance(record.msg, LogLine):
            line |= {name: shortened(name, value) for name, value in record.msg.items() if name not in line}
        else:
            line["message"] = _message(record)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Writes each record as one line for people: requests in columns, the rest as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        head = f"{_time(record)} {record.levelname:<7}"
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


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record in one piece.

    Args:
        stream: where to.
        form: how.
    """

    def __init__(self, stream: TextIO, form: LogFormat = LogFormat.AUTO) -> None:
        super().__init__(stream)
        is_text = form is LogFormat.TEXT or (form is LogFormat.AUTO and _is_terminal(stream))
        self.setFormatter(TextFormatter() if is_text else JsonFormatter())


def log_to_stderr(level: str, form: LogFormat = LogFormat.AUTO) -> None:
    """Write the whole program's log to standard error.

    Args:
        level: debug, info, warning or error.
        form: how.
    """
    # A message that cannot be formatted must not show its arguments.
    logging.raiseExceptions = False
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


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
