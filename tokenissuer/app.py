"""The WSGI application: routes, the one `except`, the one log line per request."""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from webob import Request, Response

from tokenissuer.errors import BackendUnavailable, InternalError, MethodNotAllowed, NotFound, RequestError
from tokenissuer.health import Health
from tokenissuer.line import logfmt
from tokenissuer.metrics import metrics
from tokenissuer.protocol import (
    JWKS_PATH,
    METADATA_PATH,
    REVOCATION_PATH,
    error_response,
    json_response,
    metadata_response,
    read_revocation,
    read_token_request,
    token_response,
)
from tokenissuer.proxies import NO_PROXIES, TrustedProxies
from tokenissuer.scope import Access, scope_text
from tokenissuer.service import Password, TokenService
from tokenissuer.tally import count_answer, count_outage, count_refusal, count_revocation

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TOKEN_PATHS: Final = ("/token", "/jwt/auth", "/auth", "/auth/token")

#: What an answer is to those who watch for attacks and outages.
_SECURITY: Final = {401: "login_refused", 403: "denied", 429: "throttled", 503: "outage"}

#: Outcomes as they are counted.
_OUTCOMES: Final = {
    200: "good",
    401: "refused",
    403: "denied",
    429: "throttled",
    500: "failed",
    503: "unavailable",
}

_requests: Final = logging.getLogger("tokenissuer.requests")
_failures: Final = logging.getLogger("tokenissuer")


class Application:
    """The token server as a WSGI application.

    Args:
        service: answers token requests.
        proxies: whose word about the client's address counts.
    """

    def __init__(self, service: TokenService, proxies: TrustedProxies = NO_PROXIES) -> None:
        self._service: Final = service
        self._proxies: Final = proxies
        self._is_warned = False
        key = service.issuer.key
        end = key.certificate.not_valid_after_utc.timestamp()
        metrics().certificate_end.set(end)
        self._routes: Final[dict[str, Callable[[Request, dict[str, object]], Response]]] = {
            **dict.fromkeys(TOKEN_PATHS, self._token),
            REVOCATION_PATH: self._revoke,
            JWKS_PATH: self._jwks,
            METADATA_PATH: self._metadata,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        started = time.monotonic()
        said: dict[str, object] = {}
        request_id = secrets.token_hex(8)
        response = self._respond(request, said)
        response.headers["X-Request-Id"] = request_id
        self._warn(environ)
        security = said.pop("security", "")
        endpoint = str(said.pop("endpoint", "none"))
        seconds = time.monotonic() - started
        outcome = _OUTCOMES.get(response.status_int, "invalid")
        metrics().requests.labels(endpoint, outcome).inc()
        metrics().request_seconds.labels(endpoint).observe(seconds)
        line: dict[str, object] = {
            "request_id": request_id,
            "status": response.status_int,
            "method": request.method,
            "path": environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
            "client": self._proxies.client(environ) or "",
            "agent": environ.get("HTTP_USER_AGENT", ""),
            **said,
            "duration_ms": round(seconds * 1000),
        }
        _requests.info("%s", logfmt(line), extra={"fields": line, "security": security})
        body: Iterable[bytes] = response(environ, start_response)
        return body

    @property
    def health(self) -> Health:
        """Whether what it needs can be asked."""
        return self._service.health

    @property
    def key_id(self) -> str:
        """The thumbprint of the key that tokens are signed with."""
        return self._service.issuer.key.thumbprint

    def close(self) -> None:
        """Let go of what the service holds."""
        self._service.close()

    def _warn(self, environ: WSGIEnvironment) -> None:
        if not self._is_warned and self._proxies.overlooks(environ):
            self._is_warned = True
            _failures.warning(
                "a proxy on this machine names its clients, but [server] trusted_proxies does not name it: all of them "
                "count as one address, for [throttle], `networks` and this log; add '%s'",
                environ.get("REMOTE_ADDR") or "unix",
            )

    def _respond(self, request: Request, said: dict[str, object]) -> Response:
        try:
            handler = self._route(request)
            said["endpoint"] = handler.__name__.removeprefix("_")
            return handler(request, said)
        except RequestError as error:
            said["error"] = error.sentence
            said["reason"] = error.reason
            said["security"] = _SECURITY.get(error.status, "")
            if error.source:
                said["backend"] = error.source
            return error_response(error, self._service.issuer.name)
        except Exception as error:
            # Only where and what kind: the text of a stranger's exception may hold what the client sent.
            where = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
            _failures.error("%s while answering a request; this is a defect:\n%s", type(error).__name__, where)
            said["error"] = type(error).__name__
            said["security"] = "defect"
            return error_response(InternalError(), self._service.issuer.name)

    def _route(self, request: Request) -> Callable[[Request, dict[str, object]], Response]:
        environ = request.environ
        path = environ.get("PATH_INFO", "")
        # Under Apache's WSGIScriptAlias the first part of the path, or all of it, is in SCRIPT_NAME.
        for candidate in (path, environ.get("SCRIPT_NAME", "") + path):
            # Never a redirect: Go clients turn a redirected POST into a GET without its body.
            handler = self._routes.get(candidate.removesuffix("/"))
            if handler is not None:
                return handler
        raise NotFound

    def _token(self, request: Request, said: dict[str, object]) -> Response:
        asked = read_token_request(request, self._proxies)
        said["username"] = asked.credentials.username if isinstance(asked.credentials, Password) else ""
        said["service"] = asked.service
        said["client_id"] = asked.client_id
        said["asked"] = scope_text(asked.asked)
        try:
            response = self._service.respond(asked)
        except RequestError as error:
            count_refusal(asked, error)
            raise
        count_answer(asked, response)
        said["account"] = response.subject
        said["backend"] = response.source
        said["granted"] = scope_text(response.granted)
        said["reason"] = response.reason
        said["jti"] = response.token.jti
        if _is_less(response.granted, asked.asked):
            said["security"] = "denied"
        elif response.subject:
            said["security"] = "login"
        return token_response(response)

    def _revoke(self, request: Request, said: dict[str, object]) -> Response:
        token = read_revocation(request)
        try:
            self._service.revoke(token)
        except BackendUnavailable as error:
            count_outage(error)
            raise
        count_revocation()
        said["security"] = "session_revoked"
        return json_response({})

    def _metadata(self, request: Request, said: dict[str, object]) -> Response:
        _only_reading(request)
        return metadata_response(self._service)

    def _jwks(self, request: Request, said: dict[str, object]) -> Response:
        _only_reading(request)
        return json_response(self._service.issuer.key.jwk_set())

    def _healthz(self, request: Request, said: dict[str, object]) -> Response:
        _only_reading(request)
        return json_response({"status": "up"})

    def _readyz(self, request: Request, said: dict[str, object]) -> Response:
        _only_reading(request)
        self._service.health.prove()
        return json_response({"status": "ready"})


def _only_reading(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(("GET", "HEAD"))


def _is_less(granted: Iterable[Access], asked: Iterable[Access]) -> bool:
    """Whether something of what was asked is not granted."""
    actions = {(access.type, access.name): access.actions for access in granted}
    return any(
        (access.type, access.name) not in actions or access.actions - {"*"} - actions[access.type, access.name]
        for access in asked
    )
