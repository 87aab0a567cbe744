"""The log: one line for each request, which nobody can forge or break."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.http import basic

if TYPE_CHECKING:
    from tests.protocol.conftest import Client

FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+) ?')
HOSTILE = {
    "newline": "a\nstatus=200 method=GET path=/token account=admin",
    "carriage-return": "a\r\nstatus=200",
    "quote": 'a" status=200 account="admin',
    "backslash-quote": 'a\\" status=200 account="admin\\',
    "backslash": "a\\",
    "space-and-equals": "a account=admin",
    "escape": "\x1b[2J\x1b[1;1Hroot",
    "delete": "a\x7f\x7f\x7fb",
    "c1": "a\x9b2Jb\x85c",
    "nul": "a\0b",
    "line-separator": "a\N{LINE SEPARATOR}b\N{PARAGRAPH SEPARATOR}c",
    "right-to-left": "a\N{RIGHT-TO-LEFT OVERRIDE}nimda",
    "format": "%s %(message)s {0} {account} $x",
    "long": "x" * 100_000,
    "long-escapes": '"' * 20_000,
}


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """The one line of the log, taken apart again."""
    (record,) = [record for record in caplog.records if record.name == "tokenissuer.requests"]
    line = record.getMessage()
    caplog.clear()
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 30_000
    pairs: list[tuple[str, str]] = []
    position = 0
    while position < len(line):
        match = FIELD.match(line, position)
        assert match is not None, line[position:]
        pairs.append((match[1], json.loads(match[2]) if match[2].startswith('"') else match[2]))
        position = match.end()
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def sent(where: str, value: str) -> tuple[str, dict[str, Any]]:
    """A request with the value in one place: its path and environment."""
    raw = value.encode().decode("latin-1")
    if where == "basic":
        header = "Basic " + base64.b64encode(f"{value}:wrong".encode()).decode()
        return "/token", {"HTTP_AUTHORIZATION": header}
    if where == "agent":
        return "/token", {"HTTP_USER_AGENT": raw}
    if where == "path":
        return "/", {"PATH_INFO": "/" + raw}
    if where == "method":
        return "/token", {"REQUEST_METHOD": raw}
    if where == "address":
        return "/token", {"REMOTE_ADDR": raw, "HTTP_X_FORWARDED_FOR": raw}
    scope = f"repository:{value}:pull" if where == "scope" else value
    return f"/token?{urlencode({where: scope})}"[:60_000], {}


# Where a value is meant to be read again in the log, and in which field.
PLACES = {"basic": "username", "agent": "agent", "path": "path", "method": "method", "client_id": "client_id"}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("where", [*PLACES, "address", "scope", "service", "account", "x"])
def test_nothing_sent_breaks_or_forges_a_line(
    client: Client, caplog: pytest.LogCaptureFixture, where: str, value: str
) -> None:
    """Whatever stands in user name, path, agent, scope or anywhere: one line, every field once."""
    path, environ = sent(where, value)
    method = environ.pop("REQUEST_METHOD", "GET")
    environ.setdefault("PATH_INFO", "/token")
    answer = client.send(environ, path, method)
    found = fields(caplog)
    assert found["status"] == str(answer.status)
    assert found.get("account", "") == ""
    if where in PLACES and len(value) < 400:
        # A server hands paths and headers over as Latin-1.
        expected = value if where in ("basic", "client_id") else value.encode().decode("latin-1")
        assert expected in found[PLACES[where]]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_nothing_in_a_form_breaks_or_forges_a_line(
    client: Client, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """In any of its fields, by name or by value."""
    for name in ("username", "service", "client_id", "scope", "grant_type", value):
        form = {"grant_type": "password", "username": "bob", "password": "wrong", name: value}
        answer = client.post(urlencode(form).encode()[:60_000])
        assert fields(caplog)["status"] == str(answer.status)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80), st.text(st.characters(max_codepoint=255), max_size=80))
def test_no_text_at_all_breaks_a_line(client: Client, caplog: pytest.LogCaptureFixture, text: str, header: str) -> None:
    """Generated, in several places at once."""
    caplog.clear()
    safe = text.encode("utf-8", "replace")
    answer = client.ask(
        f"/token?client_id={quote(safe)}&scope=repository:{quote(safe)}:pull&service={quote(safe)}",
        HTTP_USER_AGENT=header,
        HTTP_AUTHORIZATION="Basic " + base64.b64encode(safe + b":x").decode(),
    )
    assert fields(caplog)["status"] == str(answer.status)


def test_a_line_says_who_got_what(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Enough to see why something was denied, and nothing secret."""
    answer = client.get("bob", "repository:team/app:pull,delete", HTTP_USER_AGENT="docker/29")
    found = fields(caplog)
    assert found.pop("duration_ms").isdigit()
    assert found.pop("request_id") == answer.headers["X-Request-Id"]
    assert found == {
        "status": "200",
        "method": "GET",
        "path": "/token",
        "client": "192.0.2.1",
        "agent": "docker/29",
        "username": "bob",
        "service": "registry.example",
        "client_id": "",
        "requested": "repository:team/app:delete,pull",
        "account": "bob",
        "backend": "htpasswd",
        "granted": "repository:team/app:pull",
        "denied": "repository:team/app:delete",
        "reason": "repository:team/app allowed by access rule 3, delete: nothing grants it",
        "jti": answer.claims["jti"],
    }


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [
        ("bob", "never tried elsewhere", "the password is wrong"),
        (
            "nobody-in-the-log",
            "never tried elsewhere",
            "no backend knows the name (the name is not in the password file)",
        ),
        ("bob", "", "the password is empty"),
    ],
)
def test_the_log_says_why_a_login_failed(
    client: Client, caplog: pytest.LogCaptureFixture, user: str, password: str, reason: str
) -> None:
    """What the client is not told."""
    header = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    client.ask("/token", HTTP_AUTHORIZATION=header)
    found = fields(caplog)
    assert (found["status"], found["username"], found["reason"]) == ("401", user, reason)


