"""What all tests share: one installation, a key pair, a set-up in a folder, the openssl program."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import tokenissuer
import tokenissuer_backends
from tests.support.cli import Run
from tests.support.keys import SAMPLE_KEY, certificate_for, pem
from tokenissuer.cli import main
from tokenissuer.signing.keys import KeyType, SigningKey, generate_private_key, private_pem, self_signed_certificate


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop when core and backends come from different places (`python -m pytest` puts the source tree first)."""
    core, backends = (Path(package.__path__[0]).resolve().parent for package in (tokenissuer, tokenissuer_backends))
    if core != backends:
        raise pytest.UsageError(
            f"tokenissuer comes from {core} but tokenissuer_backends from {backends}: "
            "run tests/run, or the pytest command of the environment both are installed in"
        )


CONFIGURATION = """\
[issuer]
name = "test-issuer"
services = ["registry.example"]
realm = "https://auth.example.com/token"

[signing]
key = "auth.key"
certificate = "auth.crt"

[[backends]]
type = "htpasswd"
path = "users.htpasswd"

[[access]]
authenticated = true
repositories = ["{account}/**"]
actions = ["pull", "push"]
"""


@pytest.fixture(scope="session")
def key() -> SigningKey:
    """A key pair as `init` makes it."""
    private = generate_private_key(KeyType.EC)
    return SigningKey(private, self_signed_certificate(private, "test-issuer", time.time()))


@pytest.fixture(scope="session")
def hash_of() -> Callable[[str], str]:
    """A cheap bcrypt hash of a password."""
    return lambda password: bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


@pytest.fixture
def set_up(tmp_path: Path, key: SigningKey, hash_of: Callable[[str], str]) -> Path:
    """A folder with a good set-up in it; `alice` has the password `right`."""
    folder = tmp_path / "set-up"
    folder.mkdir()
    (folder / "tokenissuer.toml").write_text(CONFIGURATION)
    (folder / "auth.key").write_bytes(private_pem(key.private))
    (folder / "auth.crt").write_bytes(key.certificate.public_bytes(Encoding.PEM))
    # Good enough for `check`, which calls a cheap hash weak.
    (folder / "users.htpasswd").write_text(f"alice:{hash_of('right').replace('$2b$04$', '$2b$12$')}\n")
    for name in ("auth.key", "users.htpasswd"):
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are closed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def openssl(tmp_path: Path) -> Callable[..., str]:
    """Run the openssl program in the test's folder and return what it prints."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl program")

    def run(*arguments: str, stdin: str = "") -> str:
        ran = subprocess.run(
            [program, *arguments], cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The sample key in a file."""
    path = tmp_path / "auth.key"
    path.write_bytes(private_pem(SAMPLE_KEY))
    return path


@pytest.fixture
def certificate_file(tmp_path: Path) -> Path:
    """A certificate for the sample key in a file."""
    path = tmp_path / "auth.crt"
    path.write_bytes(pem(certificate_for(SAMPLE_KEY)))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error."""

    def ran(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return ran


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | bytes], None]]:
    """Let standard input be this, from a pipe."""
    with contextlib.ExitStack() as opened:

        def piped(text: str | bytes) -> None:
            reading, writing = os.pipe()
            os.write(writing, text.encode() if isinstance(text, str) else text)
            os.close(writing)
            monkeypatch.setattr(sys, "stdin", opened.enter_context(os.fdopen(reading, encoding="utf-8")))

        yield piped


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A password file with one account; the password is `pass`."""
    path = tmp_path / "users.htpasswd"
    path.write_text("alice:{SHA}nU4eI71bcnBGqeO0t9tXvY1u5oQ=\n")
    path.chmod(0o600)
    return path
