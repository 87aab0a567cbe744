"""Paths, methods and what every answer has in common."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, UnknownAccount
from tokenissuer.monitoring.health import Health
from tokenissuer.policy import NOBODY, Glob, Policy, Rule
from tokenissuer.scope import Access
from tokenissuer.service import TokenService
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import SigningKey
from tokenissuer.web.app import Application
from tokenissuer.web.browsers import AllowedOrigins
from tokenissuer.web.routes import check_pages

if TYPE_CHECKING:
    from tests.protocol.conftest import Client, TokenAnswer

TOKEN_PATHS = ("/token", "/jwt/auth", "/auth", "/auth/token")
PUBLIC = "scope=repository:public/app:pull"
BOB = "Basic Ym9iOnB3"
FORM = b"grant_type=password&username=bob&password=pw"


RealmClient = Callable[..., "Client"]


@pytest.fixture
def realm_client(client: Client, key: SigningKey) -> RealmClient:
    """Make a client of a server with this realm, and with sites that may ask from a browser."""

    def make(realm: str, *origins: str) -> Client:
        chain = Chain([CachedBackend("bob", OnlyBob(None))])
        service = TokenService(Issuer("test-issuer", key), chain, Policy([]), ["registry.example"])
        return type(client)(Application(service, realm=realm, origins=AllowedOrigins(origins) if origins else None))

    return make


class OnlyBob(Backend):
    """Lets `bob` in."""

    def authenticate(self, username: str, password: str) -> Account:
        if (username, password) != ("bob", "pw"):
            raise InvalidCredentials
        return Account(username, advice="ask for a right")


def plain(answer: TokenAnswer) -> None:
    """What holds for every answer."""
    assert answer.headers["Cache-Control"] == "no-store"
    assert not {"Set-Cookie", "Location"} & set(answer.headers)
    assert not 300 <= answer.status < 400
    if answer.status != 200:
        body = answer.json()
        (error,) = body["errors"]
        assert set(body) == {"errors", "error", "error_description"}
        assert set(error) == {"code", "message"}
        assert error["message"] == body["error_description"] != ""
        # RFC 6749, 5.2
        assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]{1,400}", body["error_description"])


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("prefix", ["", "/registry", "/a/b"])
@pytest.mark.parametrize("path", TOKEN_PATHS)
def test_tokens_are_issued_at_four_paths(client: Client, path: str, prefix: str, slash: str) -> None:
    """With and without a slash, under any prefix, by GET and POST, and never by a redirect."""
    for answer in (
        client.ask(path + slash, SCRIPT_NAME=prefix, HTTP_AUTHORIZATION=BOB),
        client.post(FORM, path=path + slash, SCRIPT_NAME=prefix),
    ):
        plain(answer)
        assert answer.claims["sub"] == "bob"


@pytest.mark.parametrize(
    ("script_name", "path"),
    [("/token", ""), ("/token", "/"), ("/jwt", "/auth"), ("/jwt/auth", ""), ("/auth", "/token"), ("/auth/token", "")],
)
def test_the_path_may_be_split_by_the_server(client: Client, script_name: str, path: str) -> None:
    """Apache's WSGIScriptAlias puts the first part, or all of it, into SCRIPT_NAME."""
    answer = client.ask("/", SCRIPT_NAME=script_name, PATH_INFO=path, HTTP_AUTHORIZATION=BOB)
    assert answer.claims["sub"] == "bob"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/tokens",
        "/Token",
        "/token//",
        "//token",
        "/token/x",
        "/../token",
        "/v2/",
        "/jwks.json",
        "/\xff",
        "/%00",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
def test_everything_else_is_a_json_404(client: Client, path: str, method: str) -> None:
    """With words that Docker shows."""
    answer = client.ask("/", method, PATH_INFO=path, HTTP_AUTHORIZATION=BOB)
    assert answer.status == 404
    if method != "HEAD":
        plain(answer)
        assert answer.json()["error"] == "not_found"


