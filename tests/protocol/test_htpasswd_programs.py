"""Password files written by other programs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenissuer_backends.htpasswd import HtpasswdBackend, HtpasswdOptions
from tokenissuer_backends.htpasswd import hash as hash_module

SHA = "{SHA}nU4eI71bcnBGqeO0t9tXvY1u5oQ="  # pass


SPACED = "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss: w\N{SNOWMAN}rd"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """New hashes at the lowest cost."""
    monkeypatch.setattr(hash_module, "BCRYPT_COST", 4)


def opened(path: Path, groups: Path | None = None) -> HtpasswdBackend:
    return HtpasswdBackend(HtpasswdOptions(path, groups))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-5"], id="sha256"),
        pytest.param(["-6"], id="sha512"),
        pytest.param(["-apr1"], id="apr1"),
        pytest.param(["-6", "-salt", "rounds=1234$ab"], id="sha512-rounds"),
        pytest.param(["-5", "-salt", "rounds=1000$" + "x" * 16], id="sha256-rounds"),
        pytest.param(["-6", "-salt", "a"], id="short-salt"),
        pytest.param(["-apr1", "-salt", "ab"], id="short-apr1-salt"),
    ],
)
@pytest.mark.parametrize("password", ["plain", SPACED, "x" * 150], ids=["plain", "utf-8", "long"])
def test_hashes_of_openssl_are_understood(
    file: Path, openssl: Callable[..., str], arguments: list[str], password: str
) -> None:
    """`openssl passwd` is what people have at hand."""
    file.write_text(f"alice:{openssl('passwd', *arguments, '-stdin', stdin=password + chr(10))}")
    assert opened(file).authenticate("alice", password).name == "alice"


@pytest.mark.parametrize("flag", ["-B", "-m", "-s", "-2", "-5"])
def test_lines_of_apaches_htpasswd_are_understood(file: Path, flag: str) -> None:
    """Debian's apache2-utils has the program."""
    program = shutil.which("htpasswd")
    if program is None:
        pytest.skip("no htpasswd program")
    more = ["-C", "4"] if flag == "-B" else []
    subprocess.run([program, "-i", flag, *more, str(file), "bob"], input=SPACED.encode(), check=True, timeout=30)
    assert opened(file).authenticate("bob", SPACED).name == "bob"
