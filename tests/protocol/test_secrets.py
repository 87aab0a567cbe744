"""No secret appears in any output, whatever is done with it."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.config import load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.options import Secret, decode, option
from tokenissuer.policy import Policy
from tokenissuer.scope import Access
from tokenissuer.service import Password, TokenService
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import SigningKey
from tokenissuer.web.app import Application

if TYPE_CHECKING:
    from tests.protocol.conftest import Client, Server

FORM = "application/x-www-form-urlencoded"


class Planted:
    """Values that no output may hold, each another, so that a leak tells where it comes from."""

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self.values: list[str] = []

    def __call__(self, where: str) -> str:
        value = f"planted-{next(self._count)}-{where}"
        self.values.append(value)
        return value

    def forms(self) -> Iterable[str]:
        """Each value as it is, and in base64 wherever it may begin there."""
        for value in self.values:
            yield value
            yield quote(value)
            for shift in range(3):
                text = base64.b64encode(b"x" * shift + value.encode()).decode().rstrip("=")
                # Without the ends, which depend on the neighbours.
                yield text[4:-4]

    def found_in(self, text: str) -> list[str]:
        return [form for form in self.forms() if form in text]


def test_the_search_finds_what_is_there() -> None:
    """Plain and in base64, at any place of it."""
    planted = Planted()
    value = planted("x")
    assert planted.found_in(f"a {value} b")
    for before in ("", "b", "bo", "bob:"):
        assert planted.found_in(base64.b64encode(f"{before}{value}".encode()).decode())
    assert not planted.found_in("nothing of it")


def header(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_a_server_at_debug_says_nothing_secret(
    serve: Callable[[Path], Server], write: Callable[..., Path], planted: Planted
) -> None:
    """Passwords in every right and wrong place, wrong and right ones, and the tokens that are issued."""
    config = write()
    server = serve(config)
    asks: list[tuple[str, str, dict[str, str], str]] = [
        ("GET", "/token", header(f"bob:{planted('basic')}"), ""),
        ("GET", "/token", header(f"nobody:{planted('unknown')}"), ""),
        ("GET", "/token", header(f":{planted('identity')}"), ""),
        ("GET", "/token", header(f"<token>:{planted('token-name')}"), ""),
        ("GET", "/token", header(planted("no-colon")), ""),
        ("GET", "/token", header("bob:\0" + planted("control")), ""),
        ("GET", "/token", header("bob:" + planted("long") * 200), ""),
        ("GET", "/token", {"Authorization": f"Basic {planted('no-base64')}!"}, ""),
        ("GET", "/token", {"Authorization": f"Basic {header('bob:' + planted('broken'))['Authorization'][6:-3]}"}, ""),
        ("GET", "/token", {"Authorization": f"Bearer {planted('bearer')}"}, ""),
        ("GET", "/token", {"Authorization": planted("no-scheme")}, ""),
        ("GET", "/token", {"Cookie": f"session={planted('cookie')}", "X-Token": planted("other-header")}, ""),
        ("GET", f"/token?password={planted('query')}&username=bob&token={planted('query-token')}", {}, ""),
        ("GET", f"/token?{planted('query-name')}=x&{planted('query-alone')}", {}, ""),
        ("GET", f"/nowhere?password={planted('query-of-404')}", {}, ""),
        ("POST", "/nowhere", header(f"bob:{planted('basic-of-404')}"), f"password={planted('form-of-404')}"),
        ("PUT", "/token", header(f"bob:{planted('basic-of-405')}"), f"password={planted('form-of-405')}"),
        ("GET", "/token?service=other", header(f"bob:{planted('basic-of-400')}"), ""),
    ]
    forms: list[dict[str, Any]] = [
        {"grant_type": "password", "username": "bob", "password": planted("form")},
        {"grant_type": "password", "username": "nobody", "password": planted("form-unknown")},
        {"grant_type": "password", "username": "bob", "password": [planted("one"), planted("two")]},
        {"grant_type": "password", "password": planted("form-without-name")},
        {"grant_type": "refresh_token", "refresh_token": planted("refresh")},
        {"grant_type": "client_credentials", "client_secret": planted("client-secret")},
        {"grant_type": "authorization_code", "code": planted("code")},
        {"password": planted("no-grant-type"), planted("form-name"): "x"},
        {"grant_type": ["password", planted("grant-type-twice")], "username": "bob"},
    ]
    asks += [("POST", "/token", {"Content-Type": FORM}, urlencode(form, doseq=True)) for form in forms]
    asks += [
        ("POST", "/token", {"Content-Type": "application/json"}, json.dumps({"password": planted("json")})),
        ("POST", "/token", {"Content-Type": "text/plain"}, planted("text")),
        ("POST", "/token", {"Content-Type": FORM}, planted("body-of-one-word")),
        ("POST", "/token", {"Content-Type": FORM}, f"grant_type=password&username=bob&password={planted('x') * 9000}"),
        ("POST", "/token", {"Content-Type": FORM, **header(f"bob:{planted('beside-form')}")}, "grant_type=password"),
    ]
    refused = []
    for method, path, headers, body in asks:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        if answer.status == 200:
            assert "password" in path or "planted" in path or "Cookie" in headers
            answer.read()
        else:
            refused.append(f"{answer.getheaders()} {answer.read().decode()}")
        connection.close()
    good = server.talk(b"GET /token?scope=repository:team/a:pull HTTP/1.0\r\nAuthorization: Basic Ym9iOnB3\r\n\r\n")
    token = json.loads(good.partition(b"\r\n\r\n")[2])["token"]
    said = server.stop()
    assert said.count('"status": ') == len(asks) + 1
    assert planted.found_in(said) == []
    assert planted.found_in("".join(refused)) == []
    assert "Ym9iOnB3" not in said
    for part in token.split("."):
        assert part not in said
    for line in (config.parent / "users.htpasswd").read_text().splitlines():
        assert line.partition(":")[2] not in said


@pytest.fixture
def planted() -> Planted:
    """The values of one test."""
    return Planted()


class Careless(Backend):
    """A backend whose exceptions hold what it was given."""

    Options = object

    def __init__(self, where: str) -> None:
        self.where = where

    def authenticate(self, username: str, password: str) -> Account:
        if self.where == "authenticate":
            try:
                raise KeyError(password)
            except KeyError as error:
                raise RuntimeError(f"cannot bind as {username} with {password}") from error
        return Account(username)

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        raise ValueError(self.where)


@pytest.mark.parametrize("where", ["authenticate", "grants"])
def test_a_careless_backends_exception_is_told_without_its_text(
    client: Client, key: SigningKey, planted: Planted, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Neither its own nor that of the one behind it."""
    caplog.set_level(logging.DEBUG)
    secret = planted(where)
    backend = Careless("authenticate" if where == "authenticate" else secret)
    service = TokenService(
        Issuer("test-issuer", key, 900, {}),
        Chain([CachedBackend("careless", backend)]),
        Policy([]),
        ["registry.example"],
    )
    answer = type(client)(Application(service)).ask(
        "/token?scope=repository:a:pull", HTTP_AUTHORIZATION=header(f"bob:{secret}")["Authorization"]
    )
    assert answer.status == 500
    assert "in authenticate" in caplog.text or "in grants" in caplog.text
    assert planted.found_in(caplog.text + answer.body.decode()) == []


