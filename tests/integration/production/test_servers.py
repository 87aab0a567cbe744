"""The WSGI object under other servers: each process builds the application and follows its files."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Host
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration


@pytest.fixture(params=["gunicorn", "gunicorn --preload", "granian", "uwsgi"])
def front(request: pytest.FixtureRequest, production: Production) -> Front:
    """Two processes of a server."""
    return production.wsgi(production.issuer("set-up"), *request.param.split())


def refresh(front: Front, token: str) -> int:
    """The status of a refresh."""
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "test"}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return front.request("POST", front.path, headers, urlencode(form).encode()).status


def test_every_process_answers_and_follows_the_files(front: Front, host: Host) -> None:
    """Logins, refresh tokens from one process in the other, and an account that is taken out of the file."""
    password = front.issuer.passwords["alice"]
    form = {"grant_type": "password", "username": "alice", "password": password, "access_type": "offline"}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = front.request("POST", front.path, headers, urlencode({**form, "client_id": "test"}).encode())
    assert answer.status == 200, answer
    token = answer.json()["refresh_token"]
    assert [refresh(front, token) for _ in range(40)] == [200] * 40
    # Each process has its own ids: it has built the application for itself.
    ids = [front.ask(user="alice").headers["x-request-id"] for _ in range(40)]
    assert len(set(ids)) == 40

    def another() -> bool:
        # The kernel may wake the same process each time: half a request keeps it busy.
        with socket.create_connection(("127.0.0.1", front.port), 5) as connection:
            connection.sendall(
                f"POST {front.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {headers['Content-Type']}\r\n"
                "Content-Length: 100\r\n\r\ngrant_type=".encode()
            )
            time.sleep(0.1)
            ids.append(front.ask().headers["x-request-id"])
        return len({text[:10] for text in ids}) == 2

    assert host.wait_until(another)
    (front.issuer.folder / "users.htpasswd").write_text("")
    assert host.wait_until(lambda: {front.ask(user="alice").status for _ in range(20)} == {401})
    assert {refresh(front, token) for _ in range(10)} == {401}
