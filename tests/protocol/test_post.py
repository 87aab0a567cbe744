"""POST: grant types, where credentials may stand, and bodies of every shape."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

if TYPE_CHECKING:
    from tests.protocol.conftest import Client

BOB = {"grant_type": "password", "username": "bob", "password": "pw", "service": "registry.example"}
TEAM = {"repository:team/app": ["pull", "push"]}
FORM = "application/x-www-form-urlencoded"
PUBLIC = "repository:public/app:pull"


def header(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param({"scope": "repository:team/app:pull,push"}, id="one"),
        pytest.param({"scope": "repository:team/app:pull repository:team/app:pull,push"}, id="containerd-push"),
        pytest.param({"scope": ["repository:team/app:pull", "repository:team/app:push"]}, id="repeated"),
        pytest.param({"scope": ["", "repository:team/app:*"]}, id="empty-and-star"),
    ],
)
def test_a_form_with_a_good_password_is_answered(client: Client, scope: dict[str, Any]) -> None:
    """containerd, BuildKit, Docker 29 and Helm begin with this."""
    answer = client.post({**BOB, **scope, "client_id": "containerd-client"})
    assert answer.claims["sub"] == "bob"
    assert answer.access == TEAM
    assert answer.json()["scope"] == "repository:team/app:pull,push"


@pytest.mark.parametrize(
    "content_type",
    [
        FORM,
        f"{FORM}; charset=utf-8",
        f"{FORM};charset=UTF-8",
        FORM.title(),
        f" {FORM} ",
        pytest.param("", id="no-content-type"),
    ],
)
def test_a_form_is_read_whatever_stands_behind_its_type(client: Client, content_type: str) -> None:
    """Some clients add a charset, old ones say nothing."""
    assert client.post(BOB, CONTENT_TYPE=content_type).claims["sub"] == "bob"


@pytest.mark.parametrize(
    "content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain", "text/plain; x=" + FORM]
)
def test_another_type_of_body_is_refused(client: Client, content_type: str) -> None:
    """No client sends one, and half understood it would be an anonymous request."""
    answer = client.post(b'{"grant_type": "password", "username": "bob", "password": "pw"}', CONTENT_TYPE=content_type)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        pytest.param(
            {"grant_type": "refresh_token", "refresh_token": "x"}, 400, "unsupported_grant_type", id="refresh"
        ),
        pytest.param(
            {**BOB, "grant_type": "authorization_code"}, 400, "unsupported_grant_type", id="authorization-code"
        ),
        pytest.param({**BOB, "grant_type": "Password"}, 400, "unsupported_grant_type", id="upper-case"),
        pytest.param({**BOB, "grant_type": "__class__"}, 400, "unsupported_grant_type", id="dunder"),
        pytest.param({**BOB, "grant_type": ""}, 400, "invalid_request", id="empty"),
        pytest.param({"username": "bob", "password": "pw"}, 400, "invalid_request", id="missing"),
        pytest.param({}, 400, "invalid_request", id="empty-form"),
        pytest.param({**BOB, "grant_type": ["password", "refresh_token"]}, 400, "invalid_request", id="two-different"),
        pytest.param({"grant_type": "password"}, 400, "invalid_request", id="nobody"),
        pytest.param({**BOB, "username": ["bob", "admin"]}, 400, "invalid_request", id="two-names"),
        pytest.param({**BOB, "password": ["pw", "other"]}, 400, "invalid_request", id="two-passwords"),
        pytest.param({**BOB, "service": ["registry.example", "x"]}, 400, "invalid_request", id="two-services"),
        pytest.param({**BOB, "service": "other"}, 400, "invalid_request", id="unknown-service"),
        pytest.param({**BOB, "password": "wrong"}, 401, "invalid_grant", id="wrong-password"),
        pytest.param({**BOB, "username": "nobody"}, 401, "invalid_grant", id="unknown-name"),
        pytest.param({**BOB, "password": ""}, 401, "invalid_grant", id="empty-password"),
        pytest.param({**BOB, "username": ""}, 401, "invalid_grant", id="empty-name"),
        pytest.param({"grant_type": "password", "username": "bob"}, 401, "invalid_grant", id="no-password"),
        pytest.param({"grant_type": "password", "password": "pw"}, 401, "invalid_grant", id="no-name"),
        pytest.param({"grant_type": "password", "username": "", "password": ""}, 401, "invalid_grant", id="both-empty"),
        pytest.param({**BOB, "password": "pw\0"}, 401, "invalid_grant", id="nul"),
        pytest.param({**BOB, "username": "bob\r\nx"}, 401, "invalid_grant", id="line-break"),
    ],
)
@pytest.mark.parametrize("scope", ["", PUBLIC], ids=["login", "public"])
def test_a_form_that_logs_nobody_in_is_an_error(
    client: Client, form: dict[str, Any], status: int, error: str, scope: str
) -> None:
    """Never an anonymous token: the client would take it and never try its password by GET."""
    answer = client.post({**form, "scope": scope})
    assert (answer.status, answer.json()["error"]) == (status, error)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_the_same_value_twice_is_one(client: Client) -> None:
    """skopeo sends the realm's own query in the address and in the form."""
    form = {**BOB, "grant_type": ["password"] * 2, "username": ["bob", "bob"]}
    answer = client.post(form, path="/token?service=registry.example&scope=repository:team/app:pull,push")
    assert (answer.claims["sub"], answer.access) == ("bob", TEAM)