def test_the_404_says_what_was_asked_and_where_tokens_are(realm_client: RealmClient) -> None:
    """People read it in the output of `docker login`."""
    client = realm_client("https://auth.example.com/registry/login")
    (error,) = client.ask("/v2/", PATH_INFO="/v2/").json()["errors"]
    assert error["message"] == (
        "the token server has no page /v2/; tokens are issued at https://auth.example.com/registry/login"
    )
    (error,) = client.ask("/", PATH_INFO="/" + "x" * 5000).json()["errors"]
    assert len(error["message"]) < 250


@pytest.mark.parametrize(
    ("realm", "paths", "base"),
    [
        ("https://a.example/token", ["/token"], ""),
        ("https://a.example/jwt/auth/", ["/jwt/auth", "/auth"], ""),
        ("https://a.example/registry/token", ["/registry/token", "/token"], "/registry"),
        ("https://a.example/x/y/auth/token", ["/x/y/auth/token", "/y/auth/token", "/auth/token"], "/x/y"),
        ("https://a.example/oauth2/issue", ["/oauth2/issue", "/issue"], "/oauth2"),
        ("https://a.example/my%20login", ["/my login"], ""),
        ("https://a.example", [""], ""),
        ("https://a.example/", [""], ""),
    ],
)
def test_the_path_of_the_realm_is_served_whatever_a_proxy_takes_off(
    realm_client: RealmClient, realm: str, paths: list[str], base: str
) -> None:
    """And all other pages below what is before it."""
    client = realm_client(realm)
    for path in [*TOKEN_PATHS, *paths]:
        for slash in ("", "/"):
            assert client.ask("/", PATH_INFO=path + slash, HTTP_AUTHORIZATION=BOB).status == 200, path
    metadata = client.ask("/.well-known/oauth-authorization-server").json()
    assert metadata["issuer"] == f"https://a.example{base}"
    assert metadata["token_endpoint"] == realm
    assert metadata["jwks_uri"] == f"https://a.example{base}/.well-known/jwks.json"
    for path in ("/.well-known/oauth-authorization-server", "/.well-known/jwks.json", "/healthz"):
        for prefix in {"", base}:
            assert client.ask("/", PATH_INFO=prefix + path).status == 200
    assert client.ask("/", PATH_INFO=f"/.well-known/oauth-authorization-server{base}").status == 200
    assert client.ask("/", PATH_INFO="/elsewhere" + (paths[0].rstrip("/") or "/x")).status == 404
    assert client.ask("/", PATH_INFO="/").status == (200 if not paths[0].strip("/") else 404)


@pytest.mark.parametrize("path", ["/revoke", "/a/healthz", "/.well-known/jwks.json/"])
def test_a_realm_may_not_take_the_place_of_another_page(path: str) -> None:
    """Else tokens could not be revoked, say, and nobody would know."""
    with pytest.raises(ValueError, match="is another page"):
        check_pages(f"https://a.example{path}")


ORIGIN = "https://ui.example.com"
PREFLIGHT: dict[str, Any] = {"HTTP_ORIGIN": ORIGIN, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "GET"}


def allowed(answer: TokenAnswer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("Access-Control-")}


def test_a_site_that_is_allowed_may_ask_from_a_browser(realm_client: RealmClient) -> None:
    """It reads answers and errors, and is told beforehand what it may send."""
    client = realm_client("https://a.example/token", ORIGIN)
    answer = client.ask("/token", "OPTIONS", **PREFLIGHT)
    assert answer.status == 200
    assert allowed(answer) == {
        "Access-Control-Allow-Origin": ORIGIN,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
        "Access-Control-Expose-Headers": "WWW-Authenticate, Retry-After, X-Request-Id",
    }
    for answer in (
        client.ask("/token", HTTP_ORIGIN=ORIGIN, HTTP_AUTHORIZATION=BOB),
        client.ask(f"/token?{PUBLIC}".replace("public", "private"), HTTP_ORIGIN=ORIGIN),
        client.ask("/nowhere", HTTP_ORIGIN=ORIGIN),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://ui.example.com.evil.example", "http://ui.example.com", "null", "", "*"]
)
def test_no_other_site_may(realm_client: RealmClient, origin: str) -> None:
    """Neither ask beforehand nor read an answer."""
    client = realm_client("https://a.example/token", ORIGIN)
    answer = client.ask("/token", "OPTIONS", **{**PREFLIGHT, "HTTP_ORIGIN": origin})
    assert (answer.status, allowed(answer)) == (405, {})
    answer = client.ask("/token", HTTP_ORIGIN=origin, HTTP_AUTHORIZATION=BOB)
    assert (answer.status, allowed(answer), answer.headers["Vary"]) == (200, {}, "Origin")


