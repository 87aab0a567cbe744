"""Logins that refresh tokens keep up end with their entry in a real directory, and not with the directory's outages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.ldap.conftest import PEOPLE, Slapd
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, LoginEnded
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
from tokenissuer.sessions.tokens import Client, RefreshOptions, RefreshTokens
from tokenissuer_backends.ldap import LdapBackend

pytestmark = pytest.mark.integration

CLIENT = Client("registry", "docker", "Docker-Client/28", "192.0.2.1")


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[RefreshTokens]:
    """Refresh tokens, and a store for them."""
    store = SqliteStore(SqliteOptions(tmp_path / "refresh.sqlite3"))
    yield RefreshTokens(store, RefreshOptions(10**6, 10**6))
    store.close()


def test_a_login_ends_with_its_entry_and_survives_outages_and_guessing(
    new_slapd: Callable[..., Slapd], new_backend: Callable[..., LdapBackend], tokens: RefreshTokens
) -> None:
    """Locked by an administrator, removed, or with another password; but not for what strangers can bring about."""
    slapd = new_slapd()
    source = CachedBackend("ldap", new_backend(slapd.tls))
    chain = Chain([source])

    def change(user: str, ldif: str) -> None:
        slapd.change("ldapmodify", f"dn: uid={user},{PEOPLE}\n{ldif}\n")

    def redeem(user: str) -> str:
        return tokens.redeem(kept[user], chain, CLIENT).account.name

    kept = {}
    for user in ("bob", "carol", "dave", "erin", "victim"):
        # Only since the directory keeps the time of a change can it be seen.
        assert not tokens.issue(Login(source.backend.authenticate(user, f"pw-{user}"), source), "", CLIENT)
        change(user, f"changetype: modify\nreplace: userPassword\nuserPassword: new-{user}")
        login = Login(source.backend.authenticate(user, f"new-{user}"), source)
        kept[user] = tokens.issue(login, "", CLIENT)
        assert kept[user]
    with slapd.gone():
        for user in kept:
            with pytest.raises(BackendUnavailable):
                redeem(user)
    for number in range(6):
        with pytest.raises(InvalidCredentials):
            source.backend.authenticate("victim", f"guess-{number}")
    with pytest.raises(InvalidCredentials, match="locked"):
        source.backend.authenticate("victim", "new-victim")
    assert [redeem(user) for user in kept] == [*kept]
    change("bob", "changetype: modify\nreplace: pwdAccountLockedTime\npwdAccountLockedTime: 000001010000Z")
    change("carol", "changetype: delete")
    # The directory counts whole seconds.
    time.sleep(1.1)
    change("dave", "changetype: modify\nreplace: userPassword\nuserPassword: again")
    for user in ("bob", "carol", "dave"):
        with pytest.raises(LoginEnded):
            redeem(user)
    change("bob", "changetype: modify\ndelete: pwdAccountLockedTime")
    with pytest.raises(LoginEnded, match="locked"):
        redeem("bob")
    assert redeem("erin") == "erin"