@pytest.mark.parametrize(
    ("user", "scope", "reason", "mark"),
    [
        ("bob", "", "", "login"),
        ("bob", "repository:team/app:pull,push", "repository:team/app allowed by access rule 3", "login"),
        (
            "bob",
            "repository:team/secret:pull",
            "repository:team/secret allowed by access rule 3 and denied by access rule 5, pull: a rule denies it",
            "login",
        ),
        ("bob", "repository:x:pull", "repository:x no access rule applies, pull: nothing grants it", "login"),
        ("bob", "repository:bob/x:*", "repository:bob/x allowed by access rule 2", "login"),
        ("bob", "registry:catalog:*", "registry:catalog no access rule applies, *: nothing grants it", "login"),
        (None, "repository:x:pull", "repository:x no access rule applies, pull: nothing grants it", "denied"),
        (None, "repository:public/x:pull", "repository:public/x allowed by access rule 4", ""),
        (None, "", "", ""),
    ],
)
def test_a_denial_names_the_rule_or_says_that_there_is_none(
    client: Client, caplog: pytest.LogCaptureFixture, user: str | None, scope: str, reason: str, mark: str
) -> None:
    """And is marked for those who watch."""
    client.get(user, scope)
    (record,) = [record for record in caplog.records if record.name == "tokenissuer.requests"]
    assert record.__dict__["security"] == mark
    found = fields(caplog)
    assert found["reason"] == reason
    # A login is one fact, what it was not given another.
    assert ("denied" in found) is ("nothing grants" in reason or "denies" in reason)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("glpat-abcdefghijklmnopqrst", "glpat-ab... (26 characters, perhaps a token)"),
        ("x" * 60, "xxxxxxxx... (60 characters, perhaps a token)"),
        (f" {'x' * 60} ", " xxxxxxxx... (60 characters, perhaps a token) "),
        ("glpat-abcdefghijklmnopqrst ", "glpat-ab... (26 characters, perhaps a token) "),
        ("Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", "Bearer eyJhbGci... (36 characters, perhaps a token)"),
        ("somebody.with-a.long-name@example.com", "somebody.with-a.long-name@example.com"),
        ("gitlab-ci-token", "gitlab-ci-token"),
        ("global-container-registry-robot", "global-container-registry-robot"),
    ],
)
def test_a_token_in_the_place_of_the_name_is_not_shown(
    client: Client, caplog: pytest.LogCaptureFixture, name: str, shown: str
) -> None:
    """People paste it there."""
    client.ask("/token", HTTP_AUTHORIZATION=basic(name, "x"))
    assert fields(caplog)["username"] == shown


