"""`tokenissuer sessions`: what it says of logins, whatever clients have called themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Login
from tokenissuer.cli import main
from tokenissuer.config import load_config
from tokenissuer.sessions.tokens import Client

HOSTILE = "docker\x1b[2J\r\n\u2028\u202e\u200b\x9b\u2066 good"


class Known(Backend):
    """Finds every account."""

    def authenticate(self, username: str, password: str) -> Account:
        raise AssertionError

    def lookup(self, name: str, password: str) -> Account:
        return Account(name, password_version="x")


def test_no_client_can_dress_the_list_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No new lines, nothing that moves the cursor, turns text round or hides it."""
    assert main(["init", str(tmp_path)]) == 0
    config = load_config(tmp_path / "tokenissuer.toml")
    assert config.refresh is not None
    tokens = config.open_refresh()
    assert tokens is not None
    login = Login(Account("alice", password_version="x"), CachedBackend("htpasswd", Known(None)))
    for client in (Client("container_registry", HOSTILE, "", ""), Client("container_registry", "", HOSTILE, HOSTILE)):
        tokens.issue(login, "", client)
    tokens.store.close()
    capsys.readouterr()
    assert main(["sessions", "list", "--config", str(config.path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 3
    assert all(line.isprintable() for line in out.splitlines())
    assert main(["sessions", "list", "--client", HOSTILE, "--config", str(config.path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