@pytest.mark.parametrize(
    ("form", "authorization", "subject"),
    [
        pytest.param({"grant_type": "password"}, "bob:pw", "bob", id="header-alone"),
        pytest.param(BOB, "admin:root-word", "bob", id="form-before-header"),
        pytest.param(BOB, "admin:wrong", "bob", id="form-before-wrong-header"),
        pytest.param({**BOB, "password": "wrong"}, "admin:root-word", None, id="wrong-form-before-header"),
        pytest.param({**BOB, "password": ""}, "bob:pw", None, id="empty-form-before-header"),
        pytest.param({"grant_type": "password"}, "bob:wrong", None, id="wrong-header-alone"),
        pytest.param({"grant_type": "password", "username": "bob"}, "bob:pw", None, id="half-a-form-before-header"),
    ],
)
def test_the_forms_credentials_go_before_the_headers(
    client: Client, form: dict[str, str], authorization: str, subject: str | None
) -> None:
    """There is no second try with the other pair."""
    answer = client.post(form, HTTP_AUTHORIZATION=header(authorization))
    if subject is None:
        assert answer.status == 401
    else:
        assert answer.claims["sub"] == subject


@pytest.mark.parametrize(
    ("form", "status"),
    [({"grant_type": "password"}, 400), ({}, 400), ({"grant_type": "password", "username": "admin"}, 401)],
)
def test_the_query_of_a_post_logs_nobody_in(client: Client, form: dict[str, str], status: int) -> None:
    """Passwords in an address stand in every proxy's log."""
    query = "username=admin&password=root-word&grant_type=password"
    assert client.post(form, path=f"/token?{query}").status == status


def test_values_are_decoded_as_utf_8_or_latin_1(client: Client) -> None:
    """Go sends UTF-8 as it is, some others Latin-1."""
    name, password = "alice", "a:colon and sp\N{LATIN SMALL LETTER A WITH DIAERESIS}ce"
    for encoding in ("utf-8", "latin-1"):
        form = urlencode({"grant_type": "password", "username": name, "password": password}, encoding=encoding)
        assert client.post(form.encode()).claims["sub"] == "alice"
        raw = f"grant_type=password&username={name}&password={password.replace(' ', '+')}"
        assert client.post(raw.encode(encoding)).claims["sub"] == "alice"


BODY = urlencode(BOB).encode()


