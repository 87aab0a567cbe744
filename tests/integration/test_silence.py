"""A server with every kind of backend, at its most talkative: what it writes and shows holds no secret."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import bcrypt
import pytest

from tests.support.gitlab import StubGitLab, answers, serving
from tests.support.http import basic
from tests.support.ldap import READER, FakeDirectory

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Sites

FORM = "application/x-www-form-urlencoded"
FORGED = '\n{"time": "2026-01-01T00:00:00.000Z", "forged": true}\r\n2026-01-01T00:00:00.000Z INFO forged \x1b[2J'


class Secrets:
    """Values that nothing may hold, each another."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def __call__(self, where: str) -> str:
        self.values.append(f"planted-{len(self.values)}-{where}")
        return self.values[-1]

    def found_in(self, text: str) -> list[str]:
        """Each that the text holds, as it is or in base64 wherever it may begin there."""
        found = []
        for value in self.values:
            forms = [value, quote(value)]
            forms += [base64.b64encode(b"x" * shift + value.encode()).decode().rstrip("=")[4:-4] for shift in range(3)]
            found += [form for form in forms if form in text]
        return found


@pytest.fixture
def directory() -> Iterator[FakeDirectory]:
    """A directory with alice in it."""
    made = FakeDirectory()
    yield made
    made.close()


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab with nobody in it."""
    with serving() as made:
        yield made


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> str:
    """How the log is written."""
    return str(request.param)


def test_nothing_secret_is_said_and_no_line_is_forged(
    own_sites: Sites, host: Host, directory: FakeDirectory, gitlab: StubGitLab, form: str
) -> None:
    """Over every endpoint and backend, right, wrong and while each of them is down, at DEBUG."""
    secret = Secrets()
    issuer, shown = own_sites.new_issuer("silent"), f"127.0.0.1:{host.free_port()}"
    secret.values.append(issuer.first_password)
    # Little work per password: there are many.
    hashed = bcrypt.hashpw(issuer.first_password.encode(), bcrypt.gensalt(4)).decode()
    (issuer.folder / "users.htpasswd").write_text(f"alice:{hashed}\n")
    (issuer.folder / "reader.txt").write_text("reader-secret")
    secret.values.append("reader-secret")
    assert secret.found_in(basic("x", issuer.first_password))
    issuer.config.write_text(
        f"""{issuer.config.read_text()}
[[backends]]
type = "ldap"
servers = ["{directory.url}"]
bind_dn = "{READER}"
bind_password_file = "reader.txt"
allow_plaintext = true
timeout = 1
user = {{ base = "dc=test" }}
groups = {{ base = "ou=groups,dc=test" }}

[[backends]]
type = "gitlab"
url = "{gitlab.url}"
plain_http = true

[metrics]
listen = "{shown}"

[throttle]
account = 100
address = 1000
redis = "redis://:{secret("redis")}@127.0.0.1:9/0"
"""
    )
    server = host.start("silent", *issuer.command(), "--log-level", "debug", "--log-format", form)
    server.wait_for(lambda: not host.is_free(issuer.port) and host.get(issuer.realm).status == 200)

    def ask(method: str, path: str, headers: dict[str, str], body: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", issuer.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, f"{answer.getheaders()} {answer.read().decode()}"

    def login(name: str, password: str) -> tuple[int, str]:
        return ask("GET", "/token?scope=repository:alice/x:pull", {"Authorization": basic(name, password)})

    refused = []
    for fault in ("none", "ldap", "gitlab"):
        if fault == "ldap":
            directory.close()
        if fault == "gitlab":
            gitlab.fault = answers(502, f"<html>{secret('of-gitlab')}</html>".encode())
        for name in ("alice", "nobody", f"n{FORGED}", "gitlab-ci-token"):
            refused.append(login(name, secret(f"{fault}-basic")))
            form_of = {"grant_type": "password", "username": name, "password": secret(f"{fault}-form")}
            refused.append(ask("POST", "/token", {"Content-Type": FORM}, urlencode(form_of)))
        refused.append(login("alice", f"glpat-{secret('pat')}"))
        for path in ("/healthz", "/readyz", "/revoke", "/nowhere", "/.well-known/jwks.json"):
            headers = {"X-Api-Key": secret("header"), "Cookie": secret("cookie"), "User-Agent": FORGED.strip()[:40]}
            ask("GET", f"{path}?token={secret('query')}", headers)
            ask("POST", path, {"Content-Type": FORM}, f"token={secret('revoked')}&password={secret('password')}")
    # What is right is no less secret.
    offline = {
        "grant_type": "password",
        "username": "alice",
        "password": issuer.first_password,
        "access_type": "offline",
    }
    status, answer = ask("POST", "/token", {"Content-Type": FORM}, urlencode(offline))
    assert status == 200
    good = json.loads(answer[answer.index("] {") + 2 :])
    secret.values += [good["refresh_token"], *good["token"].split(".")]
    redeemed = {"grant_type": "refresh_token", "refresh_token": good["refresh_token"]}
    assert ask("POST", "/token", {"Content-Type": FORM}, urlencode(redeemed))[0] == 200
    metrics = host.get(f"http://{shown}/metrics").body.decode()
    ready = host.get(f"http://{shown}/readyz")
    assert {401, 503} <= {status for status, _ in refused}
    assert not {status for status, _ in refused} & {200, 500}
    server.stop()
    said = server.output()
    for text in (said, metrics, ready.body.decode(), "".join(text for _, text in refused)):
        assert secret.found_in(text) == []
    assert '"security": "outage"' in said or "security=outage" in said or " outage " in said
    check_lines(said, form)


def check_lines(said: str, form: str) -> None:
    """Every line is whole, and ours."""
    lines = said.splitlines()
    assert len(lines) > 60
    assert said.isascii()
    assert "\x1b" not in said
    check: Callable[[str], object] = json.loads if form == "json" else text_line
    for line in lines:
        found = check(line)
        assert not isinstance(found, dict) or "forged" not in found


def text_line(line: str) -> None:
    """A line for people begins with a time of today."""
    assert line[:2] == "20"
    assert line[10] == "T"
    assert not line.startswith("2026-01-01T00:00:00.000Z INFO forged")
