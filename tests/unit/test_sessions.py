"""`tokenissuer sessions`: what it says of logins, whatever clients have called themselves."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.support.cli import Run, failed
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Login
from tokenissuer.cli import main
from tokenissuer.config import load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
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


def test_a_store_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    """By root it would be root's, and `serve` could not open it."""
    assert run("init", tmp_path)[0] == 0
    path = tmp_path / "refresh.sqlite3"
    config = ("--config", tmp_path / "tokenissuer.toml")
    assert run("sessions", "list", *config) == (0, f"there are no sessions yet: `serve` has not made {path}\n", "")
    # Whoever revokes must not believe that something has ended.
    failed(run("sessions", "revoke", "--all", *config), "there are no sessions yet", str(path))
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("foreign", ["file", "folder"])
def test_a_store_of_another_user_is_named_with_its_owner(open_folder: Path, foreign: str) -> None:
    """And with the user that serves."""
    nobody = pwd.getpwnam("nobody")
    folder = open_folder / "state"
    folder.mkdir()
    path = folder / "refresh.sqlite3"
    if foreign == "file":
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        path.touch(0o600)
    os.seteuid(nobody.pw_uid)
    try:
        with pytest.raises(ConfigurationError) as raised:
            SqliteStore(SqliteOptions(path))
    finally:
        os.seteuid(0)
    wrong = path if foreign == "file" else folder
    assert f"{wrong} belongs to root (mode 0" in str(raised.value)
    assert f"nobody is to write it: chown nobody {wrong}" in str(raised.value)
