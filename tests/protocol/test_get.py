"""GET: the Authorization header, scopes, services, and what comes back."""

from __future__ import annotations

import base64
import datetime
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jwt
import pytest

from tokenissuer.errors import FORBIDDEN
from tokenissuer.signing.keys import KeyForm, SigningKey

if TYPE_CHECKING:
    from tests.protocol.conftest import Client

    ClientOf = Callable[[str, str], Client]

PUBLIC = "repository:public/app:pull"
PLAIN = "a:colon and sp\N{LATIN SMALL LETTER A WITH DIAERESIS}ce"


def encoded(raw: bytes | str) -> str:
    return base64.b64encode(raw.encode() if isinstance(raw, str) else raw).decode()


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        pytest.param(None, "", id="absent"),
        pytest.param("", "", id="empty"),
        pytest.param("Basic Og==", "", id="colon-alone-is-nobody"),
        pytest.param(f"Basic {encoded('bob:pw')}", "bob", id="plain"),
        pytest.param(f"basic {encoded('bob:pw')}", "bob", id="lower-case-scheme"),
        pytest.param(f"BASIC   {encoded('bob:pw')}  ", "bob", id="more-spaces"),
        pytest.param(f"Basic {encoded('bob:pw').rstrip('=')}", "bob", id="padding-left-out"),
        pytest.param(f"Basic {encoded(f'alice:{PLAIN}')}", "alice", id="colon-and-utf-8-in-the-password"),
        pytest.param(f"Basic {encoded(f'alice:{PLAIN}'.encode('latin-1'))}", "alice", id="latin-1-password"),
    ],
)
def test_an_authorization_header_says_who_it_is(client: Client, header: str | None, subject: str) -> None:
    """Every form that real clients send for a good login, or for nobody."""
    environ: dict[str, Any] = {} if header is None else {"HTTP_AUTHORIZATION": header}
    assert client.ask(f"/token?scope={PUBLIC}", **environ).claims["sub"] == subject


WRONG = {
    "empty-password": f"Basic {encoded('bob:')}",
    "identity-token-without-a-name": f"Basic {encoded(':refresh-token')}",
    "identity-token-with-the-name-token": f"Basic {encoded('<token>:refresh-token')}",
    "wrong-password": f"Basic {encoded('bob:wrong')}",
    "unknown-name": f"Basic {encoded('nobody:pw')}",
    "name-of-another-case": f"Basic {encoded('BOB:pw')}",
    "space-behind-the-name": f"Basic {encoded('bob :pw')}",
    "space-behind-the-password": f"Basic {encoded('bob:pw ')}",
    "nul-behind-the-password": f"Basic {encoded(b'bob:pw' + bytes(1))}",
    "newline-behind-the-name": f"Basic {encoded(b'bob' + bytes([10]) + b':pw')}",
    "no-colon": f"Basic {encoded('bobpw')}",
    "no-credentials": "Basic",
    "no-credentials-but-a-space": "Basic ",
    "no-base64": "Basic !!!!",
    "damaged-base64": "Basic Ym9iOnB3Z",
    "non-ascii": "Basic \xff\xfe",
    "only-padding": "Basic ====",
    "other-scheme": "Bearer eyJhbGciOiJub25lIn0.e30.",
    "digest": 'Digest username="bob"',
    "scheme-only-like-basic": f"Basics {encoded('bob:pw')}",
    "credentials-without-scheme": encoded("bob:pw"),
    "two-headers-joined": f"Basic {encoded('bob:pw')}, Basic {encoded('bob:pw')}",
}


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("scope", ["", PUBLIC], ids=["login", "public-repository"])
def test_wrong_credentials_are_never_anonymous(client: Client, header: str, scope: str) -> None:
    """Credentials that were sent and are not good end in 401, even where nobody would need any."""
    answer = client.ask(f"/token?scope={scope}", HTTP_AUTHORIZATION=header)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="test-issuer", charset="UTF-8"'
    assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
    assert "token" not in answer.json()


def test_every_wrong_name_and_password_reads_the_same(client: Client) -> None:
    """Nobody learns from the answer whether a name exists."""
    bodies = {
        client.ask("/token", HTTP_AUTHORIZATION=f"Basic {encoded(text)}").body
        for text in ("bob:wrong", "nobody:wrong", "bob:", ":x", "x" * 2000 + ":y", "bob:" + "y" * 2000, "*:*")
    }
    assert len(bodies) == 1