def test_a_token_in_another_place_is_not_shown_either(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Nor in the sentence that quotes it."""
    client.ask("/token?service=glpat-abcdefghijklmnopqrst&client_id=glpat-abcdefghijklmnopqrst")
    found, token = fields(caplog), "glpat-ab... (26 characters, perhaps a token)"
    assert found["service"] == found["client_id"] == token
    assert found["error"].startswith(f"unknown service '{token}'; served here:")


@pytest.mark.parametrize(
    ("path", "environ", "mark"),
    [
        ("/token", {"HTTP_AUTHORIZATION": "Basic Ym9iOndyb25n"}, "login_refused"),
        ("/token", {"HTTP_AUTHORIZATION": "Basic x"}, "login_refused"),
        ("/healthz", {}, ""),
        ("/nowhere", {}, ""),
    ],
)
def test_what_somebody_watches_for_is_marked(
    client: Client, caplog: pytest.LogCaptureFixture, path: str, environ: dict[str, Any], mark: str
) -> None:
    """Refused logins are, other mistakes are not."""
    client.ask(path, **environ)
    (record,) = [record for record in caplog.records if record.name == "tokenissuer.requests"]
    assert record.__dict__["security"] == mark


def test_a_refused_login_names_the_backend(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Of several, the one that knew the name."""
    client.ask("/token", HTTP_AUTHORIZATION="Basic Ym9iOndyb25nLXRvbw==")
    assert fields(caplog)["backend"] == "htpasswd"


def test_every_answer_has_an_id_of_its_own(client: Client) -> None:
    """By which its line is found."""
    ids = {client.ask(path).headers["X-Request-Id"] for path in ("/token", "/x", "/healthz", "/token?service=x") * 5}
    assert len(ids) == 20
    assert all(re.fullmatch(r"[0-9a-f]{16}", found) for found in ids)


@pytest.mark.parametrize(
    ("peer", "header", "warned"),
    [
        ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": "192.0.2.9"}, True),
        ("::1", {"HTTP_FORWARDED": "for=192.0.2.9"}, True),
        ("", {"HTTP_X_FORWARDED_FOR": "192.0.2.9"}, True),
        ("172.18.0.3", {"HTTP_X_FORWARDED_FOR": "192.0.2.9"}, True),
        ("9.9.9.9", {"HTTP_X_FORWARDED_FOR": "192.0.2.9"}, False),
        ("127.0.0.1", {}, False),
    ],
)
def test_a_proxy_that_nobody_named_is_noticed_once(
    client_of: Callable[[str, str], Client],
    caplog: pytest.LogCaptureFixture,
    peer: str,
    header: dict[str, str],
    warned: bool,
) -> None:
    """All its clients count as one; a stranger's header is nothing to talk about."""
    client = client_of("[throttle]", "[throttle]")
    for _ in range(3):
        client.send({"REMOTE_ADDR": peer, **header}, "/healthz", "GET")
    found = [record.getMessage() for record in caplog.records if "trusted_proxies" in record.getMessage()]
    assert len(found) == warned
    assert all(f"add '{peer or 'unix'}'" in text for text in found)