def test_values_that_hold_secrets_do_not_show_them(client: Client, key: SigningKey, planted: Planted) -> None:
    """A `repr` ends up in logs and tracebacks."""
    secret = Secret(planted("secret"))
    assert secret.reveal() == planted.values[0]
    shown = [repr(Password("bob", planted("password"))), repr(secret), str(secret), f"{secret}", format(secret)]
    token = Issuer("test-issuer", key, 900, {}).issue("bob", "registry.example", ())
    shown.append(repr(token))
    assert token.text not in "".join(shown)
    assert planted.found_in("".join(shown)) == []


@dataclass(frozen=True)
class Options:
    """Options of a backend with a secret."""

    secret: Secret = option("a secret")
    port: int = option("a number", default=1)


@pytest.mark.parametrize(
    "table",
    [
        {"secret": ["{}"]},
        {"secret": {"value": "{}"}},
        {"secret": "{}", "secret_file": "x"},
        {"secret_file": "x", "secret": "{}"},
        {"secrt": "{}"},
        {"secret": "{}", "prot": 5},
        {"secret": "{}", "port": "x"},
        {"Secret": "{}"},
    ],
)
def test_a_wrong_configuration_is_told_without_its_secrets(
    planted: Planted, tmp_path: Path, table: dict[str, Any]
) -> None:
    """Only the key is named."""
    secret = planted("configured")
    (tmp_path / "x").write_text(planted("file"))
    filled = json.loads(json.dumps(table).replace("{}", secret))
    with pytest.raises(ConfigurationError) as caught:
        decode(Options, filled, "[[backends]] 1", tmp_path)
    assert str(caught.value).startswith("[[backends]] 1")
    assert planted.found_in(str(caught.value)) == []


