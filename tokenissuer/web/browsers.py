"""Pages of other sites that may ask from a browser: https://fetch.spec.whatwg.org/#http-cors-protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from tokenissuer.errors import AccessDenied, LoginRequired, RequestError

#: Seconds for which a browser need not ask again whether it may.
_MAX_AGE: Final = 600

Headers = Sequence[tuple[str, str]]


class AllowedOrigins:
    """The sites whose pages may read answers.

    Args:
        origins: such as `https://ui.example.com`.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins: Final = frozenset(origins)

    def headers(self, environ: Mapping[str, Any]) -> Headers:
        """Return what an answer has besides, for the page that asks."""
        # A cache must not give the answer for one site to another.
        vary = ("Vary", "Origin")
        origin = environ.get("HTTP_ORIGIN", "")
        if origin not in self._origins:
            return (vary,)
        return (
            vary,
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Expose-Headers", "WWW-Authenticate, Retry-After, X-Request-Id"),
        )

    def is_preflight(self, environ: Mapping[str, Any]) -> bool:
        """Whether a browser asks if one of these sites may send a request."""
        return (
            environ["REQUEST_METHOD"] == "OPTIONS"
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
            and environ.get("HTTP_ORIGIN", "") in self._origins
        )


#: What the answer to a preflight has besides.
PREFLIGHT: Final[Headers] = (
    ("Access-Control-Allow-Methods", "GET, POST"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
    ("Access-Control-Max-Age", str(_MAX_AGE)),
)


def for_browser(error: RequestError, environ: Mapping[str, Any]) -> RequestError:
    """Return the error for somebody without a login: a browser opens its box only for 401, docker must get 403.

    Args:
        error: what went wrong.
        environ: the request. Browsers send headers of their own, https://www.w3.org/TR/fetch-metadata/, but to a name
            without TLS only the User-Agent.
    """
    is_browser = (
        "HTTP_SEC_FETCH_MODE" in environ
        or "HTTP_ORIGIN" in environ
        or environ.get("HTTP_USER_AGENT", "").startswith("Mozilla/")
    )
    if isinstance(error, AccessDenied) and is_browser:
        return LoginRequired(error.description, reason=error.reason)
    return error


def check_origin(origin: str) -> None:
    """Prove that a text is an origin as browsers send it.

    Raises:
        ValueError: if it is not.
    """
    parts = urlsplit(origin)
    is_whole = bool(parts.netloc) and origin == f"{parts.scheme}://{parts.netloc}".lower()
    if parts.scheme not in ("http", "https") or not is_whole:
        raise ValueError(
            f"'allowed_origins' has '{origin}'; write it as browsers do: scheme, name and port, in small letters, "
            "such as https://ui.example.com"
        )
