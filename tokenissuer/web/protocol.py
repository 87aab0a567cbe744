"""HTTP request → `TokenRequest`; `TokenResponse` or error → HTTP.

GET: https://distribution.github.io/distribution/spec/auth/token/
POST: https://distribution.github.io/distribution/spec/auth/oauth/ and RFC 6749.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from webob import Response

from tokenissuer.errors import (
    BackendUnavailable,
    ContentTooLarge,
    InvalidCredentials,
    InvalidRequest,
    LengthRequired,
    LoginRequired,
    MethodNotAllowed,
    RequestError,
    TooManyAttempts,
    UnsupportedGrantType,
    UnsupportedTokenType,
)
from tokenissuer.scope import REMEMBERED_LENGTH, REMEMBERED_REQUESTS, Access, parse_scopes, scope_text
from tokenissuer.service import Password, RefreshToken, TokenRequest, TokenResponse
from tokenissuer.web.proxies import NO_PROXIES, TrustedProxies
from tokenissuer.web.record import timestamp

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Bytes in a body or in a query. The longest honest one names every possible mount source of a copied image.
MAX_FORM_SIZE: Final = 64 * 1024


_FORM_TYPE: Final = "application/x-www-form-urlencoded"
# RFC 6749, 5.2: what `error_description` may contain.
_NOT_DESCRIPTION: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
_MAX_DESCRIPTION: Final = 400
_HEADERS: Final = (
    ("Content-Type", "application/json"),
    ("Cache-Control", "no-store"),
    ("Pragma", "no-cache"),
    ("X-Content-Type-Options", "nosniff"),
)


class _Parameters:
    """Parameters of a query or form, each with all its values."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> Sequence[str]:
        return self._values.get(name, ())

    def one(self, name: str) -> str:
        """Return the value, empty if there is none.

        Raises:
            InvalidRequest: if there are different ones (RFC 6749, 3.2). Equal ones are allowed: skopeo sends the
                realm's own query in the URL and again in the form.
        """
        values = set(self.all(name)) - {""}
        if len(values) > 1:
            raise InvalidRequest(f"the parameter {name} is given more than once")
        return values.pop() if values else ""

    def __contains__(self, name: str) -> bool:
        return name in self._values


def read_token_request(environ: WSGIEnvironment, proxies: TrustedProxies = NO_PROXIES) -> TokenRequest:
    """Read a request to the token endpoint.

    Args:
        environ: the WSGI environment.
        proxies: the trusted proxies.

    Raises:
        InvalidRequest: if it cannot be understood.
        UnsupportedGrantType: for a POST with another `grant_type`.
        InvalidCredentials: if credentials were sent that cannot be understood: they never count as none.
        MethodNotAllowed: for methods other than GET and POST.
        ContentTooLarge, LengthRequired: for a body or query that cannot be read.
    """
    query = environ.get("QUERY_STRING", "")
    if environ["REQUEST_METHOD"] == "GET":
        credentials = _basic_credentials(environ)
        # Clients send the same query again and again. Long ones are not remembered: they would fill memory.
        wanted = _remembered_wish(query) if len(query) <= REMEMBERED_LENGTH else _wish(_decode_pairs(query))
    elif environ["REQUEST_METHOD"] == "POST":
        form = _read_form(environ)
        credentials = _form_credentials(_Parameters(form), environ)
        wanted = _wish([*_decode_pairs(query), *form])
    else:
        raise MethodNotAllowed(("GET", "POST"))
    return TokenRequest(
        credentials,
        wanted.service,
        wanted.requested,
        proxies.client(environ),
        wanted.client_id,
        environ.get("HTTP_USER_AGENT", ""),
        wanted.offline,
    )


@dataclass(frozen=True, slots=True)
class _Wish:
    """The parameters of a request that are no credentials."""

    service: str
    requested: tuple[Access, ...]
    client_id: str
    offline: bool