def test_a_secret_file_is_read_without_its_line_end(planted: Planted, tmp_path: Path) -> None:
    """And never named with its content."""
    for end in ("", "\n", "\r\n"):
        (tmp_path / "x").write_text(planted("file") + end, newline="")
        options = decode(Options, {"secret_file": "x"}, "[x]", tmp_path)
        assert options.secret.reveal() == planted.values[-1]
        assert planted.found_in(repr(options)) == []
    (tmp_path / "x").write_bytes(planted("bytes").encode() + b"\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8") as caught:
        decode(Options, {"secret_file": "x"}, "[x]", tmp_path)
    assert planted.found_in(str(caught.value)) == []


# With a password file that has bad lines the server starts: here it then finds nothing to listen on.
SERVE = ["serve", "--log-level", "debug", "--listen", "192.0.2.1:1"]


@pytest.mark.parametrize("command", [["check"], SERVE, ["passwd", "bob"]], ids=["check", "serve", "passwd"])
@pytest.mark.parametrize("place", ["line", "second-line", "key", "certificate", "toml", "unknown-key"])
def test_no_command_shows_what_is_wrong_in_a_file(
    write: Callable[..., Path], planted: Planted, command: list[str], place: str
) -> None:
    """A plain-text password in the password file, a key that is none, a line that is no TOML."""
    config = write()
    folder = config.parent
    secret = planted(place)
    if place == "line":
        (folder / "users.htpasswd").write_text(f"bob:{secret}\n")
    elif place == "second-line":
        (folder / "users.htpasswd").write_text(f"bob:{{SHA}}nU4eI71bcnBGqeO0t9tXvY1u5oQ=\n{secret}\n")
    elif place == "key":
        (folder / "auth.key").write_text(f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n")
    elif place == "certificate":
        (folder / "auth.crt").write_text(f"-----BEGIN CERTIFICATE-----\n{secret}\n-----END CERTIFICATE-----\n")
    elif place == "toml":
        config.write_text(f'[issuer]\nname = "x"\npassword = {secret}\n')
    elif place == "unknown-key":
        config.write_text(config.read_text().replace('type = "htpasswd"', f'type = "htpasswd"\nsecret = "{secret}"'))
    environ = {"PATH": os.environ["PATH"]}
    program = [sys.executable, "-P", "-m", "tokenissuer"]
    arguments = [*command, "--config", str(config)]
    # Whatever is typed is a secret too.
    ran = subprocess.run(
        [*program, *arguments],
        input=planted("typed") + "\n",
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert said
    assert "Traceback" not in said
    assert planted.found_in(said) == []
    for hash_ in re.findall(r":(.+)", (folder / "users.htpasswd").read_text()):
        assert hash_ not in said


def test_init_shows_the_first_password_once_and_writes_it_nowhere(tmp_path: Path) -> None:
    """On standard output and in no file; and nothing of the private key."""
    command = [sys.executable, "-P", "-m", "tokenissuer", "init", "new"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    (password,) = re.findall(r"password: (\S+)", ran.stdout)
    assert ran.stdout.count(password) == 1
    written = "".join(path.read_text() for path in (tmp_path / "new").iterdir())
    assert password not in written
    key = (tmp_path / "new" / "auth.key").read_text().splitlines()[1]
    assert key not in ran.stdout + ran.stderr
    assert load_config(tmp_path / "new" / "tokenissuer.toml").issuer.name == "tokenissuer"
