"""Slow clients, huge requests and floods against the running server, and a client beside them that must not notice."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Issuer, Server, Sites

#: The server with less patience, so that a test need not wait as long as a person would.
IMPATIENT = """
import sys, tokenissuer.crowd as crowd
crowd.SLOW, crowd.IDLE, crowd.MOST = 1.0, 2.0, 40
from tokenissuer.cli import main
sys.exit(main(sys.argv[1:]))
"""

HALF = b"GET /token HTTP/1.1\r\nHost: x\r\nX-Slow: "
BODY = b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def issuer(own_sites: Sites) -> Issuer:
    """Not yet serving."""
    return own_sites.new_issuer("crowded")


@pytest.fixture
def impatient(issuer: Issuer, host: Host) -> Server:
    """Serves with little patience and few places."""
    server = host.start("impatient", sys.executable, "-c", IMPATIENT, *issuer.command()[1:])
    server.wait_for(lambda: not host.is_free(issuer.port) and issuer.ask().status == 200)
    return server


@contextlib.contextmanager
def connections(issuer: Issuer, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections, each with the same beginning of a request."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", issuer.port), 10))
            if sent:
                connection.sendall(sent)
            opened.append(connection)
        yield opened


class Healthy:
    """A client that asks for a token again and again, and notes how long that takes."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.times: list[float] = []
        self.faults: list[object] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Healthy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                answer = self.issuer.ask("repository:alice/app:pull", user="alice")
                if answer.status != 200:
                    self.faults.append(answer)
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(error)
            self.times.append(time.monotonic() - started)
            time.sleep(0.02)

    def was_served(self, within: float) -> None:
        """Every request was answered, and none took long."""
        assert not self.faults, self.faults[:3]
        assert len(self.times) >= 5
        assert max(self.times) < within, sorted(self.times)[-5:]
        assert statistics.median(self.times) < within / 4


def read(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    got = b""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += data
    return got


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [HALF, BODY, b"G"], ids=["header", "body", "one-byte"])
def test_whoever_sends_drop_by_drop_is_told_and_sent_away(issuer: Issuer, sent: bytes) -> None:
    """A byte now and then does not keep the place; the answer is one that clients show."""
    with connections(issuer, 10, sent) as slow, Healthy(issuer) as healthy:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                for connection in slow:
                    connection.sendall(b"x")
            except OSError:
                break
            time.sleep(0.2)
        else:
            pytest.fail("they may go on for ever")
        first = read(slow[-1])
    healthy.was_served(within=2)
    # Bytes that cross with the answer may cost it.
    if first:
        head, _, body = first.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == b"408"
        assert b"X-Request-Id: " in head
        assert json.loads(body)["errors"][0]["message"] == "the request took too long to come"


def test_whoever_stops_in_the_middle_is_told(issuer: Issuer, impatient: Server, host: Host) -> None:
    """One line in the log for each, as for any request."""
    with connections(issuer, 3, HALF) as slow:
        assert [read(connection).split(b" ")[1] for connection in slow] == [b"408"] * 3
    assert host.wait_until(lambda: impatient.output().count('"status": 408') == 3), impatient.output()


@pytest.mark.usefixtures("impatient")
def test_idle_connections_are_closed(issuer: Issuer) -> None:
    """Without a word: nothing was asked."""
    with connections(issuer, 5) as idle:
        assert [read(connection) for connection in idle] == [b""] * 5


def test_when_all_places_are_taken_the_slow_make_room(issuer: Issuer, impatient: Server, host: Host) -> None:
    """Three times as many as there are places, all of them silent."""
    with connections(issuer, 120, HALF), Healthy(issuer) as healthy:
        time.sleep(3)
    healthy.was_served(within=4)
    assert host.wait_until(lambda: '"security": "shed"' in impatient.output())


@pytest.fixture
def serving(issuer: Issuer) -> Issuer:
    """Serving as everybody's does."""
    issuer.start()
    return issuer


def flood(ask: Callable[[], object], seconds: float, threads: int = 6) -> int:
    """Ask from several threads for a while; how often."""
    end = time.monotonic() + seconds
    counts = [0] * threads

    def run(number: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask()
            counts[number] += 1

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts)


def test_more_silent_connections_than_there_are_places(serving: Issuer) -> None:
    """With the real limits; who comes after them waits for a moment at most."""
    with connections(serving, 700), Healthy(serving) as healthy:
        time.sleep(4)
    healthy.was_served(within=4)


def test_huge_headers_and_bodies_harm_nobody(serving: Issuer) -> None:
    """They are refused as soon as they are too large."""

    def send() -> None:
        with socket.create_connection(("127.0.0.1", serving.port), 10) as connection:
            connection.sendall(HALF + b"x" * 300_000)
            read(connection)

    with Healthy(serving) as healthy:
        assert flood(send, 2) > 5
    healthy.was_served(within=4)


def test_a_flood_of_guesses_is_shed(issuer: Issuer) -> None:
    """From another address, each with another password: to hash them all would keep the processors for minutes."""
    issuer.config.write_text(f"{issuer.config.read_text()}\n[throttle]\naddress = 10\n")
    issuer.start()
    number = itertools.count()
    statuses: Counter[int] = Counter()

    def guess() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", issuer.port, timeout=20, source_address=("127.0.0.9", 0))
        credentials = base64.b64encode(b"nobody-%d:guess" % next(number)).decode()
        connection.request("GET", "/token", headers={"Authorization": f"Basic {credentials}"})
        statuses[connection.getresponse().status] += 1
        connection.close()

    # The first few are hashed, as anybody's would be.
    flood(guess, 3)
    with Healthy(issuer) as healthy:
        flood(guess, 3)
    healthy.was_served(within=4)
    assert set(statuses) == {401, 429}
    assert statuses[401] <= 10 + 8
    assert statuses[429] > 100