def _wish(pairs: Iterable[tuple[str, str]]) -> _Wish:
    parameters = _Parameters(pairs)
    return _Wish(
        service=parameters.one("service"),
        requested=parse_scopes(parameters.all("scope")),
        client_id=" ".join(parameters.all("client_id")),
        # Each of the two specifications has its own word, and nerdctl falls back from one to the other.
        offline=parameters.one("access_type") == "offline" or parameters.one("offline_token") == "true",
    )


@lru_cache(maxsize=REMEMBERED_REQUESTS)
def _remembered_wish(query: str) -> _Wish:
    return _wish(_decode_pairs(query))


def read_revocation(environ: WSGIEnvironment) -> str:
    """Read a request to the revocation endpoint (RFC 7009, 2.1) and return the token.

    Raises:
        InvalidRequest: if it names no token.
        UnsupportedTokenType: if it says that the token is an access token.
        MethodNotAllowed, ContentTooLarge, LengthRequired: as for a token request.
    """
    if environ["REQUEST_METHOD"] != "POST":
        raise MethodNotAllowed(("POST",))
    form = _Parameters(_read_form(environ))
    if form.one("token_type_hint") == "access_token":
        raise UnsupportedTokenType
    token = form.one("token")
    if not token:
        raise InvalidRequest("the form has no token")
    return token


def token_response(response: TokenResponse) -> Response:
    """Write a token so that every client can read it.

    The fields: https://distribution.github.io/distribution/spec/auth/token/#token-response-fields and RFC 6749, 5.1.
    """
    token = response.token
    # Go clients reject the whole answer for a time without zone; Apple's needs the fraction.
    issued_at = timestamp(token.issued_at)
    # Only if it was asked for: ggcr and regclient would use it at once.
    refresh_token = f',"refresh_token":"{response.refresh_token}"' if response.refresh_token else ""
    # Written by hand, because it is long and only the scope could need escapes.
    return _response(
        f'{{"token":"{token.text}","access_token":"{token.text}","token_type":"Bearer","expires_in":{token.expires_in},'
        f'"issued_at":"{issued_at}","scope":{json.dumps(scope_text(response.granted))}{refresh_token}}}'
    )


def error_response(error: RequestError, realm: str) -> Response:
    """Write an error so that every client shows its description: Docker's list and OAuth's pair in one body.

    Args:
        error: what went wrong.
        realm: the name in the challenge of a 401.
    """
    description = _clean(error.description)
    more = []
    if isinstance(error, InvalidCredentials | LoginRequired):
        more.append(("WWW-Authenticate", f'Basic realm="{_clean(realm)}", charset="UTF-8"'))
    if isinstance(error, MethodNotAllowed):
        more.append(("Allow", ", ".join(error.allowed)))
    if isinstance(error, BackendUnavailable | TooManyAttempts):
        more.append(("Retry-After", str(error.retry_after)))
    return json_response(
        {
            "errors": [{"code": error.docker_code, "message": description}],
            "error": error.oauth_error,
            "error_description": description,
        },
        error.status,
        more,
    )


def json_response(body: Mapping[str, Any], status: int = 200, more: Iterable[tuple[str, str]] = ()) -> Response:
    """Write a JSON answer that no cache keeps.

    Args:
        body: the JSON object.
        status: the HTTP status.
        more: further headers.
    """
    return _response(json.dumps(body, separators=(",", ":")), status, more)


def _response(text: str, status: int = 200, more: Iterable[tuple[str, str]] = ()) -> Response:
    body = text.encode("ascii")
    return Response(body=body, status=status, headerlist=[*_HEADERS, ("Content-Length", str(len(body))), *more])


def _clean(text: str) -> str:
    """Replace what OAuth does not allow in a description, and HTTP not in a quoted string."""
    return _NOT_DESCRIPTION.sub("?", text.replace('"', "'"))[:_MAX_DESCRIPTION]


