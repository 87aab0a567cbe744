"""One line of the log: a record as text or as JSON, which nothing that was sent can break or forge."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

#: Characters kept of a field; of those that list resources more.
MAX_FIELD: Final = 500
MAX_LIST: Final = 1500
_LISTS: Final = frozenset({"asked", "granted", "refused", "reason"})
#: Characters of any other message.
_MAX_MESSAGE: Final = 8000

_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]+", re.ASCII)
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]|\\")

# What a reader on a terminal looks for first, in columns of these widths.
_COLUMNS: Final = (("status", 3), ("method", 4), ("path", 10), ("client", 15), ("who", 20), ("security", 13))


def logfmt(fields: Mapping[str, object]) -> str:
    """Write fields as `name=value`, in quotes where a value could be taken for more than one."""
    return " ".join(f"{name}={_quoted(_kept(name, value))}" for name, value in fields.items())


class JsonFormatter(logging.Formatter):
    """Writes each record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        if security := _security(record):
            line["security"] = security
        fields = _fields(record)
        if fields:
            line |= {name: _kept(name, value) for name, value in fields.items() if name not in line}
        else:
            line["message"] = _message(record)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Writes each record as one line for people: requests in columns, the rest as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        head = f"{_moment(record)} {record.levelname:<7}"
        fields = _fields(record)
        security = _security(record)
        if not fields:
            text = _UNPRINTABLE.sub(_escaped, _message(record))
            return f"{head} {record.name} {text}{f' security={security}' if security else ''}"
        shown = {**fields, "who": fields.get("account") or fields.get("username") or "", "security": security}
        cells = [_quoted(_kept(name, shown.get(name, "") or "-")).ljust(width) for name, width in _COLUMNS]
        in_columns = {"account", "username"} | {name for name, _ in _COLUMNS}
        rest = {name: value for name, value in fields.items() if name not in in_columns and value != ""}
        return f"{head} {' '.join(cells)} {logfmt(rest)}"


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _security(record: logging.LogRecord) -> str:
    """Return what this is to those who watch for attacks and outages; empty if nothing."""
    return str(getattr(record, "security", ""))


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        # Not its text: it may hold what a client sent.
        text += f" ({record.exc_info[0].__name__})"
    return text[:_MAX_MESSAGE]


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _kept(name: str, value: object) -> object:
    if isinstance(value, int):
        return value
    text = str(value)
    most = MAX_LIST if name in _LISTS else MAX_FIELD
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
