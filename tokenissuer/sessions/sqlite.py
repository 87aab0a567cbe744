"""The store of refresh tokens, and of wrong passwords, in one SQLite file, for all processes of one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenissuer.accounts.refusals import MAX_REFUSALS
from tokenissuer.errors import ConfigurationError, StoreUnavailable
from tokenissuer.files import user_name
from tokenissuer.options import option
from tokenissuer.sessions.store import Session, Store

#: Seconds to wait while another process writes, and as many for the other threads: docker waits 15 for everything.
_TIMEOUT: Final = 3
#: Seconds that a login waits for the other threads to find out whether its password is known to be wrong.
_REFUSAL_TIMEOUT: Final = 0.3
_SCHEMA_VERSION: Final = 2

_COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Session))
_SCHEMA: Final = """
CREATE TABLE sessions (
    id TEXT NOT NULL UNIQUE,
    digest BLOB PRIMARY KEY,
    account TEXT NOT NULL,
    backend TEXT NOT NULL,
    service TEXT NOT NULL,
    client_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    created REAL NOT NULL,
    created_from TEXT NOT NULL,
    used REAL NOT NULL,
    used_from TEXT NOT NULL,
    password_version TEXT NOT NULL,
    sealed_password BLOB NOT NULL,
    ended REAL,
    end_reason TEXT NOT NULL
) WITHOUT ROWID
"""
_REFUSALS: Final = (
    """
CREATE TABLE IF NOT EXISTS refusals (
    digest BLOB PRIMARY KEY,
    until REAL NOT NULL
) WITHOUT ROWID
""",
    "CREATE INDEX IF NOT EXISTS refusals_until ON refusals (until)",
)


@dataclass(frozen=True, slots=True)
class SqliteOptions:
    """The keys of a `[refresh.store]` table with `type = "sqlite"`."""

    path: Path = option("the file; on a disk of this machine, not on a network")


class SqliteStore(Store):
    """Keeps sessions in an SQLite file.

    Args:
        options: the file.

    Raises:
        ConfigurationError: if the file cannot be opened or made, or is of another kind.
    """

    Options = SqliteOptions

    def __init__(self, options: SqliteOptions) -> None:
        self._path: Final = options.path
        self._lock: Final = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        try:
            with self._lock:
                _prepare(self._open())
        except OSError as error:
            raise ConfigurationError(f"cannot open {self._path}: {error.strerror}{_foreign(self._path)}") from None
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"cannot use {self._path} as the store of refresh tokens: {error}{_foreign(self._path)}"
            ) from None
        finally:
            # It is opened again for the first request. A WSGI server may fork before that, and a fork takes the
            # connection with it but not its locks: https://www.sqlite.org/howtocorrupt.html, 2.6.
            self.close()

    def add(self, session: Session) -> None:
        """Keep a new session."""
        values = tuple(getattr(session, column) for column in _COLUMNS)
        marks = ", ".join("?" for _ in _COLUMNS)
        self._execute(f"INSERT INTO sessions ({', '.join(_COLUMNS)}) VALUES ({marks})", values)

    def find(self, digest: bytes) -> Sequence[Session]:
        """Return the session with this digest: one, or none."""
        return self._select("WHERE digest = ?", (digest,))

    def touch(self, digest: bytes, used: float, used_from: str) -> None:
        """Note a use."""
        self._execute("UPDATE sessions SET used = ?, used_from = ? WHERE digest = ?", (used, used_from, digest))

    def end(self, digests: Sequence[bytes], ended: float, reason: str) -> None:
        """End sessions that have not ended yet, in one transaction."""
        with self._using() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "UPDATE sessions SET ended = ?, end_reason = ?, sealed_password = x'' "
                "WHERE digest = ? AND ended IS NULL",
                [(ended, reason, digest) for digest in digests],
            )

    def sessions(self) -> Sequence[Session]:
        """Return every session, the newest first."""
        return self._select("ORDER BY created DESC", ())

    def sweep(self, created_before: float, used_before: float, ended_before: float) -> None:
        """Delete old sessions."""
        self._execute(
            "DELETE FROM sessions WHERE created < ? OR used < ? OR ended < ?",
            (created_before, used_before, ended_before),
        )
        self._execute("DELETE FROM refusals WHERE until < ?", (time.time(),))

    def add_refusal(self, digest: bytes, until: float) -> None:
        """Keep that a password is wrong; drop the oldest of too many."""
        with self._using(_REFUSAL_TIMEOUT) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?)", (digest, until))
            connection.execute(
                "DELETE FROM refusals WHERE until < (SELECT until FROM refusals ORDER BY until DESC LIMIT 1 OFFSET ?)",
                (MAX_REFUSALS - 1,),
            )

    def has_refusal(self, digest: bytes) -> bool:
        """Whether a password is kept as wrong."""
        with self._using(_REFUSAL_TIMEOUT) as connection:
            wanted = (digest, time.time())
            return bool(connection.execute("SELECT 1 FROM refusals WHERE digest = ? AND until > ?", wanted).fetchall())

    def check(self) -> None:
        """Prove that the file can be written now: a full disk can still be read."""
        self._execute(f"PRAGMA user_version = {_SCHEMA_VERSION}", ())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _execute(self, statement: str, values: Sequence[Any]) -> None:
        with self._using() as connection:
            connection.execute(statement, values)

    def _select(self, rest: str, values: Sequence[Any]) -> list[Session]:
        with self._using() as connection:
            rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM sessions {rest}", values).fetchall()
        return [Session(*row) for row in rows]

    @contextlib.contextmanager
    def _using(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        timeout = _TIMEOUT if timeout is None else timeout
        # Not for ever: each thread would wait until all before it have timed out.
        if not self._lock.acquire(timeout=timeout):
            raise StoreUnavailable(f"timed out after {timeout:g} s waiting for the session store {self._path}")
        try:
            yield self._open()
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"the session store {self._path}: {error}") from None
        finally:
            self._lock.release()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._make()
            connection = sqlite3.connect(self._path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False)
            try:
                _switch_to_wal(connection)
                # What has been acknowledged survives a power failure, too.
                connection.execute("PRAGMA synchronous = FULL")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _make(self) -> None:
        """Make the file if it does not exist, at no moment readable for others.

        A file that exists must not be opened here: closing it drops the locks of this process's other connections
        (https://www.sqlite.org/howtocorrupt.html, 2.2).
        """
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path) from None


def _foreign(path: Path) -> str:
    """Say whose file or folder it is that this process may not write; empty if it may."""
    for each in (path, path.parent):
        is_there, is_ours = (os.access(each, mode, effective_ids=True) for mode in (os.F_OK, os.W_OK))
        if is_there and not is_ours:
            status, user = each.stat(), user_name(os.geteuid())
            owner = f"{user_name(status.st_uid)} (mode {stat.S_IMODE(status.st_mode):04o})"
            return f"; {each} belongs to {owner}, and {user} is to write it: chown {user} {each}"
    return ""


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, with which readers and writers do not wait for each other. The file remembers it.

    SQLite does not wait by itself while another process makes the same file.
    """
    end = time.monotonic() + _TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.02)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < _SCHEMA_VERSION:
        if version:
            # An older version's sessions cannot be read: users log in again.
            connection.execute("DROP TABLE sessions")
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    if version <= _SCHEMA_VERSION:
        for statement in _REFUSALS:
            connection.execute(statement)
    connection.execute("COMMIT")
    if version > _SCHEMA_VERSION:
        raise sqlite3.DatabaseError("a newer tokenissuer has written it; install that version")
