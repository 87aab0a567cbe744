"""Whatever comes in, an answer comes out: never a failure of ours, always JSON."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.protocol.conftest import Client

moderate = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Text as PEP 3333 hands it over: bytes, each as a letter of Latin-1.
WIRE = st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))
PIECES = st.sampled_from(
    [
        "repository",
        "registry",
        "catalog",
        ":",
        "/",
        "..",
        "//",
        "%2e",
        "%00",
        "%ff",
        "pull",
        "push",
        "*",
        "**",
        ",",
        " ",
        "+",
        "(",
        ")",
        "team",
        "public",
        "bob",
        "{account}",
        "&",
        "=",
        "scope",
        "service",
        "registry.example",
        "\xff",
        "grant_type",
        "password",
        "username",
        "refresh_token",
        "access_type",
        "offline",
        "client_id",
        ";",
        "\r\n",
        "\x00",
    ]
)
TEXTS = WIRE | st.lists(PIECES, max_size=30).map("".join)
NAMES = st.sampled_from(["service", "scope", "account", "client_id", "grant_type", "username", "password", "x"]) | WIRE
QUERIES = TEXTS | st.lists(st.tuples(NAMES, TEXTS), max_size=6).map(
    lambda pairs: "&".join(
        f"{quote_from_bytes(name.encode('latin-1'))}={quote_from_bytes(value.encode('latin-1'))}"
        for name, value in pairs
    )
)
HEADERS = (
    TEXTS
    | st.builds("{} {}".format, st.sampled_from(["Basic", "basic", "Bearer", "Basic\t", ""]), TEXTS)
    | st.binary(max_size=60).map(lambda raw: "Basic " + base64.b64encode(raw).decode())
    | st.builds(
        lambda name, password: "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["bob", "admin", ""]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["pw", ""]),
    )
)
# What the public may have, whoever they are not.
PUBLIC = {"pull"}


def sound(client: Client, environ: dict[str, Any]) -> None:
    """The answer is one of ours; and without a password nothing is granted but what is public."""
    answer = client.send({"PATH_INFO": "/token", **environ}, "/", environ.get("REQUEST_METHOD", "GET"))
    assert answer.status in (200, 400, 401, 403, 404, 405, 411, 413)
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) >= ({"token", "scope"} if answer.status == 200 else {"errors", "error"})
    if answer.status == 200 and answer.claims["sub"] == "":
        for resource, actions in answer.access.items():
            assert resource.startswith(("repository:public/", "repository:host:5000/public/"))
            assert set(actions) <= PUBLIC


@moderate
@given(QUERIES)
@example("scope=" + "a" * 70000)
@example("%")
@example("scope=%e2%82&service=%ed%a0%80")
@example("\ud800")
@example("\N{SNOWMAN}=\N{SNOWMAN}")
def test_any_query_is_answered(client: Client, query: str) -> None:
    """Even letters that no server should hand over."""
    sound(client, {"QUERY_STRING": query})


@moderate
@given(HEADERS, QUERIES)
@example("Basic \ud800", "")
@example("Basic \N{SNOWMAN}", "")
@example("\N{NO-BREAK SPACE}", "")
@example("Basic " + base64.b64encode(b"bob:" + b"\xff" * 5000).decode(), "")
@example("Basic " + base64.b64encode(b"\xed\xa0\x80:\xed\xa0\x80").decode(), "")
def test_any_authorization_header_is_answered(client: Client, header: str, query: str) -> None:
    """Whatever stands in it."""
    sound(client, {"HTTP_AUTHORIZATION": header, "QUERY_STRING": query})


FORM = "application/x-www-form-urlencoded"


@moderate
@given(
    QUERIES.map(lambda text: text.encode("latin-1")) | st.binary(max_size=200),
    st.sampled_from([FORM, "", "application/json", f"{FORM}; charset=\xff"]) | WIRE,
    HEADERS | st.just(""),
)
@example(b"grant_type=password&username=%ed%a0%80&password=x", FORM, "")
@example(b"grant_type=password&username=bob&password=" + b"\xff" * 3000, FORM, "")
@example(b"&" * 60000, FORM, "")
@example(b"=" * 60000, FORM, "")
def test_any_form_is_answered(client: Client, body: bytes, content_type: str, header: str) -> None:
    """Whatever its type says."""
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_AUTHORIZATION": header,
        "wsgi.input": BytesIO(body),
    }
    sound(client, environ)


@moderate
@given(WIRE, TEXTS, TEXTS, WIRE, WIRE, WIRE)
def test_any_request_at_all_is_answered(
    client: Client, method: str, path: str, script_name: str, length: str, address: str, agent: str
) -> None:
    """Method, paths, length, address and agent may be anything."""
    sound(
        client,
        {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "SCRIPT_NAME": script_name,
            "CONTENT_LENGTH": length,
            "REMOTE_ADDR": address,
            "HTTP_USER_AGENT": agent,
        },
    )


@moderate
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=5).map(" ".join))
def test_no_scope_gives_more_than_was_asked_and_is_allowed(client: Client, scope: str) -> None:
    """`bob` of the developers; the answer's scope, its claims and what he may have agree."""
    answer = client.get("bob", scope)
    assert answer.status == 200
    for resource, actions in answer.access.items():
        type_, name = resource.split(":", 1)
        assert type_ == "repository"
        assert f":{name}:" in scope
        first = name.split("/")[0]
        may = {"bob": {"pull", "push", "delete"}, "team": {"pull", "push"}, "public": {"pull"}}[first]
        assert name != "team/secret"
        assert "/" in name
        assert set(actions) <= may
        assert "*" in scope or all(action in scope for action in actions)
