"""What a check found, and what to do about it."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Final


def one_line(text: str) -> str:
    """Return a text as one line for a terminal or a log, whatever a file or a user has written."""
    # What is not printable moves the cursor, ends a line, turns text round or hides it.
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    #: Nothing to correct.
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check.

    Args:
        severity: an error stops somebody now, a warning may do so, an info is good to know.
        subject: the file, table, server or account.
        fact: what was found, with the values.
        remedy: what to do; empty if there is nothing to do.
        seconds: how long the step took; None if that says nothing.
    """

    severity: Severity
    subject: str
    fact: str
    remedy: str = ""
    seconds: float | None = None

    @property
    def observation(self) -> str:
        """What was found where, in one line."""
        took = "" if self.seconds is None else f" ({self.seconds * 1000:.1f} ms)"
        return one_line(f"{self.subject}: {self.fact}{took}")

    @property
    def text(self) -> str:
        """Everything but the severity, in one line."""
        return f"{self.observation}{'; ' if self.remedy else ''}{one_line(self.remedy)}"

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


Findings = Iterator[Finding]

_LEVELS: Final = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.INFO: logging.INFO}


def log_findings(log: logging.Logger, findings: Iterable[Finding]) -> None:
    """Write findings to the log, each at its own level."""
    for finding in findings:
        log.log(_LEVELS[finding.severity], "%s", finding.text)


@dataclass(slots=True)
class Stopwatch:
    """Measures steps one after the other."""

    started: float = field(default_factory=monotonic)

    def lap(self) -> float:
        """Return the seconds since the previous lap, and start the next."""
        before, self.started = self.started, monotonic()
        return self.started - before


def secret_findings(path: Path, content: str) -> Findings:
    """Report on who may read or change a file that holds a secret.

    Args:
        path: the file; none need be there.
        content: what is in it.
    """
    if path.is_file() and (mode := stat.S_IMODE(path.stat().st_mode)) & (stat.S_IRWXO | stat.S_IWGRP):
        yield Finding(
            Severity.ERROR,
            str(path),
            f"others can read or change {content} (mode {mode:04o})",
            f"run: chmod o-rwx,g-w {path}",
        )


def control_findings(path: Path) -> Findings:
    """Report on who may change a file or folder that decides who may do what.

    Args:
        path: the file or folder; none need be there.
    """
    if not path.exists():
        return
    status = path.stat()
    # A group of the owner's own name has no other members.
    others = stat.S_IWOTH if status.st_gid in (0, status.st_uid) else stat.S_IWOTH | stat.S_IWGRP
    # Whoever may write into a folder may replace its files, unless it is one like /tmp.
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        yield Finding(
            Severity.ERROR,
            str(path),
            f"others can change it (mode {stat.S_IMODE(status.st_mode):04o}), and with it who may push and pull",
            f"run: chmod go-w {path}",
        )