@pytest.mark.parametrize(
    "query",
    [
        "account=bob",
        "account=admin&username=admin&password=root-word",
        "username=admin&password=root-word&grant_type=password",
        "grant_type=password&client_id=x",
        "sub=admin&user=admin",
    ],
)
def test_the_query_never_logs_anybody_in(client: Client, query: str) -> None:
    """`account` is for the log, and passwords in an address are nobody's."""
    answer = client.ask(f"/token?{query}&scope={PUBLIC}")
    assert answer.claims["sub"] == ""
    assert answer.access == {"repository:public/app": ["pull"]}


@pytest.mark.parametrize("account", ["admin", "BOB", "", "bob"])
def test_the_subject_is_who_logged_in_whatever_account_says(client: Client, account: str) -> None:
    """A mismatch is no error either: real clients send it so."""
    answer = client.ask(
        f"/token?account={account}&scope=repository:admin/x:pull", HTTP_AUTHORIZATION=f"Basic {encoded('bob:pw')}"
    )
    assert answer.claims["sub"] == "bob"
    assert answer.access == {}


ALL = ["delete", "pull", "push"]
TEAM = {"repository:team/app": ["pull", "push"]}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("", {}, id="none"),
        pytest.param("scope=", {}, id="empty"),
        pytest.param("scope=&scope=", {}, id="empty-twice"),
        pytest.param("scope=repository:team/app:pull,push", TEAM, id="raw"),
        pytest.param("scope=repository%3Ateam%2Fapp%3Apush%2Cpull", TEAM, id="encoded"),
        pytest.param(
            "scope=repository:team/app:pull&scope=repository:public/x:pull",
            {"repository:team/app": ["pull"], "repository:public/x": ["pull"]},
            id="repeated",
        ),
        pytest.param("scope=repository:team/app:pull+repository:team/app:pull,push", TEAM, id="overlap-with-plus"),
        pytest.param("scope=repository:team/app:pull%20repository:team/app:push", TEAM, id="overlap-with-space"),
        pytest.param("scope=repository:team/app:pull&scope=repository:team/app:push", TEAM, id="overlap-repeated"),
        pytest.param("scope=repository:team/app:*", TEAM, id="star-is-what-is-held"),
        pytest.param("scope=repository:team/app:*,pull", TEAM, id="star-beside-another"),
        pytest.param("scope=repository:bob/x:push,pull,delete", {"repository:bob/x": ALL}, id="delete"),
        pytest.param("scope=repository:bob/x:*", {"repository:bob/x": ALL}, id="skopeo-delete"),
        pytest.param("scope=repository:team/app:pull,push,delete", TEAM, id="too-much"),
        pytest.param("scope=repository(plugin):team/app:pull,push", TEAM, id="class"),
        pytest.param(
            "scope=repository:host:5000/public/x:pull", {"repository:host:5000/public/x": ["pull"]}, id="host-and-port"
        ),
        pytest.param("scope=repository::pull", {}, id="empty-name"),
        pytest.param("scope=registry:catalog:*", {}, id="catalog-not-allowed"),
        pytest.param("scope=repository:team/secret:pull", {}, id="denied"),
        pytest.param("scope=repository:team:pull", {}, id="not-below"),
        pytest.param("scope=repository:team/app", {}, id="no-actions"),
        pytest.param("scope=repository:team/app:", {}, id="empty-actions"),
        pytest.param("scope=repository:team/app:destroy,__class__,admin", {}, id="unknown-actions"),
        pytest.param("scope=blob:team/app:pull", {}, id="unknown-type"),
        pytest.param("scope=%00%ff+::+:::+x", {}, id="noise"),
        pytest.param("scope=noise+repository:team/app:pull,push", TEAM, id="noise-beside-a-good-one"),
        pytest.param("scope[]=repository:team/app:pull", {}, id="another-parameter"),
    ],
)
def test_scopes_are_answered_with_what_is_held_of_them(
    client: Client, query: str, expected: dict[str, list[str]]
) -> None:
    """Every form real clients send; what cannot be understood is dropped, and never 400. `bob` is a developer."""
    answer = client.ask(f"/token?service=registry.example&{query}", HTTP_AUTHORIZATION=f"Basic {encoded('bob:pw')}")
    assert answer.access == expected
    said = [f"{resource}:{','.join(actions)}" for resource, actions in expected.items()]
    assert answer.json()["scope"] == " ".join(said)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("registry:catalog:*", {"registry:catalog": ["*"]}),
        ("registry:catalog:search", {}),
        ("registry:catalog:pull,push,delete", {}),
        ("repository:catalog:*", {"repository:catalog": ALL}),
        ("repository:any/thing:*", {"repository:any/thing": ALL}),
        ("registry:other:*", {}),
    ],
)
def test_the_catalog_alone_keeps_its_star(client: Client, scope: str, expected: dict[str, list[str]]) -> None:
    """Some registries take `*` for a repository as a word; all of them ask for the catalog with it."""
    assert client.get("admin", scope).access == expected


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "team/../other",
        "team/./app",
        "team//app",
        "/team/app",
        "team/app/",
        "Team/app",
        "team/APP",
        "team%2fapp",
        "team/%2e%2e/other",
        "team/app%00",
        "team/app\0",
        "team\\app",
        "team/app\n",
        "team/\N{CYRILLIC SMALL LETTER A}pp",
        "team/ap\N{COMBINING ACUTE ACCENT}p",
        "*",
        "**",
        "{account}/x",
        "host:5000",
        "a" * 256,
        "-",
        "",
    ],
)
def test_a_name_no_registry_would_take_gets_nothing(client: Client, name: str) -> None:
    """Not even for an administrator whose rule is `**`."""
    assert client.get("admin", f"repository:{name}:pull,push,delete,*").access == {}


