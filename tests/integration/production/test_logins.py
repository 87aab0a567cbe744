"""Logins that refresh tokens keep up outlive everything that happens to processes; what was revoked stays revoked."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Host
    from tests.integration.production.conftest import Front, Production
    from tests.support.http import Answer

pytestmark = pytest.mark.integration

BROKEN_OFF = ("ConnectionRefused", "ConnectionReset", "RemoteDisconnected", "IncompleteRead", "BrokenPipe")


@dataclass
class People:
    """Who logs in, goes on with the refresh token, and with every other one logs out; and what the server has said."""

    front: Front
    kept: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    number: int = 0

    def post(self, path: str, **form: str) -> Answer:
        """Send a form."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.front.request("POST", path, headers, urlencode(form).encode())

    def refresh(self, token: str) -> Answer:
        """Use a refresh token."""
        return self.post(self.front.path, grant_type="refresh_token", refresh_token=token, client_id="test")

    def log_in(self) -> str:
        """One round; returns what went wrong."""
        self.number += 1
        is_kept = self.number % 2 == 0
        secret = self.front.issuer.passwords["alice"]
        form = {"grant_type": "password", "username": "alice", "password": secret, "access_type": "offline"}
        answer = self.post(self.front.path, **form, client_id="test")
        if answer.status != 200:
            return f"login: {answer.status} {answer.body!r}"
        token = answer.json()["refresh_token"]
        if is_kept:
            self.kept.append(token)
            answer = self.refresh(token)
            return "" if answer.status == 200 else f"refresh: {answer.status} {answer.body!r}"
        answer = self.post("/revoke", token=token)
        if answer.status != 200:
            return f"revoke: {answer.status} {answer.body!r}"
        self.revoked.append(token)
        return ""

    def go_on(self) -> str:
        """Use a login of before; returns what went wrong."""
        if not self.kept:
            return ""
        answer = self.refresh(self.kept[self.number % len(self.kept)])
        return "" if answer.status == 200 else f"refresh: {answer.status} {answer.body!r}"


@pytest.fixture
def people(production: Production) -> Callable[[], People]:
    """Makes people in front of an issuer that `init` has set up."""
    return lambda: People(production.direct(production.issuer("set-up")))


def test_no_login_is_lost_while_files_change(production: Production, people: Callable[[], People], host: Host) -> None:
    """Reloads, and the command that lists, which opens the store and closes it."""
    crowd = people()
    issuer = crowd.front.issuer
    server = production.serve(issuer)
    with production.under_load([crowd.log_in, crowd.go_on, crowd.go_on]) as load:
        for turn in range(4):
            load.wait_for(15)
            server.send(signal.SIGHUP)
            issuer.config.write_text(f"{issuer.config.read_text()}# {turn}\n")
            listed = host.run(host.tokenissuer(), "sessions", "list", "--config", str(issuer.config))
            assert listed.succeeded().count("valid")
    assert load.failures == []
    assert [crowd.refresh(token).status for token in crowd.kept] == [200] * len(crowd.kept)
    assert [crowd.refresh(token).status for token in crowd.revoked] == [401] * len(crowd.revoked)


def test_no_login_is_lost_and_none_comes_back_when_the_process_is_killed(
    production: Production, people: Callable[[], People], host: Host
) -> None:
    """While others open and close the store."""
    crowd = people()
    issuer = crowd.front.issuer
    server = production.serve(issuer)
    with production.under_load([crowd.log_in, crowd.log_in, crowd.go_on]) as load:
        for turn in range(4):
            load.wait_for(40)
            server.send(signal.SIGKILL if turn % 2 else signal.SIGTERM)
            server.wait()
            host.run(host.tokenissuer(), "sessions", "list", "--config", str(issuer.config)).succeeded()
            assert host.wait_until(lambda: host.is_free(issuer.port))
            server = production.serve(issuer)
    assert [failure for failure in load.failures if not failure.startswith(BROKEN_OFF)] == []
    assert len(crowd.kept) > 20
    assert len(crowd.revoked) > 20
    assert [crowd.refresh(token).status for token in crowd.kept] == [200] * len(crowd.kept)
    assert [crowd.refresh(token).status for token in crowd.revoked] == [401] * len(crowd.revoked)
