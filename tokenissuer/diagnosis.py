"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic


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

    def __str__(self) -> str:
        took = "" if self.seconds is None else f" ({self.seconds * 1000:.1f} ms)"
        return f"{self.severity}: {self.subject}: {self.fact}{took}{'; ' if self.remedy else ''}{self.remedy}"


Findings = Iterator[Finding]


@dataclass(slots=True)
class Stopwatch:
    """Measures steps one after the other."""

    started: float = field(default_factory=monotonic)

    def lap(self) -> float:
        """Return the seconds since the previous lap, and start the next."""
        before, self.started = self.started, monotonic()
        return self.started - before
