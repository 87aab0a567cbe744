"""Several processes on one port: watched, replaced, reloaded and stopped without a request dropped."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Issuer, Server
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration


def asker(front: Front) -> Callable[[], str]:
    """One who asks for a token again and again, each time on a new connection."""

    def ask() -> str:
        answer = front.ask("repository:alice/app:pull", user="alice")
        return "" if answer.status == 200 else f"{answer.status} {answer.body!r}"

    return ask


def workers(server: Server) -> list[int]:
    """The numbers of its processes."""
    return sorted(int(path.name) for path in server.children())


def loads(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_workers_share_the_port_and_one_that_dies_is_replaced(production: Production) -> None:
    """Killed under load: nothing fails but what that process was answering."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer, "--workers", "3")
    front = production.direct(issuer)
    before = workers(server)
    assert len(before) == 3
    with production.under_load([asker(front)] * 4) as load:
        load.wait_for(60)
        assert all(loads(pid) > 0 for pid in before)
        for victim in before[:2]:
            os.kill(victim, signal.SIGKILL)
            assert production.host.wait_until(lambda: len(workers(server)) == 3 and victim not in workers(server))  # noqa: B023
            load.wait_for(30)
    # Four ask at once, and two processes were killed.
    assert len(load.failures) <= 8, load.failures
    broken_off = ("ConnectionReset", "RemoteDisconnected", "IncompleteRead")
    assert all(failure.startswith(broken_off) for failure in load.failures), load.failures
    assert server.output().count("has ended (SIGKILL)") == 2
    after = workers(server)
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.output()
    assert not any(Path(f"/proc/{pid}").exists() for pid in after)
    assert production.host.is_free(issuer.port)