def test_without_the_key_no_site_may(realm_client: RealmClient) -> None:
    """And nothing about it is in any answer."""
    client = realm_client("https://a.example/token")
    assert client.ask("/token", "OPTIONS", **PREFLIGHT).status == 405
    answer = client.ask("/token", HTTP_ORIGIN=ORIGIN, HTTP_AUTHORIZATION=BOB)
    assert not allowed(answer)
    assert "Vary" not in answer.headers


@pytest.mark.parametrize(
    ("header", "value"),
    [("HTTP_SEC_FETCH_MODE", "navigate"), ("HTTP_ORIGIN", "null"), ("HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux)")],
)
def test_a_browser_is_asked_to_log_in_and_docker_is_not(
    client: Client, caplog: pytest.LogCaptureFixture, header: str, value: str
) -> None:
    """A browser opens its box only for 401 with a challenge. Docker shows the words of a 403. The log has one word."""
    caplog.set_level(logging.INFO)
    path = "/token?scope=repository:private/app:pull"
    browser = client.ask(path, method="GET", body=None, **{header: value})
    docker = client.ask(path, HTTP_USER_AGENT="docker/29.0")
    assert (browser.status, docker.status) == (401, 403)
    assert browser.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert "WWW-Authenticate" not in docker.headers
    plain(browser)
    assert [getattr(record, "security", "") for record in caplog.records] == ["denied", "denied"]


def test_a_browser_with_a_login_is_not_asked_again(realm_client: RealmClient) -> None:
    """It would ask its user for ever."""
    client = realm_client("https://a.example/token")
    answer = client.ask("/token?scope=repository:a:pull", HTTP_AUTHORIZATION=BOB, HTTP_ORIGIN="null")
    assert answer.status == 403
    assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "BREW"])
@pytest.mark.parametrize("path", TOKEN_PATHS)
def test_other_methods_are_405(client: Client, path: str, method: str) -> None:
    """And say which ones are served."""
    answer = client.ask(path, method, HTTP_AUTHORIZATION=BOB)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, POST")
    if method != "HEAD":
        plain(answer)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/.well-known/jwks.json"])
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("POST", 405), ("DELETE", 405)])
def test_the_public_pages_are_only_read(client: Client, path: str, method: str, status: int) -> None:
    """Nothing there changes anything."""
    answer = client.ask(path, method)
    assert answer.status == status
    plain(answer) if method != "HEAD" else None
    if method == "HEAD":
        assert answer.body == b""
    if status == 405:
        assert answer.headers["Allow"] == "GET, HEAD"


def test_healthz_says_up(client: Client) -> None:
    """One word for a probe."""
    assert client.ask("/healthz").json() == {"status": "up"}


def test_readyz_tells_strangers_only_whether_it_is_ready(
    client: Client, client_with: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    """Which source is down, and why, is in the log alone."""
    assert client.ask("/readyz").json() == {"status": "ready"}
    down = Stranger()
    down.check = lambda: (_ for _ in ()).throw(BackendUnavailable("ldap is down"))  # type: ignore[method-assign]
    caplog.set_level(logging.INFO)
    answer = client_with(Stranger(), down).ask("/readyz")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert b"ldap" not in answer.body
    assert b"backend-" not in answer.body
    plain(answer)
    assert "backend-1: ldap is down" in caplog.text
    assert "backend-0" not in caplog.text


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        pytest.param(lambda c: c.ask("/token", HTTP_AUTHORIZATION="Basic x"), 401, id="401"),
        pytest.param(lambda c: c.ask("/token?scope=repository:a:pull"), 403, id="403"),
        pytest.param(lambda c: c.ask("/token?service=\N{SNOWMAN}%22%5C%0a%7f"), 400, id="hostile-service"),
        pytest.param(lambda c: c.post(b"\xff=\xff"), 400, id="form"),
        pytest.param(lambda c: c.post(b"grant_type=%0d%0aSet-Cookie:x"), 400, id="grant-type"),
        pytest.param(lambda c: c.post(b"", CONTENT_LENGTH="99999999"), 413, id="413"),
        pytest.param(lambda c: c.ask("/token?" + PUBLIC), 200, id="200"),
    ],
)
def test_every_answer_is_written_alike(client: Client, ask: Callable[[Client], TokenAnswer], status: int) -> None:
    """One body for Docker and OAuth, in characters both allow, kept by nobody."""
    answer = ask(client)
    assert answer.status == status
    plain(answer)


