"""What a check of the set-up found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    #: Nothing to mend.
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or soon will be, or good to know.

    Args:
        severity: an error stops somebody now, a warning may, an info is good to know.
        subject: the file, table or account it is about.
        fact: what was found, with the values.
        remedy: what to do; empty where the fact says it.
    """

    severity: Severity
    subject: str
    fact: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject}: {self.fact}{'; ' if self.remedy else ''}{self.remedy}"
