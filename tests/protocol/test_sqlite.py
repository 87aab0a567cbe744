"""The store of refresh tokens, opened more than once: by several processes, and twice by one that is reloaded."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tokenissuer.errors import StoreUnavailable
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
from tokenissuer.sessions.store import Session

OTHER = """
import sys
from pathlib import Path
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
store = SqliteStore(SqliteOptions(Path(sys.argv[1])))
print(sorted(session.id for session in store.sessions()))
store.close()
"""


def session(name: str) -> Session:
    """A session to be told by its name."""
    return Session(name, name.encode(), "alice", "htpasswd", "service", "", "", 1.0, "", 1.0, "", "", b"")


def seen_by_another(path: Path) -> str:
    """What another process finds, which comes and goes while we have the file open."""
    ran = subprocess.run([sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_a_second_store_in_a_process_takes_nothing_from_the_first(tmp_path: Path) -> None:
    """While a changed configuration takes the place of the old one both are open."""
    path = tmp_path / "refresh.sqlite3"
    first = SqliteStore(SqliteOptions(path))
    first.add(session("one"))
    second = SqliteStore(SqliteOptions(path))
    assert seen_by_another(path) == "['one']"
    first.add(session("two"))
    assert seen_by_another(path) == "['one', 'two']"
    second.add(session("three"))
    first.close()
    assert seen_by_another(path) == "['one', 'three', 'two']"
    second.close()


def test_nothing_is_open_before_it_is_used(tmp_path: Path) -> None:
    """A server's processes are forks of one that has made the store: none may inherit a connection."""
    store = SqliteStore(SqliteOptions(tmp_path / "refresh.sqlite3"))
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not any(str(tmp_path) in name for name in opened)
    store.close()


def test_several_processes_may_make_it_together(tmp_path: Path) -> None:
    """As the workers do of a server that builds the application in each; SQLite itself does not wait here."""
    path = tmp_path / "refresh.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        done.start()
        SqliteStore(SqliteOptions(path)).close()
        done.join()


def test_the_store_of_an_older_version_is_emptied(tmp_path: Path) -> None:
    """Its sessions cannot be read: every use of one would be an outage."""
    path = tmp_path / "refresh.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE sessions (id TEXT, stamp TEXT)")
        old.execute("PRAGMA user_version = 1")
    store = SqliteStore(SqliteOptions(path))
    store.add(session("one"))
    assert [found.id for found in store.sessions()] == ["one"]
    store.close()


def write_on(store: SqliteStore) -> None:
    """Write more than fits."""
    for _ in range(100):
        store.check()


def test_a_file_that_cannot_grow_is_no_store(tmp_path: Path) -> None:
    """A full disk can still be read, and no login could be kept."""
    store = SqliteStore(SqliteOptions(tmp_path / "refresh.sqlite3"))
    store.add(session("one"))
    store.check()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        with pytest.raises(StoreUnavailable, match="the session store"):
            write_on(store)
        assert [found.id for found in store.sessions()] == ["one"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    store.check()
    store.close()


def test_many_sessions_end_together_or_not_at_all(tmp_path: Path) -> None:
    """One transaction, which waits for the disk once; a failure in the middle leaves all as they were."""
    path = tmp_path / "refresh.sqlite3"
    store = SqliteStore(SqliteOptions(path))
    names = ["one", "two", "three"]
    for name in names:
        store.add(session(name))
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON sessions WHEN old.id = 'three' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(StoreUnavailable):
            store.end([name.encode() for name in names], 5.0, "revoked")
        assert [session.ended for session in store.sessions()] == [None] * 3
        other.execute("DROP TRIGGER refuse")
    store.end([name.encode() for name in names], 5.0, "revoked")
    assert [session.ended for session in store.sessions()] == [5.0] * 3
    store.close()
