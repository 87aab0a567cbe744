"""The application that is built again while it answers, in one process."""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest

from tokenissuer.config import Part, Running
from tokenissuer.serving import reload
from tokenissuer.serving.reload import ReloadingApplication


@pytest.fixture
def users(set_up: Path, hash_of: Callable[[str], str]) -> Path:
    """The password file of a set-up with one account."""
    path = set_up / "users.htpasswd"
    path.write_text(f"alice:{hash_of('right')}\n")
    return path


@pytest.fixture
def application(users: Path) -> Iterator[ReloadingApplication]:
    """The set-up as a process has it after its start, before its first request."""
    made = ReloadingApplication(users.parent / "tokenissuer.toml")
    yield made
    made.close()


def login(application: ReloadingApplication) -> str:
    """Log in as alice; the status."""
    said: list[str] = []

    def start(status: str, headers: object, error: object = None) -> Callable[[bytes], object]:
        said.append(status)
        return said.__contains__

    password = base64.b64encode(b"alice:right").decode()
    environ = {"PATH_INFO": "/token", "QUERY_STRING": "service=registry.example", "REMOTE_ADDR": "127.0.0.1"}
    environ["HTTP_AUTHORIZATION"] = f"Basic {password}"
    setup_testing_defaults(environ)
    b"".join(application(environ, start))
    return said[0][:3]


def test_a_process_that_has_waited_reads_its_files_before_the_first_answer(
    application: ReloadingApplication, users: Path
) -> None:
    """An account may have been removed hours ago."""
    users.write_text("")
    assert login(application) == "401"


def test_the_process_that_servers_fork_has_no_threads(users: Path) -> None:
    """uWSGI forks without care: a process that was forked while a thread had Python's lock waited for it for ever."""
    users.chmod(0o666)
    before = set(threading.enumerate())
    made = ReloadingApplication(users.parent / "tokenissuer.toml")
    assert set(threading.enumerate()) <= before
    made.close()


def test_a_process_forked_after_the_first_request_reads_its_files_too(
    application: ReloadingApplication, users: Path
) -> None:
    """No thread survives a fork."""
    assert login(application) == "200"
    child = os.fork()
    if not child:
        users.write_text("")
        os._exit(0 if login(application) == "401" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_is_half_written_is_not_read(
    application: ReloadingApplication, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal arrives in between. Accounts that are not in the file yet would lose their logins."""
    monkeypatch.setattr(reload, "WATCH_INTERVAL", 0.2)
    assert login(application) == "200"
    text = users.read_text()
    users.write_text("")
    application.reload()
    time.sleep(0.05)
    users.write_text(text)
    for _ in range(10):
        assert login(application) == "200"
        time.sleep(0.05)


def test_a_part_that_cannot_be_closed_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The same thread reads the files again."""
    closed = []

    def fail() -> None:
        raise OSError("planted")

    running = Running(None, None, "", (Part("", 1, fail), Part("", 2, lambda: closed.append(2))))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        running.close()
    assert closed == [2]
    assert "OSError" in caplog.text
    assert "planted" not in caplog.text
