"""One step of trying a source out: what was tried, how long it took, how it ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried.

    Args:
        subject: the server or account it is about.
        attempt: what was tried.
        seconds: how long it took.
        fact: what came of it.
        trouble: why it failed; empty if it did not.
    """

    subject: str
    attempt: str
    seconds: float
    fact: str = ""
    trouble: str = ""
