"""Refresh tokens over HTTP: asked for, given, used, revoked, and useless everywhere else."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from webob import Request

from tests.support.http import basic
from tokenissuer.web.app import Application

SERVICE = "registry.example"
BACKENDS = '[[backends]]\ntype = "htpasswd"'
REFRESH = '[refresh]\nexcept_clients = ["jib"]\n[refresh.store]\ntype = "sqlite"\npath = "refresh.sqlite3"\n\n'
TOKEN = re.compile(r"tir_[A-Za-z0-9_-]{43}")
ENDED = "this login has ended; log in again"
WRONG = "wrong user name or password"
NONE_HERE = "this server issues no refresh tokens; log in again with your password"


@pytest.fixture(scope="module")
def client(client_of: Callable[[str, str], Any]) -> Any:
    """A client of an application that issues refresh tokens."""
    return client_of(BACKENDS, REFRESH + BACKENDS)


@pytest.fixture(scope="module")
def plain(client_of: Callable[[str, str], Any]) -> Any:
    """A client of an application that does not."""
    return client_of(BACKENDS, BACKENDS)


@pytest.fixture
def token(client: Any) -> str:
    """A refresh token of bob's."""
    return str(client.post(password_form(access_type="offline")).json()["refresh_token"])


def password_form(**more: str) -> dict[str, str]:
    """The form of a login as bob."""
    form = {"grant_type": "password", "username": "bob", "password": "pw", "service": SERVICE, "client_id": "test"}
    return {**form, **more}


def refresh_form(token: str, **more: str) -> dict[str, str]:
    """The form of a refresh."""
    return {"grant_type": "refresh_token", "refresh_token": token, "service": SERVICE, "client_id": "test", **more}


def said(answer: Any) -> str:
    """The sentence of an error, the same in both of its forms."""
    sentence = answer.json()["errors"][0]["message"]
    assert sentence == answer.json()["error_description"]
    return str(sentence)


@pytest.mark.parametrize(
    "query",
    [{"offline_token": "true"}, {"offline_token": "true", "account": "bob", "client_id": "docker"}],
    ids=["alone", "as docker login"],
)
def test_get_gives_one_when_asked(client: Any, query: dict[str, str]) -> None:
    """As `docker login` asks."""
    answer = client.ask(f"/token?{urlencode({'service': SERVICE, **query})}", HTTP_AUTHORIZATION=basic("bob", "pw"))
    assert TOKEN.fullmatch(answer.json()["refresh_token"])
    assert answer.claims["sub"] == "bob"


@pytest.mark.parametrize("word", ["access_type", "offline_token"])
def test_post_gives_one_when_asked(client: Any, word: str) -> None:
    """As OAuth asks, or with the other specification's word."""
    asked = {"access_type": "offline", "offline_token": "true"}[word]
    assert TOKEN.fullmatch(client.post(password_form(**{word: asked})).json()["refresh_token"])


@pytest.mark.parametrize("form", [{}, {"access_type": "online"}, {"offline_token": "false"}, {"access_type": ""}])
def test_none_is_given_unasked(client: Any, form: dict[str, str]) -> None:
    """ggcr and regclient would go on with it at once."""
    assert "refresh_token" not in client.post(password_form(**form)).json()
    assert "refresh_token" not in client.get("bob").json()


def test_nobody_is_given_none(client: Any) -> None:
    """Who is not logged in has nothing to renew."""
    answer = client.ask(f"/token?service={SERVICE}&offline_token=true")
    assert answer.status == 200
    assert "refresh_token" not in answer.json()


def test_a_client_can_be_left_out(client: Any) -> None:
    """It gets its access token all the same."""
    answer = client.post(password_form(access_type="offline", client_id="jib"))
    assert answer.claims["sub"] == "bob"
    assert "refresh_token" not in answer.json()


def test_a_wrong_password_gives_none(client: Any) -> None:
    """Nothing is issued before the password is proved."""
    answer = client.post(password_form(access_type="offline", password="wrong"))
    assert (answer.status, said(answer)) == (401, WRONG)
    assert "refresh_token" not in answer.json()