def _basic_credentials(environ: WSGIEnvironment) -> Password | RefreshToken | None:
    """Read the Authorization header (RFC 7617).

    Old clients send an empty name with an empty password when nobody is logged in. containerd sends a refresh token
    with an empty name, oras-py with the name that credential helpers give it. Everything else that cannot be understood
    is a wrong credential.
    """
    header = environ.get("HTTP_AUTHORIZATION", "").strip()
    if not header:
        return None
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        raise InvalidCredentials("send the user name and password as Basic credentials", reason="not Basic")
    encoded = encoded.strip().rstrip("=")
    try:
        # Some clients leave the padding out.
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCredentials(reason="the Basic credentials are not base64") from None
    # RFC 7617, 2: a name has no colon, a password may.
    name, colon, password = raw.partition(b":")
    if not colon:
        raise InvalidCredentials(reason="the Basic credentials have no colon")
    if not name and not password:
        return None
    if name in (b"", b"<token>"):
        return RefreshToken(_decode(password), by_grant=False)
    return Password(_decode(name), _decode(password))


def _form_credentials(form: _Parameters, environ: WSGIEnvironment) -> Password | RefreshToken:
    grant_type = form.one("grant_type")
    if grant_type == "refresh_token":
        token = form.one("refresh_token")
        if not token:
            raise InvalidRequest("the form has grant_type=refresh_token but no refresh_token")
        return RefreshToken(token, by_grant=True)
    if not grant_type:
        raise InvalidRequest("the form has no grant_type; use grant_type=password")
    if grant_type != "password":
        raise UnsupportedGrantType
    if "username" in form or "password" in form:
        return Password(form.one("username"), form.one("password"))
    # RFC 6749, 2.3.1: a client may put its credentials into the header.
    credentials = _basic_credentials(environ)
    if credentials is None:
        raise InvalidRequest("the form has grant_type=password but neither username nor password")
    return credentials


def _read_form(environ: WSGIEnvironment) -> Sequence[tuple[str, str]]:
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type not in ("", _FORM_TYPE):
        raise InvalidRequest(f"send the form as {_FORM_TYPE}")
    # As Latin-1 every byte stays what it is until each value is decoded by itself.
    return _decode_pairs(read_body(environ).decode("latin-1"))


def read_body(environ: WSGIEnvironment) -> bytes:
    """Return the body of a request, however its length is given.

    Raises:
        InvalidRequest, ContentTooLarge, LengthRequired: if it cannot be read.
    """
    body = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH", "")
    if length:
        if not (length.isascii() and length.isdigit()):
            raise InvalidRequest("the Content-Length is not a number")
        # First the number of digits: Python refuses to convert thousands of them.
        if len(length) > 20 or int(length) > MAX_FORM_SIZE:
            raise ContentTooLarge
        data = _read_up_to(body, int(length))
        if len(data) < int(length):
            raise InvalidRequest("the body is shorter than its Content-Length")
        return data
    if environ.get("wsgi.input_terminated"):
        # skopeo and podman send chunks and no length; the server has decoded them.
        data = _read_up_to(body, MAX_FORM_SIZE + 1)
        if len(data) > MAX_FORM_SIZE:
            raise ContentTooLarge
        return data
    if environ.get("HTTP_TRANSFER_ENCODING"):
        raise LengthRequired
    return b""


def _read_up_to(body: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            piece = body.read(size - len(data))
        except OSError:
            # What Apache, gunicorn and uWSGI raise when the client has gone.
            raise InvalidRequest("the body could not be read to its end") from None
        if not piece:
            break
        data += piece
    return data


def _decode_pairs(text: str) -> Sequence[tuple[str, str]]:
    if len(text) > MAX_FORM_SIZE:
        raise ContentTooLarge
    pairs = parse_qsl(text, keep_blank_values=True, encoding="latin-1")
    return tuple((_decode(_octets(name)), _decode(_octets(value))) for name, value in pairs)


def _octets(text: str) -> bytes:
    """Return the bytes of a WSGI string (PEP 3333: Latin-1; "replace" for a server that breaks that)."""
    return text.encode("latin-1", "replace")


def _decode(raw: bytes) -> str:
    """Decode what a client sent: Go sends UTF-8 unchanged, some others Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