def test_an_account_called_like_a_pattern_is_no_pattern(client: Client) -> None:
    """`{account}` stands for the name letter by letter."""
    asked = "repository:bob/x:pull repository:a/b/c:pull repository:team/app:pull repository:public/x:pull"
    assert client.get("**", asked).access == {"repository:public/x": ["pull"]}


def test_only_so_many_resources_are_granted(client: Client) -> None:
    """A token must fit into a header."""
    asked = " ".join(f"repository:r{n}:pull" for n in range(1000))
    answer = client.get("admin", asked)
    assert list(answer.access) == [f"repository:r{n}" for n in range(40)]
    assert len(answer.json()["token"]) < 8000


def test_a_success_has_the_fields_every_client_reads(client: Client) -> None:
    """No null, whole numbers, a time with zone and milliseconds, and the token under both names."""
    before = time.time()
    answer = client.get("bob", "repository:team/app:pull")
    body = answer.json()
    assert answer.status == 200
    assert set(body) == {"token", "access_token", "token_type", "expires_in", "issued_at", "scope"}
    assert body["token"] == body["access_token"]
    assert body["token_type"] == "Bearer"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["issued_at"])
    issued = datetime.datetime.fromisoformat(body["issued_at"]).timestamp()
    assert before - 0.001 <= issued <= time.time()
    # Also if the token was signed for an earlier request.
    assert type(body["expires_in"]) is int
    assert body["expires_in"] == answer.claims["exp"] - int(issued)
    assert body["scope"] == "repository:team/app:pull"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Pragma"] == "no-cache"
    assert "Set-Cookie" not in answer.headers
    assert "WWW-Authenticate" not in answer.headers