def ways_to_use() -> dict[str, Callable[[Any, str, str], Any]]:
    """How clients present a refresh token."""

    def post(client: Any, token: str, scope: str) -> Any:
        return client.post(refresh_form(token, scope=scope))

    def chunked(client: Any, token: str, scope: str) -> Any:
        form = urlencode(refresh_form(token, scope=scope)).encode()
        return client.post(form, CONTENT_LENGTH="", **{"wsgi.input_terminated": True})

    def bare(client: Any, token: str, scope: str) -> Any:
        return client.post({"grant_type": "refresh_token", "refresh_token": token, "service": "", "scope": scope})

    def get(name: str) -> Callable[[Any, str, str], Any]:
        return lambda client, token, scope: client.ask(
            f"/token?{urlencode({'service': SERVICE, 'scope': scope})}",
            HTTP_AUTHORIZATION=basic(token if name == "=" else name, token),
        )

    return {
        "POST": post,
        "POST chunked (skopeo)": chunked,
        "POST without service and client_id (ggcr)": bare,
        "GET :<token> (containerd, BuildKit)": get(""),
        "GET <token>:<token> (oras-py)": get("<token>"),
    }


@pytest.mark.parametrize("use", ways_to_use().values(), ids=ways_to_use().keys())
def test_it_is_as_good_as_the_password(client: Any, token: str, use: Callable[[Any, str, str], Any]) -> None:
    """Every client's way of presenting it gives an access token, and the same token goes on being good."""
    for _ in range(2):
        answer = use(
            client, token, "repository:bob/app:pull,push repository:team/x:pull,delete repository:alice/x:pull"
        )
        assert answer.claims["sub"] == "bob"
        assert answer.access == {"repository:bob/app": ["pull", "push"], "repository:team/x": ["pull"]}
        assert "refresh_token" not in answer.json()


def test_the_same_one_comes_back_only_when_asked(client: Any, token: str) -> None:
    """Never a new one: most clients throw it away."""
    assert client.post(refresh_form(token, access_type="offline")).json()["refresh_token"] == token
    assert "refresh_token" not in client.post(refresh_form(token)).json()


@pytest.mark.parametrize("use", ways_to_use().values(), ids=ways_to_use().keys())
@pytest.mark.parametrize("wrong", ["tir_" + "A" * 43, "pw", "tir_", "\N{SNOWMAN}"])
def test_a_wrong_one_is_refused_and_never_anonymous(
    client: Any, wrong: str, use: Callable[[Any, str, str], Any]
) -> None:
    """Not even where everyone may pull."""
    answer = use(client, wrong, "repository:public/app:pull")
    assert (answer.status, said(answer)) == (401, ENDED)
    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="')
    assert answer.json()["error"] == "invalid_grant"


def test_a_missing_one_is_named(client: Any) -> None:
    """A form without the token says so."""
    answer = client.post({"grant_type": "refresh_token", "service": SERVICE})
    assert answer.status == 400
    assert "refresh_token" in said(answer)


def test_a_service_that_is_not_served_is_refused(client: Any, token: str) -> None:
    """The audience is always one of ours."""
    assert client.post(refresh_form(token, service="elsewhere")).status == 400


def test_every_kind_of_token_is_refused_in_every_other_place(client: Any, token: str) -> None:
    """An access token renews nothing and is no password; a refresh token is no password and no access token."""
    access_token = client.get("bob").json()["token"]
    refused = {
        "access token as refresh token": client.post(refresh_form(access_token)),
        "access token as password": client.post(password_form(password=access_token[:1000])),
        "access token as long password": client.post(password_form(password=access_token)),
        "access token as Basic refresh token": client.ask("/token", HTTP_AUTHORIZATION=basic("", access_token)),
        "access token as bearer": client.ask("/token", HTTP_AUTHORIZATION=f"Bearer {access_token}"),
        "refresh token as password": client.post(password_form(password=token)),
        "refresh token as Basic password": client.ask("/token", HTTP_AUTHORIZATION=basic("bob", token)),
        "refresh token as bearer": client.ask("/token", HTTP_AUTHORIZATION=f"Bearer {token}"),
        "refresh token as user name": client.ask("/token", HTTP_AUTHORIZATION=basic(token, token)),
        "refresh token as user name alone": client.ask("/token", HTTP_AUTHORIZATION=basic(token, "")),
        "password as refresh token": client.post(refresh_form("pw")),
        "password as Basic refresh token": client.ask("/token", HTTP_AUTHORIZATION=basic("", "pw")),
    }
    assert {name: answer.status for name, answer in refused.items()} == dict.fromkeys(refused, 401)
    in_the_query = client.ask(f"/token?{urlencode({'grant_type': 'refresh_token', 'refresh_token': token})}")
    assert in_the_query.claims["sub"] == ""


