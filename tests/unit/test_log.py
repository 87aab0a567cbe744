"""Lines of the log: whole, one for each record, as JSON or for people."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from typing import Any

import pytest

from tokenissuer.monitoring.log import JsonFormatter, LineHandler, LogFormat, TextFormatter
from tokenissuer.web.record import LogLine

HOSTILE = [
    "a\nb",
    "a\r\n2026-01-01T00:00:00.000Z INFO forged",
    "\x1b[2J\x9b1;1H",
    'quote" and \\ backslash',
    "nul\0 del\x7f c1\x85",
    "\N{LINE SEPARATOR}\N{RIGHT-TO-LEFT OVERRIDE}\N{SNOWMAN}",
    "\ud800 lone surrogate",
    "x" * 100_000,
]
FIELDS: dict[str, object] = {
    "request_id": "00112233",
    "status": 401,
    "method": "GET",
    "path": "/token",
    "client": "192.0.2.1",
    "username": "bob",
    "reason": "the password is wrong",
    "jti": "",
    "duration_ms": 3,
}


def record(message: str | LogLine, *arguments: object, **extra: object) -> logging.LogRecord:
    """A record as a logger makes it."""
    made = logging.LogRecord("tokenissuer.requests", logging.INFO, "app.py", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def as_json(text: str) -> dict[str, Any]:
    """A line, read again."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_no_record_breaks_or_forges_a_line(formatter: logging.Formatter, value: str) -> None:
    """In a field, in a field's place for names, or in any other message."""
    for made in (
        record(LogLine({**FIELDS, "username": value, "requested": value, "account": value})),
        record("said: %s", value),
        record("said: %s", value, security="outage"),
    ):
        line = formatter.format(made)
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 100_000


def test_json_has_every_field_as_it_was() -> None:
    """Numbers as numbers."""
    line = as_json(JsonFormatter().format(record(LogLine(FIELDS), security="throttled")))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "tokenissuer.requests",
        "process": os.getpid(),
        "security": "throttled",
        **FIELDS,
    }


def test_json_has_other_messages_too() -> None:
    """With a mark where somebody watches for it."""
    line = as_json(JsonFormatter().format(record("%s has changed", "it", security="reload")))
    assert (line["message"], line["security"]) == ("it has changed", "reload")
    assert "security" not in as_json(JsonFormatter().format(record("x")))


def test_text_stands_in_columns() -> None:
    """The same things below each other, whoever asks."""
    lines = [
        TextFormatter().format(record(LogLine({**FIELDS, "username": name, "status": status})))
        for name, status in (("bob", 401), ("alice-of-accounting", 200), ("", 404))
    ]
    assert len({line.index("request_id=") for line in lines}) == 1
    assert len({line.index("192.0.2.1") for line in lines}) == 1
    assert " 401 GET  /token     192.0.2.1       bob " in lines[0]
    assert "jti=" not in lines[0]
    assert 'reason="the password is wrong"' in lines[0]


def test_an_exception_is_named_and_not_quoted() -> None:
    """Its text may hold what a client sent."""
    try:
        raise ValueError("planted")
    except ValueError:
        made = logging.LogRecord("x", logging.ERROR, "x.py", 1, "it failed", (), sys.exc_info())
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(made)
        assert "ValueError" in line
        assert "planted" not in line


class Terminal(io.StringIO):
    """Looks like one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "form", "is_json"),
    [
        (io.StringIO(), LogFormat.AUTO, True),
        (Terminal(), LogFormat.AUTO, False),
        (Terminal(), LogFormat.JSON, True),
        (io.StringIO(), LogFormat.TEXT, False),
    ],
)
def test_people_read_terminals_and_machines_the_rest(stream: io.StringIO, form: LogFormat, is_json: bool) -> None:
    """Unless somebody says otherwise."""
    handler = LineHandler(stream, form)
    handler.handle(record("hello"))
    handler.flush()
    handler.close()
    assert stream.getvalue().startswith("{") is is_json
    assert stream.getvalue().count("\n") == 1


def test_a_record_that_cannot_be_formatted_takes_no_other_with_it() -> None:
    """Lines are written in batches."""
    stream = io.StringIO()
    handler = LineHandler(stream, LogFormat.JSON)
    for made in (record("before"), record("%d", "not a number"), record("after")):
        handler.handle(made)
    handler.flush()
    assert [as_json(line)["message"] for line in stream.getvalue().splitlines()] == ["before", "after"]


def test_no_thread_is_started_before_the_first_request() -> None:
    """Servers that fork do it before that."""
    stream = io.StringIO()
    handler = LineHandler(stream, LogFormat.JSON)
    before = set(threading.enumerate())
    handler.handle(record("a finding"))
    assert as_json(stream.getvalue())["message"] == "a finding"
    assert set(threading.enumerate()) <= before
    for number in range(100):
        handler.handle(record(LogLine({**FIELDS, "number": number})))
    handler.handle(record("another finding"))
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["log"]
    handler.flush()
    lines = [as_json(line) for line in stream.getvalue().splitlines()]
    assert [line["number"] for line in lines[1:-1]] == list(range(100))
    assert lines[-1]["message"] == "another finding"