def test_a_worker_that_is_told_to_end_answers_what_it_has_begun(production: Production) -> None:
    """No request fails when workers come and go in order."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer, "--workers", "2")
    front = production.direct(issuer)
    with production.under_load([asker(front)] * 4) as load:
        for _ in range(3):
            load.wait_for(10)
            os.kill(workers(server)[0], signal.SIGTERM)
            time.sleep(0.3)
        load.wait_for(20)
    assert load.failures == []


@pytest.mark.parametrize(("count", "group"), [("1", False), ("3", True)], ids=["one", "three, all told"])
def test_what_has_come_is_answered_before_the_end(production: Production, count: str, group: bool) -> None:
    """Requests half sent, and connections not yet accepted, when the signal comes."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer, "--workers", count)
    halves = []
    for number in range(20):
        connection = socket.create_connection(("127.0.0.1", issuer.port), 10)
        if number % 2:
            connection.sendall(b"GET /token HTTP/1.1\r\nHost: localhost\r\n")
        halves.append(connection)
    time.sleep(0.2)
    server.send(signal.SIGTERM, group=group)
    time.sleep(0.2)
    for number, connection in enumerate(halves):
        connection.sendall(b"\r\n" if number % 2 else b"GET /token HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for connection in halves:
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        assert b'"token"' in response.read()
        # So that the client does not send its next request into an end.
        assert response.headers["Connection"] == "close"
        connection.close()
    assert server.wait() == 0, server.output()
    assert "Traceback" not in server.output()


def test_a_signal_to_all_reads_again_once(production: Production) -> None:
    """SIGHUP to the parent reaches the workers: all agree, and go on."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer, "--workers", "2")
    before = workers(server)
    server.send(signal.SIGHUP)
    assert production.host.wait_until(lambda: server.output().count("read again") == 3)
    assert workers(server) == before


def test_workers_end_when_their_parent_is_gone(production: Production) -> None:
    """Nobody would watch them, and a new parent could not listen."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer, "--workers", "2")
    before = workers(server)
    server.send(signal.SIGKILL)
    assert production.host.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
    assert production.host.is_free(issuer.port)


def test_a_worker_that_starts_while_the_files_are_broken_does_what_the_others_do(
    production: Production, host: Host
) -> None:
    """It is a fork of the parent, which has what was good."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer, "--workers", "2")
    issuer.config.write_text("nonsense")
    (issuer.folder / "auth.key").unlink()
    assert host.wait_until(lambda: "stays in force" in server.output())
    for victim in workers(server):
        os.kill(victim, signal.SIGKILL)
    assert host.wait_until(lambda: server.output().count("has ended") == 2 and len(workers(server)) == 2)
    answers = [issuer.ask("repository:alice/app:pull", user="alice").status for _ in range(10)]
    assert answers == [200] * 10
    assert server.output().count("stays in force") == 1


SOCKET_ACTIVATION = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ["LISTEN_FDS"] = "1"
while True:
    child = os.fork()
    if not child:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.execv(sys.argv[2], sys.argv[2:])
    os.write(1, b"started %d\\n" % child)
    os.waitpid(child, 0)
"""


def test_behind_a_socket_that_systemd_holds_a_restart_refuses_nobody(
    production: Production, host: Host, issuer_command: Callable[[Issuer], list[str]]
) -> None:
    """Requests wait in the socket while no process is there."""
    issuer = production.issuer("set-up")
    python = Path(host.tokenissuer()).parent / "python"
    holder = host.start("systemd", str(python), "-c", SOCKET_ACTIVATION, str(issuer.port), *issuer_command(issuer))
    holder.wait_for(lambda: production.is_up(issuer.port))
    front = production.direct(issuer)
    with production.under_load([asker(front)] * 3) as load:
        for _ in range(2):
            load.wait_for(10)
            os.kill(int(holder.output().rsplit("started ", 1)[1].split()[0]), signal.SIGTERM)
            started = holder.output().count("started")
            assert host.wait_until(lambda: holder.output().count("started") > started)  # noqa: B023
        load.wait_for(10)
    assert load.failures == []


@pytest.fixture
def issuer_command() -> Callable[[Issuer], list[str]]:
    """How the issuer is served, by several workers."""
    return lambda issuer: [*issuer.command(), "--workers", "2"]


def test_under_gunicorn_every_worker_follows_the_files(production: Production) -> None:
    """Forms in chunks are read, and a new account, rule or key holds in all within seconds."""
    issuer = production.issuer("set-up")
    front = production.gunicorn(issuer, "--workers", "3", "--threads", "4")
    answer = front.post("repository:alice/app:pull", "alice", chunked=True)
    assert production.claims(answer.json()["access_token"])["access"][0]["name"] == "alice/app"
    assert front.post("", "alice", chunked=True, password="wrong").status == 401
    text = issuer.config.read_text()
    issuer.config.write_text(text.replace("lifetime = 900", "lifetime = 600"))
    follows = [0]

    def follow() -> bool:
        follows[0] = follows[0] + 1 if front.ask().json()["expires_in"] == 600 else 0
        return follows[0] == 30

    assert production.host.wait_until(follow)


def test_a_configuration_that_cannot_be_used_is_said_before_the_traceback(production: Production, host: Host) -> None:
    """A WSGI server that imports the application tells its log why it cannot."""
    issuer = production.issuer("set-up")
    issuer.config.write_text("nonsense")
    python = Path(host.tokenissuer()).parent / "python"
    ran = subprocess.run(
        [str(python), "-c", "import tokenissuer.wsgi"],
        env={"TOKENISSUER_CONFIG": str(issuer.config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert ran.stderr.strip().splitlines()[-1].count("this is not TOML") == 1


def test_slow_senders_do_not_hold_up_others(production: Production) -> None:
    """A hundred connections that send nothing, and everybody else is answered."""
    issuer = production.issuer("set-up")
    production.serve(issuer)
    idle = [socket.create_connection(("127.0.0.1", issuer.port), 10) for _ in range(60)]
    started = threading.active_count()
    assert issuer.ask(user="alice").status == 200
    assert threading.active_count() == started
    for connection in idle:
        connection.close()
