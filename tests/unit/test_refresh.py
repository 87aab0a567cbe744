"""Refresh tokens: what keeps them good, what ends them, and what their store reveals."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.accounts import ALICE, CLIENT, Directory, Person
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.errors import BackendUnavailable, ConfigurationError, LoginEnded
from tokenissuer.sessions.sqlite import _SCHEMA, SqliteOptions, SqliteStore
from tokenissuer.sessions.store import Session, load_store
from tokenissuer.sessions.tokens import TOUCH_INTERVAL, Client, RefreshOptions, RefreshTokens

DAY = 24 * 3600.0


class Clock:
    """A time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Everything around one account's refresh tokens."""

    tokens: RefreshTokens
    store: SqliteStore
    chain: Chain
    directory: Directory
    clock: Clock

    @property
    def person(self) -> Person:
        """What the source knows."""
        return self.directory.person

    def login(self, password: str = "the password", client: Client = CLIENT) -> str:
        """Log alice in and return her refresh token."""
        assert self.person.account is not None
        token = self.tokens.issue(Login(self.person.account, self.chain.backends[0]), password, client)
        self.directory.asked.clear()
        return token

    def without_version(self) -> None:
        """Let the source not tell when a password changes."""
        self.person.account = replace(ALICE, password_version="")

    def redeem(self, token: str, client: Client = CLIENT) -> Account:
        """Use a refresh token."""
        return self.tokens.redeem(token, self.chain, client).account

    @property
    def session(self) -> Session:
        """The only session."""
        (session,) = self.store.sessions()
        return session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The store's file."""
    return tmp_path / "refresh.sqlite3"


@pytest.fixture
def world(path: Path) -> Iterator[World]:
    """A store, a source and a clock."""
    store, directory, clock = SqliteStore(SqliteOptions(path)), Directory(Person()), Clock()
    tokens = RefreshTokens(store, RefreshOptions(int(30 * DAY), int(365 * DAY)), clock)
    yield World(tokens, store, Chain([CachedBackend("people", directory)]), directory, clock)
    store.close()