class Slow(BytesIO):
    """A body that arrives in pieces, as from a socket."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size) if size is not None and size >= 0 else 7)


def test_a_chunked_body_is_read_to_its_end(client: Client) -> None:
    """skopeo and podman send no Content-Length; the server says that its input ends."""
    answer = client.send(
        {
            "CONTENT_TYPE": FORM,
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input_terminated": True,
            "wsgi.input": Slow(BODY),
        }
    )
    assert answer.claims["sub"] == "bob"


def test_a_body_in_pieces_is_read_to_its_length(client: Client) -> None:
    """And not beyond: what follows is the next request."""
    stream = Slow(BODY + b"&username=admin")
    answer = client.send({"CONTENT_TYPE": FORM, "CONTENT_LENGTH": str(len(BODY)), "wsgi.input": stream})
    assert answer.claims["sub"] == "bob"
    assert stream.tell() == len(BODY)


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        pytest.param({"CONTENT_LENGTH": "-1"}, 400, id="negative"),
        pytest.param({"CONTENT_LENGTH": "+5"}, 400, id="sign"),
        pytest.param({"CONTENT_LENGTH": "1_0"}, 400, id="underscore"),
        pytest.param({"CONTENT_LENGTH": "0x10"}, 400, id="hexadecimal"),
        pytest.param({"CONTENT_LENGTH": "x"}, 400, id="letters"),
        pytest.param({"CONTENT_LENGTH": "10, 10"}, 400, id="twice"),
        pytest.param({"CONTENT_LENGTH": "\xb2"}, 400, id="superscript"),
        pytest.param({"CONTENT_LENGTH": str(64 * 1024 + 1)}, 413, id="one-too-many"),
        pytest.param({"CONTENT_LENGTH": "9" * 100}, 413, id="huge"),
        pytest.param({"CONTENT_LENGTH": "9" * 5000}, 413, id="more-digits-than-python-converts"),
        pytest.param({"CONTENT_LENGTH": ""}, 400, id="none-so-no-form"),
        pytest.param({"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}, 411, id="chunks-nobody-decodes"),
        pytest.param({"CONTENT_LENGTH": "0"}, 400, id="nought"),
    ],
)
def test_a_body_whose_length_is_wrong_is_refused(client: Client, environ: dict[str, Any], status: int) -> None:
    """Never a failure of ours, never a read without an end."""
    assert client.post(BODY, **environ).status == status


@pytest.mark.parametrize(
    "environ",
    [{}, {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}],
    ids=["with-length", "chunked"],
)
def test_a_body_that_is_too_large_is_refused(client: Client, environ: dict[str, Any]) -> None:
    """However it comes; the largest that fits is read."""
    filling = b"&x=" + b"a" * (64 * 1024 - len(BODY) - 3)
    for body, status in ((BODY + filling, 200), (BODY + filling + b"a", 413)):
        assert client.ask(method="POST", body=body, **environ).status == status


class Gone(BytesIO):
    """A body whose client went away; Apache, gunicorn and uWSGI say so by an OSError."""

    def read(self, size: int | None = -1) -> bytes:
        """Fail."""
        raise OSError("request data read error")


@pytest.mark.parametrize("body", [BytesIO(b"grant_type=pass"), Gone()], ids=["short", "error"])
def test_a_client_that_goes_away_in_its_body_is_no_defect_of_ours(
    client: Client, caplog: pytest.LogCaptureFixture, body: BytesIO
) -> None:
    """And half a form is not taken for a whole one."""
    environ = {"wsgi.input": body, "CONTENT_LENGTH": "100", "CONTENT_TYPE": FORM}
    assert client.send(environ).status == 400
    assert "bug" not in caplog.text


def test_a_chunked_body_without_end_is_not_read_without_end(client: Client) -> None:
    """Only so much is taken in as would be answered."""

    class Endless(BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert size >= 0
            self.taken += size
            return b"a" * size

    stream = Endless()
    answer = client.send({"wsgi.input_terminated": True, "wsgi.input": stream, "CONTENT_TYPE": FORM})
    assert answer.status == 413
    assert stream.taken <= 64 * 1024 + 1


def test_a_good_form_in_a_get_is_nobodys(client: Client) -> None:
    """A GET has no body."""
    assert client.ask("/token", body=BODY).claims["sub"] == ""
