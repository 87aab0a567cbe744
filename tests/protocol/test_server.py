"""The real server on a real socket, spoken to byte by byte."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.machine import free_port
from tokenissuer.net import HostPort
from tokenissuer.serving.listener import Listener, open_sockets

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from tests.protocol.conftest import Server

FORM = b"grant_type=password&username=bob&password=pw&service=registry.example"
POST = b"POST /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n"
GET = b"GET /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(FORM)


@pytest.fixture(scope="module")
def server(serve: Callable[[Path], Server], write: Callable[[], Path]) -> Server:
    """One server for all tests of this module."""
    return serve(write())


def status(back: bytes) -> int | None:
    """The status; None if the connection was closed without a word."""
    if not back:
        return None
    match = re.match(rb"HTTP/1\.[01] (\d{3}) ", back)
    assert match is not None, back
    return int(match[1])


def body(back: bytes) -> dict[str, Any]:
    found = json.loads(back.partition(b"\r\n\r\n")[2])
    assert isinstance(found, dict)
    return found


def test_a_form_with_a_length_is_answered(server: Server) -> None:
    """The plain case, without a cookie, and without the name and version of the server."""
    back = server.talk(POST + LENGTH + FORM)
    assert status(back) == 200
    assert body(back)["token"]
    head = back.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"waitress" not in head


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"%x\r\n%s\r\n0\r\n\r\n" % (len(FORM), FORM)], id="one-chunk"),
        pytest.param([b"".join(b"1\r\n%c\r\n" % octet for octet in FORM) + b"0\r\n\r\n"], id="chunks-of-one"),
        pytest.param([b"%X;x=y\r\n%s\r\n0\r\nTrailer: 1\r\n\r\n" % (len(FORM), FORM)], id="extension-and-trailer"),
        pytest.param([b"5\r\n" + FORM[:5], b"\r\n%x\r\n" % len(FORM[5:]), FORM[5:] + b"\r\n0\r\n\r\n"], id="in-pieces"),
    ],
)
def test_a_chunked_form_is_answered(server: Server, pieces: list[bytes]) -> None:
    """As skopeo and podman send theirs: no length at all."""
    first, *more = pieces
    back = server.talk(POST + b"Transfer-Encoding: chunked\r\n\r\n" + first, *more)
    assert status(back) == 200
    assert body(back)["access_token"]


def test_an_expectation_is_met(server: Server) -> None:
    """curl waits for `100 Continue` before it sends a large form."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\n" + LENGTH)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(FORM)
        back = b""
        while data := connection.recv(65536):
            back += data
    assert status(back) == 200


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(POST + b"Content-Length: 70000\r\n\r\n" + b"a" * 70000, {413}, id="form-too-large"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (70000, b"a" * 70000),
            {413},
            id="chunked-form-too-large",
        ),
        pytest.param(POST + b"Content-Length: 3000000\r\n\r\n" + b"a" * 3000000, {413}, id="body-far-too-large"),
        pytest.param(POST + b"Content-Length: 99999999999999999999\r\n\r\n", {413}, id="length-far-too-large"),
        pytest.param(
            POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", {400, 413, None}, id="length-of-5000-digits"
        ),
        pytest.param(POST + b"Content-Length: -1\r\n\r\n", {400}, id="negative-length"),
        pytest.param(POST + b"Content-Length: x\r\n\r\n", {400}, id="length-no-number"),
        pytest.param(POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", {400}, id="two-lengths"),
        pytest.param(POST + b"Transfer-Encoding: gzip\r\n\r\n", {400, 501}, id="unknown-encoding"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", {400}, id="chunk-size-no-number"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", {400}, id="negative-chunk"),
        pytest.param(GET + b"X: " + b"a" * 300_000 + b"\r\n\r\n", {431}, id="header-too-large"),
        pytest.param(GET + b"X: y\r\n" * 60_000 + b"\r\n", {431}, id="header-flood"),
        pytest.param(GET + b"Authorization: Basic " + b"QQ" * 20_000 + b"\r\n\r\n", {401}, id="long-credentials"),
        pytest.param(GET.replace(b"/token", b"/token?x=" + b"a" * 100_000) + b"\r\n", {413, 431}, id="long-query"),
        pytest.param(GET + b"Authorization: Basic \xff\xfe\r\n\r\n", {401}, id="header-not-ascii"),
        pytest.param(GET + b"A\0B: x\r\n\r\n", {400}, id="nul-in-a-header"),
        pytest.param(b"GET /token\r\n\r\n", {200, 400}, id="http-0.9"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}, id="tls"),
        pytest.param(GET.replace(b"/token", b"http://other.example/token") + b"\r\n", {200}, id="absolute-address"),
        pytest.param(GET.replace(b"/token", b"/%2e%2e/token") + b"\r\n", {404}, id="dots"),
        pytest.param(GET.replace(b"/token", b"//token") + b"\r\n", {200, 404}, id="two-slashes"),
    ],
)
def test_hostile_requests_are_refused_and_the_server_goes_on(
    server: Server, sent: bytes, expected: set[int | None]
) -> None:
    """Never a failure, never a wait, and the next request is answered."""
    # Who sends more than is read may lose the answer with the connection.
    lost = {None} if len(sent) > 100_000 else set()
    assert status(server.talk(sent)) in expected | lost
    assert status(server.talk(POST + LENGTH + FORM)) == 200


def test_a_length_beside_chunks_smuggles_nothing(server: Server) -> None:
    """The chunks decide, as RFC 9112 says; what follows the last one is a request of its own."""
    keep = POST.replace(b"Connection: close\r\n", b"")
    both = keep + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(FORM), FORM)
    back = server.talk(both + chunk + GET.replace(b"/token", b"/nowhere") + b"\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", back) in ([b"200", b"404"], [b"400"])


def test_requests_in_a_row_on_one_connection_keep_apart(server: Server) -> None:
    """Each has its own credentials and nobody inherits another's."""
    keep = GET.replace(b"Connection: close\r\n", b"")
    back = server.talk(
        keep + b"Authorization: Basic Ym9iOnB3\r\n\r\n" + keep + b"\r\n" + GET + b"Authorization: Basic eDp5\r\n\r\n"
    )
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", back)
    assert statuses == [b"200", b"200", b"401"]


def test_a_further_request_on_a_connection_costs_no_time_while_it_is_answered() -> None:
    """An answer that waits for the next one, which is slow, must not keep the server's loop busy."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        time.sleep(1 if environ["PATH_INFO"] == "/slow" else 0)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"{}"]

    (listening,) = open_sockets(HostPort("127.0.0.1", port := free_port()))
    listener = Listener(answer, [listening], 2)
    thread = threading.Thread(target=listener.run, daemon=True)
    thread.start()
    with listening, socket.create_connection(("127.0.0.1", port), 10) as connection:
        used = time.process_time()
        connection.sendall(
            b"GET /fast HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        back = b"".join(iter(lambda: connection.recv(65536), b""))
        assert time.process_time() - used < 0.5
        listener.stop()
        thread.join(10)
    assert back.count(b"200 OK") == 2
    assert not thread.is_alive()


def test_slow_clients_keep_nobody_waiting(server: Server) -> None:
    """Many that send half a request and stop."""
    slow = []
    try:
        for _ in range(30):
            connection = socket.create_connection(("127.0.0.1", server.port), 10)
            connection.sendall(POST + b"Content-Length: 1000\r\n\r\ngrant_type=")
            slow.append(connection)
        start = time.monotonic()
        assert status(server.talk(POST + LENGTH + FORM)) == 200
        assert time.monotonic() - start < 5
    finally:
        for connection in slow:
            connection.close()
