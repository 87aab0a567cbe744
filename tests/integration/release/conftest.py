"""What a release is made of: packages for installers that have no network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def pip(*arguments: str, python: str = sys.executable, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a Python's pip with the machine's own settings, which say where the index is."""
    return subprocess.run(
        [python, "-m", "pip", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
    )


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Fetches the pinned packages, as files, for a Python."""

    @cache
    def fetch(python: str) -> Path:
        folder = tmp_path_factory.mktemp("wheels")
        for name in ("requirements.txt", "requirements-build.txt"):
            options = ("--quiet", "--require-hashes", "--dest", str(folder), "-r", str(ROOT / "conf" / name))
            got = pip("download", *options, python=python)
            if got.returncode:
                if "HASH" in got.stderr.upper():
                    pytest.fail(f"the pins of conf/{name} do not hold:\n{got.stderr}", pytrace=False)
                pytest.skip(f"no package index can be reached: {got.stderr.strip().splitlines()[-1:]}")
        return folder

    return fetch