def test_a_token_has_a_prefix_and_letters_that_need_no_encoding(world: World) -> None:
    """Scanners find it, and clients that do not encode what they send do no harm."""
    tokens = {world.login() for _ in range(50)}
    assert len(tokens) == 50
    assert all(re.fullmatch(r"tir_[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_a_good_token_gives_the_account_as_it_is_now(world: World) -> None:
    """Groups are fresh at every use, and the token stays good: it is never rotated."""
    token = world.login()
    assert world.redeem(token) == Account("alice", frozenset({"developers"}))
    world.person.account = Account("alice", frozenset({"retired"}), password_version="first")
    assert world.redeem(token).groups == frozenset({"retired"})
    assert world.redeem(token).groups == frozenset({"retired"})


def test_a_backend_that_cannot_tell_a_change_gets_the_password_again(world: World) -> None:
    """It survives encryption letter by letter. Other backends get none: nothing is kept for them."""
    token = world.login("first")
    assert world.session.sealed_password == b""
    world.redeem(token)
    assert world.directory.asked == [""]
    world.without_version()
    world.redeem(world.login("glpat-\N{SNOWMAN} \x00 word"))
    assert world.directory.asked == ["glpat-\N{SNOWMAN} \x00 word"]


@pytest.mark.parametrize(
    ("account", "ending"),
    [
        (None, "the account is gone"),
        (Account("alice", password_version="second"), "the password has changed"),
        (Account("alice", password_version=""), "the password has changed"),
        (Account("bob", password_version="first"), "the backend now has another name for the account"),
    ],
    ids=["gone", "password changed", "stamp lost", "renamed"],
)
def test_a_refusal_ends_the_session_for_good(world: World, account: Account | None, ending: str) -> None:
    """What the source no longer vouches for has ended, and does not come back with the account."""
    token, before = world.login(), world.person.account
    world.person.account = account
    with pytest.raises(LoginEnded):
        world.redeem(token)
    world.person.account = before
    with pytest.raises(LoginEnded):
        world.redeem(token)
    assert (world.session.ended, world.session.end_reason) == (world.clock.now, ending)


def test_an_outage_ends_nothing(world: World) -> None:
    """A source that is down has not refused anybody."""
    token = world.login()
    world.person.down = True
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            world.redeem(token)
    world.person.down = False
    assert world.redeem(token).name == "alice"


def test_a_token_ends_after_disuse(world: World) -> None:
    """Every use begins the time anew."""
    token = world.login()
    for _ in range(3):
        world.clock.now += 29 * DAY
        world.redeem(token)
    world.clock.now += 31 * DAY
    with pytest.raises(LoginEnded):
        world.redeem(token)
    world.clock.now -= 31 * DAY
    with pytest.raises(LoginEnded):
        world.redeem(token)


def test_a_token_ends_at_its_greatest_age(world: World) -> None:
    """However often it is used."""
    token = world.login()
    for _ in range(36):
        world.clock.now += 10 * DAY
        world.redeem(token)
    world.clock.now += 10 * DAY
    with pytest.raises(LoginEnded, match="too old"):
        world.redeem(token)


def test_a_token_is_good_for_one_registry(world: World) -> None:
    """Another registry is refused, and the token stays good for its own."""
    token = world.login()
    with pytest.raises(LoginEnded):
        world.redeem(token, replace(CLIENT, service="another"))
    assert world.redeem(token).name == "alice"


def test_a_revoked_token_is_refused(world: World) -> None:
    """Revoking works at once, and twice is no error."""
    token, other = world.login(), world.login()
    world.tokens.revoke(token)
    world.tokens.revoke(token)
    with pytest.raises(LoginEnded):
        world.redeem(token)
    assert world.redeem(other).name == "alice"


@pytest.mark.parametrize(
    "token", ["", "tir_", "tir_" + "A" * 43, "x" * 9999, "tir_" + "A" * 42 + "\n", "\ud800", "tir_é"]
)
def test_what_is_no_token_of_ours_is_refused(world: World, token: str) -> None:
    """Made-up tokens are refused without asking the source, and revoking them is no error."""
    world.login()
    with pytest.raises(LoginEnded):
        world.redeem(token)
    world.tokens.revoke(token)
    assert world.directory.asked == []


def test_the_backend_is_bound_too(world: World) -> None:
    """A source of another name, put in place of the first, cannot take its accounts over; a slip ends no login."""
    token = world.login()
    with pytest.raises(LoginEnded, match="'people', not configured"):
        world.tokens.redeem(token, Chain([CachedBackend("others", Directory(Person()))]), CLIENT)
    assert world.redeem(token) == ALICE


def test_the_store_reveals_neither_token_nor_keepsake(world: World, path: Path) -> None:
    """Who steals the file can neither log in nor read a password."""
    world.without_version()
    token = world.login("planted-keepsake")
    world.redeem(token)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert token.encode() not in content
    assert token.removeprefix("tir_").encode() not in content
    assert b"planted-keepsake" not in content
    assert "planted" not in repr(world.session)
    assert token not in repr(world.session)


def test_a_row_is_good_for_its_own_token_only(world: World, path: Path) -> None:
    """What is sealed for one token cannot be opened with another, even by who can write the store."""
    world.without_version()
    mine, other = world.login("mine"), world.login("other")
    first, second = sorted(world.store.sessions(), key=lambda session: session.id)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sessions SET sealed_password = ? WHERE id = ?", (first.sealed_password, second.id))
        connection.execute("UPDATE sessions SET sealed_password = ? WHERE id = ?", (second.sealed_password, first.id))
    connection.close()
    for token in (mine, other):
        with pytest.raises(BackendUnavailable):
            world.redeem(token)
    assert world.directory.asked == []


def test_an_ended_session_keeps_nothing_sealed(world: World) -> None:
    """A password that is no longer needed is no longer there."""
    world.without_version()
    token = world.login("planted")
    world.tokens.revoke(token)
    assert world.session.sealed_password == b""


def test_the_file_is_for_its_owner_only(world: World, path: Path) -> None:
    """Whatever the umask."""
    world.login()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_use_is_noted_at_most_once_a_minute(world: World) -> None:
    """Each note is a write to disk; another address is noted at once."""
    token, begun = world.login(), world.clock.now
    world.clock.now += 30
    world.redeem(token)
    assert world.session.used == begun
    world.redeem(token, replace(CLIENT, address="192.0.2.9"))
    assert (world.session.used, world.session.used_from) == (begun + 30, "192.0.2.9")
    world.clock.now += 61
    world.redeem(token, replace(CLIENT, address="192.0.2.9"))
    assert world.session.used == begun + 91


def test_lists_show_who_when_where_and_with_what(world: World) -> None:
    """And keep what clients call themselves within bounds."""
    token = world.login(client=replace(CLIENT, client_id="c" * 9999, agent="a" * 9999))
    world.clock.now += 60
    world.redeem(token, replace(CLIENT, address="192.0.2.9"))
    session = world.session
    assert (session.account, session.backend, session.service) == ("alice", "people", "registry")
    assert (session.created, session.created_from) == (world.clock.now - 60, "192.0.2.1")
    assert (session.used, session.used_from) == (world.clock.now, "192.0.2.9")
    assert (len(session.client_id), len(session.agent)) == (200, 200)


class Unable(Backend):
    """A backend without `lookup`."""

    def authenticate(self, username: str, password: str) -> Account:
        return Account(username)


@pytest.mark.parametrize(
    ("account", "now"),
    [
        (ALICE, replace(ALICE, password_version="second")),
        (ALICE, None),
        (replace(ALICE, delegated=True), ALICE),
        (ALICE, replace(ALICE, name="bob")),
    ],
    ids=["the password has changed since a remembered login", "refused", "a job", "another name"],
)
def test_no_token_is_issued_that_could_not_be_redeemed(world: World, account: Account, now: Account | None) -> None:
    """Or that would outlive the password."""
    world.person.account = now
    assert world.tokens.issue(Login(account, world.chain.backends[0]), "pw", CLIENT) == ""
    assert list(world.store.sessions()) == []


def test_a_backend_without_lookup_gets_no_tokens(world: World) -> None:
    """Nobody could tell when a login has ended."""
    assert world.tokens.issue(Login(ALICE, CachedBackend("x", Unable(None))), "pw", CLIENT) == ""


def test_clients_and_registries_can_be_excluded(world: World) -> None:
    """By client id and by service."""
    login = Login(ALICE, world.chain.backends[0])
    options = RefreshOptions(60, 60, frozenset({"jib"}), frozenset({"closed"}))
    tokens = RefreshTokens(world.store, options)
    assert tokens.issue(login, "", CLIENT)
    assert not tokens.issue(login, "", replace(CLIENT, client_id="jib"))
    assert not tokens.issue(login, "", replace(CLIENT, service="closed"))


def test_expired_rows_are_swept(world: World) -> None:
    """Nobody has to clean up."""
    world.login()
    used = world.login()
    revoked = world.login()
    world.tokens.revoke(revoked)
    world.clock.now += 29 * DAY
    world.redeem(used)
    world.clock.now += 2 * DAY
    fresh = world.login()
    left = {session.digest for session in world.store.sessions()}
    assert len(left) == 2
    for token in (fresh, used):
        assert world.redeem(token) == ALICE


def test_a_list_asks_the_source_where_it_can(world: World) -> None:
    """Without the token nothing that is sealed can be opened; everything else is told as it is now."""
    world.without_version()
    world.login("sealed")
    sealed = world.session
    open_ = replace(sealed, sealed_password=b"")

    def states() -> list[str]:
        return [*world.tokens.states([open_, sealed], world.chain)]

    assert states() == ["valid", "valid"]
    world.person.account = None
    assert states() == ["ended: the account is gone", "valid"]
    world.person.down = True
    assert states() == ["unknown: the account source is not available", "valid"]
    world.clock.now += 31 * DAY
    assert states() == ["ended: not used for too long"] * 2


def test_a_list_asks_a_source_that_is_down_once(world: World) -> None:
    """Each question may take as long as a login, and there may be thousands of sessions."""
    world.login("")
    world.person.down = True
    states = [*world.tokens.states([world.session] * 3, world.chain)]
    assert states == ["unknown: the account source is not available"] * 3
    assert len(world.directory.asked) == 1


def test_many_threads_share_a_store(world: World) -> None:
    """One instance serves all threads."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                world.redeem(world.login())
        except BaseException as error:  # a thread's exception is lost otherwise
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list(world.store.sessions())) == 80


def test_a_store_that_is_locked_is_an_outage(world: World, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a wrong password nor a defect: the next try may do."""
    token = world.login()
    world.store.close()
    monkeypatch.setattr("tokenissuer.sessions.sqlite._TIMEOUT", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for act in (world.login, lambda: world.tokens.revoke(token)):
        with pytest.raises(BackendUnavailable, match="locked"):
            act()
    other.execute("ROLLBACK")
    other.close()
    assert world.redeem(token) == ALICE


def test_a_store_that_can_only_be_read_stops_nobody_who_is_logged_in(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is no reason to refuse pulls; but what should end is neither let in nor told that it has ended."""
    token = world.login()
    world.store._open().execute("PRAGMA query_only = 1")
    world.clock.now += TOUCH_INTERVAL + 1
    assert world.redeem(token) == ALICE
    assert f"session {world.session.id} is not noted" in caplog.text
    with pytest.raises(BackendUnavailable, match="readonly"):
        world.login()
    world.person.account = None
    with pytest.raises(BackendUnavailable, match="readonly"):
        world.redeem(token)
    world.store._open().execute("PRAGMA query_only = 0")
    with pytest.raises(LoginEnded):
        world.redeem(token)
    assert world.session.ended is not None


def test_a_locked_store_holds_all_threads_up_together(
    world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not one after the other, or the last client would have given up long ago."""
    world.login()
    world.store.close()
    monkeypatch.setattr("tokenissuer.sessions.sqlite._TIMEOUT", 0.3)
    outages = []

    def work() -> None:
        with pytest.raises(BackendUnavailable) as caught:
            world.login()
        outages.append(caught.value)

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=work) for _ in range(10)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outages) == 10
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"this is no database" * 100, "file is not a database"), (None, "Is a directory")],
    ids=["another file", "a folder"],
)
def test_what_is_no_store_stops_the_start(path: Path, content: bytes | None, said: str) -> None:
    """In one line that names the file, and nothing is overwritten."""
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=re.escape(str(path)) + ".*" + said):
        SqliteStore(SqliteOptions(path))
    assert content is None or path.read_bytes() == content


def test_a_store_written_by_a_newer_program_is_left_alone(path: Path) -> None:
    """An old program must not guess what a new one meant."""
    SqliteStore(SqliteOptions(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer tokenissuer"):
        SqliteStore(SqliteOptions(path))


def test_stores_are_found_by_entry_point() -> None:
    """As backends are."""
    assert load_store("sqlite") is SqliteStore
    with pytest.raises(
        ConfigurationError, match="no installed package has a store of type 'sqlit'; did you mean 'sqlite'"
    ):
        load_store("sqlit")


def test_no_token_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Sessions are logged by their id."""
    caplog.set_level(logging.DEBUG)
    token = world.login("planted")
    world.redeem(token)
    world.person.account = None
    with pytest.raises(LoginEnded):
        world.redeem(token)
    assert world.session.id in caplog.text
    assert token not in caplog.text
    assert "planted" not in caplog.text


def test_every_column_is_a_field() -> None:
    """The table and the class say the same, in the same order."""
    connection = sqlite3.connect(":memory:")
    connection.execute(_SCHEMA)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(sessions)")]
    connection.close()
    assert columns == [field.name for field in dataclasses.fields(Session)]
