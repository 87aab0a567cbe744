"""HTTP request → `TokenRequest`; `TokenResponse` or error → HTTP.

GET: https://distribution.github.io/distribution/spec/auth/token/
POST: https://distribution.github.io/distribution/spec/auth/oauth/ and RFC 6749.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urljoin

from webob import Request, Response

from tokenissuer.errors import (
    BackendUnavailable,
    ContentTooLarge,
    InvalidCredentials,
    InvalidRequest,
    LengthRequired,
    MethodNotAllowed,
    RequestError,
    TooManyAttempts,
    UnsupportedGrantType,
    UnsupportedTokenType,
)
from tokenissuer.proxies import NO_PROXIES, TrustedProxies
from tokenissuer.scope import parse_scopes, scope_text
from tokenissuer.service import Password, RefreshToken, TokenRequest, TokenResponse, TokenService

JWKS_PATH: Final = "/.well-known/jwks.json"
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"
REVOCATION_PATH: Final = "/revoke"

#: Bytes in a body or in a query. The longest honest one names every possible mount source of a copied image.
MAX_FORM_SIZE: Final = 64 * 1024

_FORM_TYPE: Final = "application/x-www-form-urlencoded"
# RFC 6749, 5.2: what `error_description` may hold.
_NOT_DESCRIPTION: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
_MAX_SENTENCE: Final = 400


class _Parameters:
    """Parameters of a query or form, each with the values it was given."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> Sequence[str]:
        return self._values.get(name, ())

    def one(self, name: str) -> str:
        """Return the value, empty if there is none.

        Raises:
            InvalidRequest: if there are several different ones (RFC 6749, 3.2). Equal ones pass: skopeo sends the
                realm's own query in the URL and again in the form.
        """
        values = set(self.all(name)) - {""}
        if len(values) > 1:
            raise InvalidRequest(f"the parameter {name} is given more than once")
        return values.pop() if values else ""

    def __contains__(self, name: str) -> bool:
        return name in self._values


def read_token_request(request: Request, proxies: TrustedProxies = NO_PROXIES) -> TokenRequest:
    """Understand a request to the token endpoint.

    Args:
        request: what came.
        proxies: whose word about the client's address counts.

    Raises:
        InvalidRequest: if it cannot be understood.
        UnsupportedGrantType: for a POST with a `grant_type` that is not served.
        InvalidCredentials: if credentials were sent that cannot be understood: they are never taken for none.
        MethodNotAllowed: for other methods than GET and POST.
        ContentTooLarge, LengthRequired: for a body or query that cannot be read.
    """
    query = _decode_pairs(request.environ.get("QUERY_STRING", ""))
    if request.method == "GET":
        parameters = _Parameters(query)
        credentials = _basic_credentials(request)
    elif request.method == "POST":
        form = _read_form(request)
        parameters = _Parameters([*query, *form])
        credentials = _form_credentials(_Parameters(form), request)
    else:
        raise MethodNotAllowed(("GET", "POST"))
    return TokenRequest(
        credentials=credentials,
        service=parameters.one("service"),
        asked=parse_scopes(parameters.all("scope")),
        address=proxies.client(request.environ),
        client_id=" ".join(parameters.all("client_id")),
        agent=request.environ.get("HTTP_USER_AGENT", ""),
        # The two specifications have a word each, and nerdctl falls back from one to the other.
        offline=parameters.one("access_type") == "offline" or parameters.one("offline_token") == "true",
    )


def read_revocation(request: Request) -> str:
    """Understand a request to the revocation endpoint (RFC 7009, 2.1).

    Raises:
        InvalidRequest: if it names no token.
        UnsupportedTokenType: if it says that it is an access token.
        MethodNotAllowed, ContentTooLarge, LengthRequired: as for a token request.
    """
    if request.method != "POST":
        raise MethodNotAllowed(("POST",))
    form = _Parameters(_read_form(request))
    if form.one("token_type_hint") == "access_token":
        raise UnsupportedTokenType
    token = form.one("token")
    if not token:
        raise InvalidRequest("the form has no token")
    return token


def token_response(response: TokenResponse) -> Response:
    """Write a token the way every client reads it.

    The fields: https://distribution.github.io/distribution/spec/auth/token/#token-response-fields and RFC 6749, 5.1.
    """
    token = response.token
    # Go clients reject the whole answer for a time without zone; Apple's needs the fraction.
    moment = datetime.datetime.fromtimestamp(math.floor(token.issued_at * 1000) / 1000, datetime.UTC)
    issued_at = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json_response(
        {
            "token": token.text,
            "access_token": token.text,
            "token_type": "Bearer",
            "expires_in": token.expires_in,
            "issued_at": issued_at,
            "scope": scope_text(response.granted),
            # Never unasked: ggcr and regclient would go on with it at once.
            **({"refresh_token": response.refresh_token} if response.refresh_token else {}),
        }
    )


