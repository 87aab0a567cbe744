"""The command line in a process of its own, and at a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import Run, failed
from tokenissuer_backends.htpasswd import hash as htpasswd_hash


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """New hashes at the lowest cost; and no configuration but the one named."""
    monkeypatch.setattr(htpasswd_hash, "BCRYPT_COST", 4)
    monkeypatch.delenv("TOKENISSUER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "no password on standard input", id="nothing"),
        pytest.param("\n", "empty", id="empty-line"),
        pytest.param("planted" * 11 + "\n", "77 bytes", id="too-long"),
        pytest.param("planted\0\n", "control character", id="nul"),
        pytest.param(b"planted\xff\n", "UTF-8", id="not-utf-8"),
    ],
)
def test_passwd_refuses_what_can_be_no_password(
    run: Run, set_up: Path, typed: Callable[[str | bytes], None], text: str | bytes, says: str
) -> None:
    """In one line, without it, and the file stays as it was."""
    before = (set_up / "users.htpasswd").read_bytes()
    typed(text)
    assert "planted" not in failed(run("passwd", "alice", "--config", set_up / "tokenissuer.toml"), says)
    assert (set_up / "users.htpasswd").read_bytes() == before


PROGRAM = [sys.executable, "-P", "-m", "tokenissuer"]


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        pytest.param([b"new-word\n", b"new-word\n"], 0, b"is set", id="twice-the-same"),
        pytest.param([b"new-word\n", b"other\n"], 1, b"the two passwords differ", id="two-different"),
        pytest.param([b"\x04"], 1, b"no password", id="end-of-input"),
        pytest.param([b"\x03"], 130, b"", id="ctrl-c"),
    ],
)
def test_passwd_asks_at_a_terminal(set_up: Path, answers: list[bytes], code: int, says: bytes) -> None:
    """Without showing what is typed, and without a traceback however it ends."""
    child, terminal = pty.fork()
    if child == 0:
        # Programs in the background of a script start with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(PROGRAM[0], [*PROGRAM, "passwd", "alice", "--config", str(set_up / "tokenissuer.toml")])
    seen = b""
    prompts = 0
    while True:
        if not select.select([terminal], [], [], 20)[0]:
            os.kill(child, signal.SIGKILL)
        try:
            piece = os.read(terminal, 1000)
        except OSError:
            break
        if not piece:
            break
        seen += piece
        if seen.count(b": ") > prompts and prompts < len(answers) and seen.endswith(b": "):
            # The prompt is written before the echo is put out by some, after by others.
            time.sleep(0.05)
            os.write(terminal, answers[prompts])
            prompts += 1
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (status, b"Traceback" in seen) == (code, False), seen
    assert says in seen
    assert b"new-word" not in seen


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
@pytest.mark.parametrize("encoding", ["", "ascii", "latin-1"])
def test_output_is_written_in_any_encoding(tmp_path: Path, locale: str, encoding: str) -> None:
    """The password is shown once: a letter the terminal does not have must not swallow it."""
    environ = {"LC_ALL": locale, "PYTHONIOENCODING": encoding, "PATH": os.environ["PATH"]}
    command = [*PROGRAM, "init", "new", "--account", "\N{SNOWMAN}"]
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"password: " in ran.stdout
