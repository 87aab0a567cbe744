"""Guessing against the running server: who is slowed down, and who is not."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import bcrypt
import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Issuer, Server, Sites

#: Five tries for an account, fifteen for an address; a proxy of ours may be at 127.0.0.1.
THROTTLE = """
[server]
trusted_proxies = ["127.0.0.1"]

[throttle]
account = 5
address = 15
"""


class World:
    """An issuer with accounts alice and bob, whose passwords cost little to check."""

    def __init__(self, issuer: Issuer, more: str = "") -> None:
        self.issuer = issuer
        self.number = 0
        users = {"alice": issuer.first_password, "bob": "bob's own"}
        hashed = {name: bcrypt.hashpw(word.encode(), bcrypt.gensalt(4)).decode() for name, word in users.items()}
        (issuer.folder / "users.htpasswd").write_text("".join(f"{name}:{text}\n" for name, text in hashed.items()))
        issuer.passwords = users
        issuer.drop_tables("server")
        issuer.config.write_text(issuer.config.read_text() + THROTTLE + more)

    def ask(self, user: str, password: str, source: str = "127.0.0.9", **headers: str) -> http.client.HTTPResponse:
        """Ask for a token from an address."""
        connection = http.client.HTTPConnection("127.0.0.1", self.issuer.port, timeout=20, source_address=(source, 0))
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        connection.request("GET", "/token", headers={"Authorization": f"Basic {credentials}", **headers})
        answer = connection.getresponse()
        answer.body = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer

    def login(self, user: str, source: str = "127.0.0.9", **headers: str) -> int:
        """With the right password."""
        return self.ask(user, self.issuer.passwords[user], source, **headers).status

    def guess(self, user: str, count: int, source: str = "127.0.0.9", **headers: str) -> list[int]:
        """With so many wrong ones, each another."""
        statuses = []
        for _ in range(count):
            self.number += 1
            statuses.append(self.ask(user, f"guess {self.number}", source, **headers).status)
        return statuses


@pytest.fixture
def world(own_sites: Sites) -> World:
    """Served, and nobody has tried anything."""
    made = World(own_sites.new_issuer("guessed"))
    made.issuer.start()
    return made


def test_one_account_from_one_source(world: World) -> None:
    """Slowed down, with words that clients show; the right password is answered alike."""
    assert world.login("alice") == 200
    assert world.guess("alice", 7) == [401] * 5 + [429] * 2
    wrong, right = world.ask("alice", "wrong"), world.ask("alice", world.issuer.passwords["alice"])
    for answer in (wrong, right):
        assert answer.status == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 600
        body = json.loads(answer.body)  # type: ignore[attr-defined]
        assert body["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert re.fullmatch(
            r"too many wrong passwords from your address; try again in \d+ seconds", body["errors"][0]["message"]
        )
    differing = {"Date", "X-Request-Id", "Retry-After", "Content-Length"}
    assert {k: v for k, v in wrong.headers.items() if k not in differing} == {
        k: v for k, v in right.headers.items() if k not in differing
    }
    # Neither the account elsewhere nor the neighbour is concerned.
    assert world.login("alice", "127.0.0.10") == 200
    assert world.login("bob") == 200


def test_one_account_from_many_sources(world: World) -> None:
    """Each is slowed down by itself; the owner, elsewhere, notices nothing."""
    for host in range(20, 40):
        assert world.guess("alice", 6, f"127.0.0.{host}") == [401] * 5 + [429]
    assert world.login("alice") == 200


def test_many_accounts_from_one_source(world: World) -> None:
    """The address is refused; an account that has logged in from there is held only to its own limit."""
    assert world.login("bob") == 200
    statuses = [status for number in range(20) for status in world.guess(f"somebody-{number}", 1)]
    assert statuses == [401] * 15 + [429] * 5
    assert world.login("alice") == 429
    assert world.login("bob") == 200
    assert world.guess("bob", 6) == [401] * 5 + [429]
    assert world.login("bob") == 429
    assert world.login("alice", "127.0.0.10") == 200


def test_an_unknown_account_is_slowed_down_alike(world: World) -> None:
    """Or the tries would tell who exists."""
    assert world.guess("alice", 6) == world.guess("nobody", 6) == [401] * 5 + [429]


def test_the_same_password_again_and_right_logins_do_not_count(world: World) -> None:
    """A pipeline with an old password, and a colleague who works."""
    for _ in range(30):
        assert world.ask("alice", "the old one").status == 401
        assert world.login("alice") == 200
    assert world.guess("alice", 4) == [401] * 4
    assert world.guess("alice", 1) == [429]


def test_a_restart_forgets(world: World) -> None:
    """What is counted in memory."""
    assert world.guess("alice", 6)[-1] == 429
    server = world.issuer.server
    assert server is not None
    server.stop()
    world.issuer.start()
    assert world.login("alice") == 200


def test_behind_a_proxy_the_clients_are_told_apart(world: World) -> None:
    """And nobody changes their address by what they send themselves."""
    forwarded = "X-Forwarded-For"
    assert world.guess("alice", 6, "127.0.0.1", **{forwarded: "192.0.2.1"})[-1] == 429
    assert world.login("alice", "127.0.0.1", **{forwarded: "192.0.2.1"}) == 429
    assert world.login("alice", "127.0.0.1", **{forwarded: "192.0.2.2"}) == 200
    assert world.login("alice", "127.0.0.1", **{forwarded: "192.0.2.2, 192.0.2.1"}) == 429
    assert world.guess("bob", 6, "127.0.0.9", **{forwarded: "192.0.2.9"})[-1] == 429
    for number in range(5):
        assert world.login("bob", "127.0.0.9", **{forwarded: f"192.0.2.{number}"}) == 429


def test_the_log_marks_it_and_holds_no_password(world: World) -> None:
    """Who, from where, and which limit."""
    world.guess("alice", 6)
    server = world.issuer.server
    assert server is not None
    lines = [json.loads(line) for line in server.output().splitlines() if '"security": "throttled"' in line]
    assert [(line["username"], line["client"], line["status"]) for line in lines] == [("alice", "127.0.0.9", 429)]
    assert "limit: account" in lines[0]["reason"]
    assert "guess 1" not in server.output()


def test_docker_shows_why(own_sites: Sites, host: Host, new_client: Callable[[], Client]) -> None:
    """And logs in when it may."""
    world = World(own_sites.new_issuer("shown"))
    world.issuer.start()
    site = own_sites.registry(world.issuer, 2)
    client = new_client()
    client.login(site.registry, "alice", world.issuer.passwords["alice"]).succeeded()
    for number in range(5):
        assert "wrong user name or password" in client.login(site.registry, "alice", f"wrong {number}").failed()
    for password in ("wrong again", world.issuer.passwords["alice"]):
        said = client.login(site.registry, "alice", password).failed()
        assert "too many wrong passwords from your address; try again in" in said
    client.login(site.registry, "bob", world.issuer.passwords["bob"]).succeeded()


@pytest.fixture
def redis(host: Host) -> tuple[Server, int]:
    """A real one, and its port."""
    program = host.program("redis-server", "install Debian's redis-server")
    port = host.free_port()
    options = (
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(host.folder),
    )
    server = host.start("redis", program, *options, "--requirepass", "planted-redis-word")
    server.wait_for(lambda: not host.is_free(port))
    return server, port


def test_several_machines_count_together_in_redis(own_sites: Sites, host: Host, redis: tuple[Server, int]) -> None:
    """Also after a restart. While Redis is down each counts for itself, and everybody logs in."""
    server, port = redis
    world = World(own_sites.new_issuer("together"), f'redis = "redis://:planted-redis-word@127.0.0.1:{port}/0"\n')
    first, other = world.issuer.start(), host.free_port()
    second = host.start("second", *world.issuer.command(other))
    second.wait_for(lambda: not host.is_free(other))
    ports = [world.issuer.port, other]
    statuses = []
    for turn in range(8):
        world.issuer.port = ports[turn % 2]
        # Twice: the other machine knows this password.
        statuses.append(world.guess("alice", 1)[0])
        world.issuer.port = ports[(turn + 1) % 2]
        assert world.ask("alice", f"guess {world.number}").status == (401 if turn < 4 else 429)
    assert statuses == [401] * 5 + [429] * 3
    assert world.login("alice", "127.0.0.10") == 200
    server.stop(signal.SIGKILL)
    assert world.login("bob") == 200
    assert world.login("alice") == 200
    assert world.guess("alice", 6) == [401] * 5 + [429]
    for said in (first.output(), second.output()):
        assert "planted" not in said
    assert '"security": "outage"' in first.output() + second.output()
