"""What Prometheus reads from the running server, taken apart by Prometheus' own library."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import bcrypt
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Issuer, Sites

Read = Callable[..., float]


@pytest.fixture
def address(host: Host) -> str:
    """Where metrics are shown."""
    return f"127.0.0.1:{host.free_port()}"


@pytest.fixture
def issuer(own_sites: Sites, host: Host, address: str) -> Issuer:
    """Serves, and shows metrics."""
    made = own_sites.new_issuer("watched")
    made.config.write_text(f'{made.config.read_text()}\n[metrics]\nlisten = "{address}"\n')
    # Little work per password: every other second of these tests would be spent on it.
    hashed = bcrypt.hashpw(made.first_password.encode(), bcrypt.gensalt(4)).decode()
    (made.folder / "users.htpasswd").write_text(f"alice:{hashed}\n")
    made.server = host.start("issuer", *made.command())
    made.server.wait_for(lambda: not host.is_free(made.port) and host.get(made.realm).status == 200)
    return made


@pytest.fixture
def read(host: Host, address: str) -> Read:
    """Read the sum of a series' values with these labels."""

    def value(name: str, **labels: str) -> float:
        answer = host.get(f"http://{address}/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(answer.body.decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    return value


def test_requests_are_counted(issuer: Issuer, read: Read) -> None:
    """By what came of them."""
    for _ in range(12):
        assert issuer.ask("repository:alice/app:pull", user="alice").status == 200
        assert issuer.ask("repository:alice/app:pull").status == 403
    for number in range(11):
        issuer.ask(user="alice", password=f"wrong {number}")
    assert read("tokenissuer_requests_total", endpoint="token", outcome="denied") == 12
    # One more was asked to see whether it answers.
    assert read("tokenissuer_requests_total", endpoint="token", outcome="good") == 13
    assert read("tokenissuer_logins_total", backend="htpasswd", outcome="accepted") == 12
    refused = read("tokenissuer_logins_total", backend="htpasswd", outcome="refused")
    throttled = read("tokenissuer_throttled_total", limit="account")
    assert (refused, throttled) == (10, 1)
    asked = read("tokenissuer_backend_seconds_count", backend="htpasswd", question="authenticate")
    remembered = read("tokenissuer_remembered_total", backend="htpasswd")
    assert (asked, remembered) == (11, 11)
    assert read("tokenissuer_request_seconds_count", endpoint="token") == 13 + 12 + 11


def test_it_says_when_the_certificate_ends_and_what_is_up(issuer: Issuer, read: Read, host: Host, address: str) -> None:
    """The two that matter most; a source that is down is named here, and to nobody else."""
    years = (read("tokenissuer_certificate_end_timestamp_seconds") - issuer.config.stat().st_mtime) / 365.25 / 86400
    assert 9.9 < years < 10.1
    assert host.wait_until(lambda: read("tokenissuer_part_up", part="htpasswd") == 1)
    assert host.wait_until(lambda: read("tokenissuer_part_up", part="refresh.store") == 1)
    ready = host.get(f"http://{address}/readyz")
    assert (ready.status, ready.json()["parts"]) == (200, {"htpasswd": "up", "refresh.store": "up"})
    assert host.get(f"http://{address}/healthz").json() == {"status": "up"}
    assert host.get(f"http://{address}/token").status == 404


def test_the_public_address_shows_no_metrics(issuer: Issuer, host: Host) -> None:
    """They tell whom one might attack."""
    for path in ("/metrics", "/readyz/htpasswd", "/metrics/"):
        assert host.get(f"http://127.0.0.1:{issuer.port}{path}").status == 404
    assert host.get(f"http://127.0.0.1:{issuer.port}/readyz").json() == {"status": "ready"}


def post(url: str, **form: str) -> tuple[int, dict[str, object]]:
    """Send a form; the status and what the answer says."""
    try:
        with urllib.request.urlopen(url, urlencode(form).encode(), timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_refresh_tokens_and_reloads_are_counted(issuer: Issuer, read: Read, host: Host) -> None:
    """Good ones and failed ones."""
    server = issuer.server
    assert server is not None
    password = issuer.passwords["alice"]
    _, answer = post(issuer.realm, grant_type="password", username="alice", password=password, access_type="offline")
    token = str(answer["refresh_token"])
    assert post(issuer.realm, grant_type="refresh_token", refresh_token=token)[0] == 200
    assert post(f"http://127.0.0.1:{issuer.port}/revoke", token=token)[0] == 200
    assert post(issuer.realm, grant_type="refresh_token", refresh_token=token)[0] == 401
    events = ("issued", "redeemed", "revoked", "refused")
    assert [read("tokenissuer_refresh_tokens_total", event=event) for event in events] == [1, 1, 1, 1]
    issuer.config.write_text(issuer.config.read_text() + "\n# changed\n")
    os.kill(server.process.pid, signal.SIGHUP)
    assert host.wait_until(lambda: read("tokenissuer_reloads_total", outcome="good") >= 1)
    good = issuer.config.read_text()
    issuer.config.write_text("nonsense")
    assert host.wait_until(lambda: read("tokenissuer_reloads_total", outcome="failed") == 1)
    issuer.config.write_text(good)
    assert issuer.ask(user="alice").status == 200
    assert token not in server.output()


def test_an_address_that_is_taken_is_refused_in_one_line(own_sites: Sites, host: Host) -> None:
    """With the table to change."""
    issuer = own_sites.new_issuer("taken")
    issuer.config.write_text(f'{issuer.config.read_text()}\n[metrics]\nlisten = "127.0.0.1:{host.taken_port()}"\n')
    ran = host.run(*issuer.command())
    assert ran.code == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "[metrics] cannot listen" in ran.stderr
