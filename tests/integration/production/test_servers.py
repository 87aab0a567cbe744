"""The WSGI object under other servers: each process builds the application and follows its files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
        # Several at once: a single one may always meet the process that answered last.
        with ThreadPoolExecutor(8) as clients:
            ids.extend(clients.map(lambda _: front.ask().headers["x-request-id"], range(16)))
        return len({text[:10] for text in ids}) == 2

    assert host.wait_until(another)
    (front.issuer.folder / "users.htpasswd").write_text("")
    assert host.wait_until(lambda: {front.ask(user="alice").status for _ in range(20)} == {401})
    assert {refresh(front, token) for _ in range(10)} == {401}
