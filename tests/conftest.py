"""What holds for all tests: they test one installation, not a mixture of two."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenissuer
import tokenissuer_backends


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop when core and backends come from different places (`python -m pytest` puts the source tree first)."""
    core, backends = (Path(package.__path__[0]).resolve().parent for package in (tokenissuer, tokenissuer_backends))
    if core != backends:
        raise pytest.UsageError(
            f"tokenissuer comes from {core} but tokenissuer_backends from {backends}: "
            "run tests/run, or the pytest command of the environment both are installed in"
        )
