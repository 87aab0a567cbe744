"""The WSGI application: routes, the one `except`, the one log line per request."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from webob import Response

from tokenissuer.errors import InternalError, LoopDetected, MethodNotAllowed, NotFound, RequestError
from tokenissuer.service import TokenService
from tokenissuer.web import routes
from tokenissuer.web.browsers import PREFLIGHT, AllowedOrigins, for_browser
from tokenissuer.web.probe import PROBE_VARIABLE, probe_arrival
from tokenissuer.web.protocol import error_response, json_response, read_revocation, read_token_request, token_response
from tokenissuer.web.proxies import NO_PROXIES, UNIX, TrustedProxies
from tokenissuer.web.record import Exchange, LogLine
from tokenissuer.web.routes import Addresses

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_Page = Callable[["WSGIEnvironment", Exchange], Response]

#: The header `X-Tokenissuer`: a backend sends it where an account source may have a token endpoint of the same path.
LOOP_VARIABLE: Final = "HTTP_X_TOKENISSUER"

#: Peers that are named because they seem to be proxies.
_MAX_OVERLOOKED: Final = 20

_requests: Final = logging.getLogger("tokenissuer.requests")
_log: Final = logging.getLogger("tokenissuer")


class Application:
    """The token server as a WSGI application.

    Args:
        service: answers token requests.
        proxies: the trusted proxies.
        realm: the URL that clients are sent to; empty if it is not known.
        ready: raises `BackendUnavailable` if a backend or the session store cannot be asked.
        observe: is told each request when it has been answered.
        origins: the sites whose pages may ask from a browser; None for no other site.
    """

    def __init__(
        self,
        service: TokenService,
        proxies: TrustedProxies = NO_PROXIES,
        realm: str = "",
        ready: Callable[[], None] = lambda: None,
        observe: Callable[[Exchange], None] = lambda exchange: None,
        origins: AllowedOrigins | None = None,
    ) -> None:
        self._service: Final = service
        self._proxies: Final = proxies
        self._ready: Final = ready
        self._observe: Final = observe
        self._overlooked: Final[set[str]] = set()
        # A prefix and a number: unique without asking the kernel for random bytes each time.
        self._id_prefix: Final = secrets.token_hex(5)
        self._numbers: Final = itertools.count(1)
        self._origins: Final = origins
        self._realm: Final = realm or routes.TOKEN
        addresses = Addresses.of(realm)
        metadata = _metadata(addresses, has_refresh=service.refresh is not None)
        pages = {
            routes.TOKEN: ("token", self._token),
            routes.REVOKE: ("revoke", self._revoke),
            routes.JWKS: ("jwks", _page(service.issuer.key.jwk_set)),
            routes.METADATA: ("metadata", _page(lambda: metadata)),
            routes.HEALTH: ("healthz", _page(lambda: {"status": "up"})),
            routes.READINESS: ("readyz", _page(self._readiness)),
        }
        self._pages: Final[Mapping[str, tuple[str, _Page]]] = {
            path: pages[page] for path, page in addresses.routes().items()
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started = time.perf_counter()
        exchange = Exchange()
        response = self._respond(environ, exchange)
        request_id = f"{self._id_prefix}{next(self._numbers):06x}"
        response.headerlist.append(("X-Request-Id", request_id))
        if self._origins is not None:
            response.headerlist.extend(self._origins.headers(environ))
        exchange.status = response.status_int
        exchange.seconds = time.perf_counter() - started
        self._warn(environ)
        self._observe(exchange)
        if _requests.isEnabledFor(logging.INFO):
            line = LogLine(
                request_id=request_id,
                status=exchange.status,
                method=environ["REQUEST_METHOD"],
                path=environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
                client=str(self._proxies.client(environ) or ""),
                agent=environ.get("HTTP_USER_AGENT", ""),
                **exchange.fields(),
            )
            # Without a search for the caller's line number, which is always this one.
            extra = {"security": exchange.security}
            _requests.handle(_requests.makeRecord(_requests.name, logging.INFO, "", 0, line, (), None, extra=extra))
        body: Iterable[bytes] = response(environ, start_response)
        return body

    def _respond(self, environ: WSGIEnvironment, exchange: Exchange) -> Response:
        try:
            exchange.endpoint, page = self._route(environ)
            if self._origins is not None and self._origins.is_preflight(environ):
                exchange.endpoint = "preflight"
                return json_response({}, 200, PREFLIGHT)
            return page(environ, exchange)
        except RequestError as error:
            exchange.result = error
            is_login = exchange.request is not None and exchange.request.credentials is not None
            return error_response(error if is_login else for_browser(error, environ), self._service.issuer.name)
        except Exception as error:
            # Only the place and the kind: the text of a plug-in's exception may have what the client sent.
            where = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
            _log.error("%s while answering a request; this is a bug:\n%s", type(error).__name__, where)
            exchange.result = InternalError(type(error).__name__)
            return error_response(InternalError(), self._service.issuer.name)

    def _route(self, environ: WSGIEnvironment) -> tuple[str, _Page]:
        path = environ.get("PATH_INFO", "")
        # Under Apache's WSGIScriptAlias the first part of the path, or all of it, is in SCRIPT_NAME.
        for candidate in (path, environ.get("SCRIPT_NAME", "") + path):
            # Never a redirect: Go clients turn a redirected POST into a GET without its body.
            page = self._pages.get(candidate.removesuffix("/"))
            if page is not None:
                return page
        raise NotFound(path, self._realm)

    def _token(self, environ: WSGIEnvironment, exchange: Exchange) -> Response:
        if LOOP_VARIABLE in environ:
            raise LoopDetected
        if PROBE_VARIABLE in environ and (arrival := probe_arrival(environ, self._service.issuer, self._proxies)):
            return json_response(arrival)
        exchange.request = read_token_request(environ, self._proxies)
        exchange.result = response = self._service.respond(exchange.request)
        return token_response(response)

    def _revoke(self, environ: WSGIEnvironment, exchange: Exchange) -> Response:
        self._service.revoke(read_revocation(environ))
        return json_response({})

    def _readiness(self) -> Mapping[str, object]:
        self._ready()
        return {"status": "ready"}

    def _warn(self, environ: WSGIEnvironment) -> None:
        proxy = self._proxies.overlooked(environ)
        if proxy and proxy not in self._overlooked and len(self._overlooked) < _MAX_OVERLOOKED:
            self._overlooked.add(proxy)
            _log.warning(
                "%s names its clients like a proxy, but [server] trusted_proxies does not name it: all of them count "
                "as one address, for [throttle], `networks` and this log; if it is your proxy, add '%s'",
                "a peer on a Unix socket" if proxy == UNIX else proxy,
                proxy,
            )


def _page(content: Callable[[], Mapping[str, object]]) -> _Page:
    def answer(environ: WSGIEnvironment, exchange: Exchange) -> Response:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise MethodNotAllowed(("GET", "HEAD"))
        return json_response(content())

    return answer


def _metadata(addresses: Addresses, *, has_refresh: bool) -> Mapping[str, object]:
    """Describe the endpoints to OAuth clients (RFC 8414, 2)."""
    metadata: dict[str, object] = {
        "issuer": addresses.base,
        "token_endpoint": addresses.realm,
        "jwks_uri": addresses.url(routes.JWKS),
        "response_types_supported": [],
        "grant_types_supported": ["password"],
        "token_endpoint_auth_methods_supported": ["none"],
    }
    if has_refresh:
        metadata["grant_types_supported"] = ["password", "refresh_token"]
        metadata["revocation_endpoint"] = addresses.url(routes.REVOKE)
        metadata["revocation_endpoint_auth_methods_supported"] = ["none"]
    return metadata