class Stranger(Backend):
    """A backend of somebody else's; it does what it is told."""

    Options = SimpleNamespace

    def __init__(self, options: Any = None, *, error: BaseException | None = None, granting: bool = False) -> None:
        self.error = error
        self.granting = granting
        self.asked = 0

    def authenticate(self, username: str, password: str) -> Account:
        self.asked += 1
        if self.error is not None and not self.granting:
            raise self.error
        return Account("stranger")

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        if self.error is not None:
            raise self.error
        return frozenset({"pull", "push", "delete", "*", "admin"})


EVERYONE_PULLS = Rule(
    number=1,
    accounts=NOBODY,
    groups=NOBODY,
    authenticated=False,
    everyone=True,
    repositories=(Glob("public/**"),),
    catalog=True,
    actions=frozenset({"pull"}),
    services=frozenset(),
    networks=(),
    deny=False,
)


@pytest.fixture
def client_with(client: Client, key: SigningKey) -> Callable[..., Client]:
    """A client of an application with backends made here."""

    def made(*backends: Backend) -> Client:
        sources = [CachedBackend(f"backend-{number}", backend) for number, backend in enumerate(backends)]
        service = TokenService(
            Issuer("test-issuer", key, 900, {}), Chain(sources), Policy([EVERYONE_PULLS]), ["registry.example"]
        )
        health = Health({source.name: source.backend.check for source in sources})
        return type(client)(Application(service, ready=health.prove))

    return made