def test_the_claims_are_of_the_types_registries_need(client: Client) -> None:
    """One string for the audience, whole numbers for times, a string for the subject, a list for access."""
    now = time.time()
    # Nobody else asks for this: no older token is used again.
    answer = client.get("bob", "repository:team/claims:push,pull")
    claims = answer.claims
    assert set(claims) == {"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "access"}
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("test-issuer", "bob", "registry.example")
    assert [type(claims[name]) for name in ("exp", "nbf", "iat")] == [int, int, int]
    assert now - 60 <= claims["nbf"] <= claims["iat"] < now - 5
    assert now + 895 <= claims["exp"] <= now + 901
    assert len(claims["jti"]) >= 16
    assert claims["access"] == [{"type": "repository", "name": "team/claims", "actions": ["pull", "push"]}]


def test_the_header_is_the_one_form_every_registry_takes(client: Client, key: SigningKey) -> None:
    """The leaf in x5c, in the standard alphabet, and the thumbprint beside it."""
    header = jwt.get_unverified_header(client.get("bob").json()["token"])
    assert header == {"typ": "JWT", "alg": "ES256", **key.header(KeyForm.X5C)}
    assert header["kid"] == key.thumbprint


@pytest.mark.parametrize("form", ["thumbprint", "libtrust"])
def test_a_service_may_have_the_key_named_otherwise(client_of: ClientOf, key: SigningKey, form: str) -> None:
    """A key id alone, for registries that are configured with `jwks` or know libtrust ids."""
    certificate = 'certificate = "auth.crt"\n'
    client = client_of(certificate, f'{certificate}key_forms = {{ "registry.example" = "{form}" }}\n')
    header = jwt.get_unverified_header(client.get("bob").json()["token"])
    assert header == {"typ": "JWT", "alg": "ES256", **key.header(KeyForm(form))}


def test_a_token_is_verified_with_the_published_key_set(client: Client) -> None:
    """What `jwks.json` says is enough for a verifier."""
    answer = client.ask("/.well-known/jwks.json")
    keys = jwt.PyJWKSet.from_dict(answer.json())
    token = client.get("bob").json()["token"]
    key = keys[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, algorithms=["ES256"], audience="registry.example")["sub"] == "bob"
    assert not {"d", "p", "q"} & set(answer.json()["keys"][0])


def test_no_two_tokens_have_one_id(client: Client) -> None:
    """The id is random, not counted. An equal request gets the same token again."""
    names = [f"repository:bob/app{number}:pull" for number in range(20)]
    assert len({client.get("bob", name).claims["jti"] for name in names}) == 20
    assert len({client.get("bob", names[0]).claims["jti"] for _ in range(20)}) == 1


def test_anonymous_without_scope_gets_an_empty_token(client: Client) -> None:
    """Login checks without credentials must work."""
    answer = client.ask("/token?service=registry.example")
    assert (answer.claims["sub"], answer.claims["access"], answer.json()["scope"]) == ("", [], "")


@pytest.mark.parametrize(
    "scope",
    [
        "repository:team/app:pull,push",
        "repository:public/app:push",
        "registry:catalog:*",
        "repository:/x:pull",
        "repository:{account}/x:pull",
        "repository:public/../team/app:pull",
    ],
)
def test_anonymous_without_any_grant_is_denied(client: Client, scope: str) -> None:
    """`docker push` without login says `denied: access forbidden`."""
    answer = client.ask(f"/token?service=registry.example&scope={quote(scope)}")
    assert answer.status == 403
    assert answer.json() == {
        "errors": [{"code": "DENIED", "message": FORBIDDEN}],
        "error": "access_denied",
        "error_description": FORBIDDEN,
    }
    assert "WWW-Authenticate" not in answer.headers


def test_anonymous_with_a_part_granted_gets_that_part(client: Client) -> None:
    """Too little is no error."""
    answer = client.ask(f"/token?scope=repository:public/app:pull,push&scope=repository:team/app:pull&x={PUBLIC}")
    assert answer.access == {"repository:public/app": ["pull"]}


def test_authenticated_without_any_grant_gets_an_empty_token(client: Client) -> None:
    """The specification says so; the registry then says what is missing."""
    answer = client.get("alice", "repository:team/app:pull")
    assert (answer.status, answer.claims["access"], answer.json()["scope"]) == (200, [], "")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("service=registry.example", 200, id="known"),
        pytest.param("service=", 200, id="empty"),
        pytest.param("", 200, id="missing"),
        pytest.param("service=registry.example&service=registry.example", 200, id="repeated"),
        pytest.param("service=&service=registry.example", 200, id="empty-and-known"),
        pytest.param("service=other", 400, id="unknown"),
        pytest.param("service=REGISTRY.EXAMPLE", 400, id="upper-case"),
        pytest.param("service=registry.example%20", 400, id="space"),
        pytest.param("service=registry.example&service=other", 400, id="two-different"),
        pytest.param("service=%00", 400, id="nul"),
    ],
)
def test_a_token_is_only_for_a_service_that_is_served(client: Client, query: str, status: int) -> None:
    """Anything else would be a token for somebody else's registry."""
    answer = client.ask(f"/token?{query}")
    assert answer.status == status
    if status == 200:
        assert answer.claims["aud"] == "registry.example"


@pytest.mark.parametrize("asked", ["other", "x" * 5000, '"\\' * 300])
def test_an_unknown_service_is_told_which_ones_are_served(client: Client, asked: str) -> None:
    """Even when the unknown one is long."""
    answer = client.ask(f"/token?service={quote(asked)}")
    assert answer.status == 400
    assert "registry.example" in answer.json()["errors"][0]["message"]


def test_with_several_services_a_request_must_name_one(client_of: ClientOf) -> None:
    """There is no default to guess, and each gets its own audience."""
    client = client_of('services = ["registry.example"]', 'services = ["registry.example", "second"]')
    answer = client.ask("/token")
    assert answer.status == 400
    assert "registry.example, second" in answer.json()["error_description"]
    token = client.ask("/token?service=second").json()["token"]
    assert jwt.decode(token, options={"verify_signature": False})["aud"] == "second"


@pytest.mark.parametrize("size", [64 * 1024 + 1, 10**6])
def test_a_query_that_is_too_large_is_refused(client: Client, size: int) -> None:
    """No client needs that much."""
    assert client.ask(f"/token?x={'a' * size}").status == 413
