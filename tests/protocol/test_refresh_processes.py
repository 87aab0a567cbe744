"""Refresh tokens and processes that are killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.accounts import CLIENT, Directory, Person
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.errors import LoginEnded
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
from tokenissuer.sessions.tokens import RefreshOptions, RefreshTokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The store's file."""
    return tmp_path / "refresh.sqlite3"


WRITER = """
import sys
import time
from pathlib import Path
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.chain import Login
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.errors import StoreUnavailable
from tokenissuer.sessions.tokens import Client, RefreshOptions, RefreshTokens
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore


class Known(Backend):
    def authenticate(self, username, password):
        raise AssertionError

    def lookup(self, name, password):
        return Account(name, password_version="first")


tokens = RefreshTokens(SqliteStore(SqliteOptions(Path(sys.argv[1]))), RefreshOptions(10**6, 10**6))
login = Login(Account("alice", password_version="first"), CachedBackend("people", Known(None)))
client = Client("registry", "docker", "", "")
while True:
    try:
        kept = tokens.issue(login, "keep", client)
        print("kept", kept, flush=True)
        gone = tokens.issue(login, "keep", client)
        tokens.revoke(gone)
        print("gone", gone, flush=True)
    except StoreUnavailable:
        pass  # The other one writes without a pause: on a busy disk there is no turn in time.
    time.sleep(0.002)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(path: Path, tmp_path: Path) -> None:
    """Every token that was handed out still works, and no revoked one does, however often writers die."""
    said: list[list[str]] = []
    for turn in range(6):
        files = [tmp_path / f"said{turn}-{number}" for number in range(2)]
        with contextlib.ExitStack() as stack:
            for file in files:
                output = stack.enter_context(file.open("wb"))
                writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=output)
                # Also if the test fails: they never end by themselves.
                stack.callback(writer.wait)
                stack.callback(writer.send_signal, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while any(file.read_bytes().count(b"\n") < 8 + turn for file in files):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        for file in files:
            said += [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    store, directory = SqliteStore(SqliteOptions(path)), Directory(Person())
    tokens, chain = RefreshTokens(store, RefreshOptions(10**6, 10**6)), Chain([CachedBackend("people", directory)])
    assert len(said) >= 6 * 2 * 8
    for word, token in said:
        if word == "kept":
            assert tokens.redeem(token, chain, CLIENT).account.name == "alice"
        else:
            with pytest.raises(LoginEnded):
                tokens.redeem(token, chain, CLIENT)
    store.close()