ASKS: dict[str, Callable[[Client], TokenAnswer]] = {
    "get": lambda c: c.ask(f"/token?{PUBLIC}", HTTP_AUTHORIZATION=BOB),
    "post": lambda c: c.post(FORM, path=f"/token?{PUBLIC}"),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_an_outage_is_503_and_no_later_backend_is_asked(
    client_with: Callable[..., Client], ask: Callable[[Client], TokenAnswer]
) -> None:
    """Never "wrong password", never anonymous, never a weaker backend."""
    weaker = Stranger()
    answer = ask(client_with(Stranger(error=BackendUnavailable("ldap is down", retry_after=7)), weaker))
    assert (answer.status, answer.headers["Retry-After"], weaker.asked) == (503, "7", 0)
    assert answer.json()["errors"][0]["code"] == "UNAVAILABLE"
    assert b"ldap" not in answer.body
    plain(answer)


@pytest.mark.parametrize(
    ("first", "status", "asked"),
    [(UnknownAccount(), 200, 1), (InvalidCredentials(), 401, 0)],
    ids=["unknown", "refused"],
)
@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_the_first_backend_that_knows_the_name_decides(
    client_with: Callable[..., Client], ask: Callable[[Client], TokenAnswer], first: Exception, status: int, asked: int
) -> None:
    """Only an unknown name goes on to the next."""
    second = Stranger()
    answer = ask(client_with(Stranger(error=first), second))
    assert (answer.status, second.asked) == (status, asked)


def test_a_name_no_backend_knows_is_401(client_with: Callable[..., Client]) -> None:
    """And reads like a wrong password."""
    unknown, wrong = (
        client_with(Stranger(error=error)).ask("/token", HTTP_AUTHORIZATION=BOB)
        for error in (UnknownAccount(), InvalidCredentials())
    )
    assert (unknown.status, unknown.body) == (wrong.status, wrong.body) == (401, wrong.body)


@pytest.mark.parametrize("granting", [False, True], ids=["login", "grants"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, ValueError, OSError, TypeError, RecursionError, MemoryError])
def test_a_defect_is_500_without_detail(
    client_with: Callable[..., Client],
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
    granting: bool,
) -> None:
    """Neither the client nor the log gets a stranger's text: the password may stand in it."""
    caplog.set_level(logging.DEBUG)
    client = client_with(Stranger(error=error("planted: pw-1234"), granting=granting))
    answer = client.ask("/token?scope=repository:x:pull", HTTP_AUTHORIZATION=BOB)
    assert answer.status == 500
    assert answer.json()["error_description"] == "the token server failed; its log says why"
    plain(answer)
    assert error.__name__ in caplog.text
    assert Path(__file__).name in caplog.text
    assert "planted" not in caplog.text
    assert b"planted" not in answer.body


def test_a_backend_cannot_grant_what_a_registry_does_not_know(client_with: Callable[..., Client]) -> None:
    """Nor anything that was not asked for, nor the catalog's star, nor for a name that is none."""
    client = client_with(Stranger())
    asked = "repository:x:pull,push,admin repository:y:* registry:catalog:* repository:a//b:pull thing:z:pull"
    answer = client.ask(f"/token?scope={asked.replace(' ', '+')}", HTTP_AUTHORIZATION=BOB)
    assert answer.access == {
        "repository:x": ["pull", "push"],
        "repository:y": ["delete", "pull", "push"],
        "registry:catalog": ["*"],
    }


@pytest.mark.parametrize(
    ("address", "granted"),
    [
        pytest.param("10.1.2.3", True, id="inside"),
        pytest.param("192.0.2.1", False, id="outside"),
        pytest.param("::ffff:10.1.2.3", True, id="inside-by-a-dual-stack-socket"),
        pytest.param("::ffff:192.0.2.1", False, id="outside-by-a-dual-stack-socket"),
        pytest.param("::1", False, id="ipv6"),
        pytest.param("", False, id="unix-socket"),
        pytest.param("nonsense", False, id="nonsense"),
    ],
)
@pytest.mark.parametrize("effect", ["allow", "deny"])
def test_networks_are_held_against_the_connections_address(
    client_of: Callable[[str, str], Client], address: str, granted: bool, effect: str
) -> None:
    """An IPv4 address is one however the socket shows it; where it cannot be told, nothing is allowed by it."""
    if effect == "allow":
        client = client_of('repositories = ["team/**"]\n', 'repositories = ["team/**"]\nnetworks = ["10.0.0.0/8"]\n')
    else:
        client = client_of(
            'repositories = ["team/secret"]\n', 'repositories = ["team/**"]\nnetworks = ["10.0.0.0/8"]\n'
        )
        granted = not granted and address not in ("", "nonsense")
    answer = client.get("bob", "repository:team/app:pull", REMOTE_ADDR=address)
    assert bool(answer.access) is granted


@pytest.mark.parametrize(
    "name", ["HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_FORWARDED", "HTTP_CLIENT_IP", "HTTP_X_REMOTE_USER"]
)
def test_headers_cannot_claim_an_address_or_a_user(client_of: Callable[[str, str], Client], name: str) -> None:
    """Anybody can send them."""
    client = client_of(
        'repositories = ["public/**", "host', 'networks = ["10.0.0.0/8"]\nrepositories = ["public/**", "host'
    )
    for value in ("10.1.2.3", "for=10.1.2.3", "admin"):
        assert client.send({name: value}, f"/token?{PUBLIC}", "GET").status == 403
        assert client.ask(f"/token?{PUBLIC}", REMOTE_ADDR="10.1.2.3").status == 200


def test_the_realm_of_the_challenge_cannot_break_the_header(client_of: Callable[[str, str], Client]) -> None:
    """Quotes, backslashes and letters beyond ASCII in the issuer's name."""
    name = 'a"b\\c\N{SNOWMAN}d'
    client = client_of('name = "test-issuer"', f"name = {json.dumps(name)}")
    answer = client.ask("/token", HTTP_AUTHORIZATION="Basic x")
    assert re.fullmatch(r'Basic realm="[^"\\]+", charset="UTF-8"', answer.headers["WWW-Authenticate"])
    assert answer.headers["WWW-Authenticate"].isascii()
