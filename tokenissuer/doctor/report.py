"""What `tokenissuer doctor` prints: for a terminal, for a file or a pipe, for a program."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, TextIO

from tokenissuer.diagnosis import Finding, Severity, one_line
from tokenissuer.doctor.examination import Result

#: Seconds between two signs of life while a check waits.
_TICK: Final = 0.2

_COLOURS: Final = {"ok": 32, "warning": 33, "error": 31, "skipped": 2, "info": 2}
_SIGNS: Final = {"ok": "✓", "warning": "!", "error": "✗", "skipped": "-"}
_PLAIN_SIGNS: Final = {"ok": "+", "warning": "!", "error": "x", "skipped": "-"}
_WIDTH: Final = 16


class Report(ABC):
    """Writes results as they come.

    Args:
        out: where to.
    """

    def __init__(self, out: TextIO) -> None:
        self._out: Final = out

    def during(self, title: str, work: Callable[[], Result]) -> Result:
        """Run a check, and show that it runs.

        Args:
            title: what it looks at.
            work: runs it.
        """
        return work()

    @abstractmethod
    def add(self, result: Result) -> None:
        """Write the result of one check."""

    @abstractmethod
    def end(self, login: str, *, is_good: bool) -> None:
        """Write the end.

        Args:
            login: the command with which people log in; empty if it is not known.
            is_good: whether there was neither an error nor a warning.
        """

    def _write(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()


class PlainReport(Report):
    """One line for each finding, and for each check without one."""

    def add(self, result: Result) -> None:
        """Write the result of one check."""
        for finding in result.outcome.findings:
            self._write(str(finding))
        if result.outcome.severity is Severity.INFO:
            text = result.outcome.skipped or result.outcome.note
            self._write(one_line(f"{result.state}: {result.title}: {text}"))

    def end(self, login: str, *, is_good: bool) -> None:
        """Write the end."""
        self._write(_last_line(login, is_good))


class TerminalReport(Report):
    """A sign for each check, findings below it, and progress while it waits.

    Args:
        out: the terminal.
    """

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        # https://no-color.org
        self._has_colours: Final = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._moves: Final = os.environ.get("TERM") != "dumb"
        try:
            "✓✗→".encode(out.encoding or "ascii")
            self._signs, self._arrow = _SIGNS, "→"
        except (UnicodeEncodeError, LookupError):
            self._signs, self._arrow = _PLAIN_SIGNS, "->"

    def during(self, title: str, work: Callable[[], Result]) -> Result:
        """Run a check; after a moment, show how long it has run."""
        if not self._moves:
            return work()
        ended = threading.Event()

        def show() -> None:
            passed = 0.0
            while not ended.wait(_TICK):
                passed += _TICK
                self._out.write(f"\r\x1b[K  {title} ... {passed:.0f} s")
                self._out.flush()

        shower = threading.Thread(target=show, daemon=True)
        shower.start()
        try:
            return work()
        finally:
            ended.set()
            shower.join()
            self._out.write("\r\x1b[K")

    def add(self, result: Result) -> None:
        """Write the result of one check."""
        state, outcome = result.state, result.outcome
        text = outcome.skipped or (outcome.note if outcome.severity is Severity.INFO else "")
        sign = self._coloured(self._signs[state], state)
        self._write(f"{sign} {result.title:<{_WIDTH}}{one_line(text)}".rstrip())
        for finding in outcome.findings:
            self._write_finding(finding)

    def end(self, login: str, *, is_good: bool) -> None:
        """Write the end."""
        self._write(f"\n{_last_line(login, is_good)}")

    def _write_finding(self, finding: Finding) -> None:
        severity = str(finding.severity)
        self._write(f"    {self._coloured(severity, severity)}: {finding.observation}")
        if finding.remedy:
            self._write(f"      {self._arrow} {one_line(finding.remedy)}")

    def _coloured(self, text: str, state: str) -> str:
        return f"\x1b[{_COLOURS[state]}m{text}\x1b[0m" if self._has_colours else text


class JsonReport(Report):
    """One JSON document."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._checks: Final[list[dict[str, Any]]] = []

    def add(self, result: Result) -> None:
        """Keep the result of one check."""
        self._checks.append(
            {
                "check": result.title,
                "state": result.state,
                "note": result.outcome.note if result.state == "ok" else "",
                "skipped": result.outcome.skipped,
                "seconds": round(result.seconds, 3),
                "findings": [asdict(finding) for finding in result.outcome.findings],
            }
        )

    def end(self, login: str, *, is_good: bool) -> None:
        """Write the document."""
        self._write(json.dumps({"ok": is_good, "checks": self._checks, "login": login}, indent=2))


def _last_line(login: str, is_good: bool) -> str:
    if not login:
        return "Add --registry URL, and the last line is the command with which people log in."
    return login if is_good else f"When this is corrected, people log in with:\n{login}"