def error_response(error: RequestError, realm: str) -> Response:
    """Write an error so that every client shows its sentence: Docker's list and OAuth's pair in one body.

    Args:
        error: what went wrong.
        realm: the name in the challenge of a 401.
    """
    sentence = _description(error.sentence)
    response = json_response(
        {
            "errors": [{"code": error.code, "message": sentence}],
            "error": error.error,
            "error_description": sentence,
        }
    )
    response.status_int = error.status
    if isinstance(error, InvalidCredentials):
        response.headers["WWW-Authenticate"] = f'Basic realm="{_description(realm)}", charset="UTF-8"'
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, BackendUnavailable | TooManyAttempts):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def metadata_response(service: TokenService) -> Response:
    """Describe the endpoints to OAuth clients (RFC 8414, 2)."""
    here: dict[str, Any] = {
        "issuer": urljoin(service.realm, "/").removesuffix("/"),
        "token_endpoint": service.realm,
        "jwks_uri": urljoin(service.realm, JWKS_PATH),
        "response_types_supported": [],
        "grant_types_supported": ["password"],
        "token_endpoint_auth_methods_supported": ["none"],
    }
    if service.refresh is not None:
        here["grant_types_supported"] = ["password", "refresh_token"]
        here["revocation_endpoint"] = urljoin(service.realm, REVOCATION_PATH)
        here["revocation_endpoint_auth_methods_supported"] = ["none"]
    return json_response(here)


def json_response(body: dict[str, Any]) -> Response:
    """Write a JSON answer that nobody keeps."""
    response = Response(json_body=body)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Pragma"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _description(text: str) -> str:
    """Keep to what OAuth allows in a description and HTTP in a quoted string."""
    return _NOT_DESCRIPTION.sub("?", text.replace('"', "'"))[:_MAX_SENTENCE]


def _basic_credentials(request: Request) -> Password | RefreshToken | None:
    """Read the Authorization header (RFC 7617).

    Old clients send an empty name with an empty password for nobody; containerd sends a refresh token with an empty
    name, oras-py with the name that credential helpers give it. Everything else that cannot be understood is a wrong
    credential.
    """
    header = request.environ.get("HTTP_AUTHORIZATION", "").strip()
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
    # RFC 7617, 2: a name holds no colon, a password may.
    name, colon, password = raw.partition(b":")
    if not colon:
        raise InvalidCredentials(reason="the Basic credentials have no colon")
    if not name and not password:
        return None
    if name in (b"", b"<token>"):
        return RefreshToken(_decode(password), by_grant=False)
    return Password(_decode(name), _decode(password))


def _form_credentials(form: _Parameters, request: Request) -> Password | RefreshToken:
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
    # RFC 6749, 2.3.1: a client may put what it has into the header.
    credentials = _basic_credentials(request)
    if credentials is None:
        raise InvalidRequest("the form has grant_type=password but neither username nor password")
    return credentials


def _read_form(request: Request) -> list[tuple[str, str]]:
    content_type = request.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type not in ("", _FORM_TYPE):
        raise InvalidRequest(f"send the form as {_FORM_TYPE}")
    # Bytes keep their places in Latin-1 until every value is decoded by itself.
    return _decode_pairs(_read_body(request).decode("latin-1"))


def _read_body(request: Request) -> bytes:
    environ = request.environ
    body = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH", "")
    if length:
        if not (length.isascii() and length.isdigit()):
            raise InvalidRequest("the Content-Length is no number")
        # By the digits first: Python refuses to convert thousands of them.
        if len(length) > 20 or int(length) > MAX_FORM_SIZE:
            raise ContentTooLarge
        return _read_up_to(body, int(length))
    if environ.get("wsgi.input_terminated"):
        # skopeo and podman send chunks and no length; the server has taken them apart.
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
        piece = body.read(size - len(data))
        if not piece:
            break
        data += piece
    return data


def _decode_pairs(text: str) -> list[tuple[str, str]]:
    if len(text) > MAX_FORM_SIZE:
        raise ContentTooLarge
    pairs = parse_qsl(text, keep_blank_values=True, encoding="latin-1")
    return [(_decode(_octets(name)), _decode(_octets(value))) for name, value in pairs]


def _octets(text: str) -> bytes:
    """Return the bytes that stand in a WSGI string (PEP 3333: Latin-1; a server that breaks it must not break us)."""
    return text.encode("latin-1", "replace")


def _decode(raw: bytes) -> str:
    """Decode what a client sent: Go sends UTF-8 as it is, some others Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