def test_a_revoked_one_is_refused(client: Any, token: str) -> None:
    """At once; and revoking again is no error (RFC 7009, 2.2)."""
    for _ in range(2):
        answer = client.post({"token": token, "token_type_hint": "refresh_token"}, "/revoke")
        assert (answer.status, answer.json()) == (200, {})
    assert said(client.post(refresh_form(token))) == ENDED


def test_revoking_what_is_no_token_is_no_error(client: Any) -> None:
    """Whether a token exists is nobody's business."""
    for text in ("tir_" + "A" * 43, "nonsense", "\N{SNOWMAN}", client.get("bob").json()["token"]):
        assert client.post({"token": text}, "/revoke").status == 200


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [("GET", None, 405), ("DELETE", None, 405), ("POST", b"", 400), ("POST", b"token=", 400), ("POST", b"x=y", 400)],
)
def test_a_revocation_that_names_nothing_is_an_error(client: Any, method: str, body: bytes | None, status: int) -> None:
    """With a sentence."""
    answer = client.ask("/revoke", method, body)
    assert answer.status == status
    assert said(answer)


def test_an_access_token_is_named_as_what_cannot_be_revoked(client: Any) -> None:
    """RFC 7009, 2.2.1."""
    answer = client.post({"token": client.get("bob").json()["token"], "token_type_hint": "access_token"}, "/revoke")
    assert (answer.status, answer.json()["error"]) == (400, "unsupported_token_type")


def test_the_metadata_names_the_endpoints(client: Any, plain: Any) -> None:
    """RFC 8414, 2: the required members, and only what is served."""
    with_refresh = client.ask("/.well-known/oauth-authorization-server").json()
    assert with_refresh["issuer"] == "https://auth.example.com"
    assert with_refresh["token_endpoint"] == "https://auth.example.com/token"
    assert with_refresh["jwks_uri"] == "https://auth.example.com/.well-known/jwks.json"
    assert with_refresh["revocation_endpoint"] == "https://auth.example.com/revoke"
    assert with_refresh["grant_types_supported"] == ["password", "refresh_token"]
    assert with_refresh["response_types_supported"] == []
    without = plain.ask("/.well-known/oauth-authorization-server").json()
    assert without["grant_types_supported"] == ["password"]
    assert "revocation_endpoint" not in without


def test_without_the_table_none_are_issued_or_taken(plain: Any) -> None:
    """And everything else works as before."""
    assert "refresh_token" not in plain.post(password_form(access_type="offline")).json()
    answer = plain.post(refresh_form("tir_" + "A" * 43))
    assert (answer.status, answer.json()["error"], said(answer)) == (400, "unsupported_grant_type", NONE_HERE)
    assert plain.ask("/token", HTTP_AUTHORIZATION=basic("", "tir_" + "A" * 43)).status == 401
    assert plain.post({"token": "x"}, "/revoke").status == 404


def test_a_store_that_cannot_be_reached_is_an_outage(
    client_of: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 and never a refusal; a login that asks for no refresh token does not notice."""
    client = client_of(BACKENDS, REFRESH + BACKENDS)
    application: Application = client.application
    token = client.post(password_form(access_type="offline")).json()["refresh_token"]

    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr("tokenissuer.sessions.sqlite.SqliteStore._open", locked)
    for form in (password_form(access_type="offline"), refresh_form(token)):
        body = urlencode(form).encode()
        request = Request.blank("/token", method="POST", body=body, content_type="application/x-www-form-urlencoded")
        answer = request.get_response(application)
        assert (answer.status_int, answer.headers["Retry-After"]) == (503, "5")
        assert "sqlite" not in answer.text
        assert "the store of logins is not available" in answer.text
    assert client.post(password_form()).status == 200
    monkeypatch.undo()
    assert client.post(refresh_form(token)).status == 200
