"""Which path is which page, behind proxies that take a prefix off and those that do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

TOKEN: Final = "/token"
REVOKE: Final = "/revoke"
JWKS: Final = "/.well-known/jwks.json"
METADATA: Final = "/.well-known/oauth-authorization-server"
HEALTH: Final = "/healthz"
READINESS: Final = "/readyz"

#: Where tokens are issued, whatever the realm is.
TOKEN_PATHS: Final = (TOKEN, "/jwt/auth", "/auth", "/auth/token")
_PAGES: Final = (REVOKE, JWKS, METADATA, HEALTH, READINESS)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses that clients use.

    Args:
        realm: the URL of the token endpoint; empty if it is not known.
        base: the URL of all other pages, without a slash at the end.
    """

    realm: str
    base: str

    @classmethod
    def of(cls, realm: str) -> Addresses:
        """Find the base in the realm: what is before one of the usual paths, else before the last part of the path."""
        path = urlsplit(realm).path.rstrip("/")
        endpoint = next((each for each in sorted(TOKEN_PATHS, key=len, reverse=True) if path.endswith(each)), "")
        shorter = path.removesuffix(endpoint) if endpoint else path.rpartition("/")[0]
        origin = realm[: len(realm) - len(urlsplit(realm).path)]
        return cls(realm, f"{origin}{shorter}")

    def url(self, page: str) -> str:
        """Return the address of a page."""
        return f"{self.base}{page}"

    def routes(self) -> Mapping[str, str]:
        """Return the page for each path that a request may have."""
        base, realm = unquote(urlsplit(self.base).path), unquote(urlsplit(self.realm).path).rstrip("/")
        routes = {f"{prefix}{page}": page for prefix in _suffixes(base) for page in _PAGES}
        # https://www.rfc-editor.org/rfc/rfc8414#section-3: the path of the issuer comes behind.
        routes[f"{METADATA}{base}"] = METADATA
        routes |= {f"{prefix}{path}": TOKEN for prefix in _suffixes(base) for path in TOKEN_PATHS}
        # A proxy may take any part of the path off, but not all of it.
        routes |= dict.fromkeys((path for path in _suffixes(realm) if path or not realm), TOKEN)
        return routes


def check_pages(realm: str) -> None:
    """Prove that the realm's path is not that of another page.

    Raises:
        ValueError: if it is.
    """
    path = unquote(urlsplit(realm).path).rstrip("/")
    for page in _PAGES:
        if path.endswith(page):
            raise ValueError(f"'realm' is '{realm}', and {page} is another page; use for example {TOKEN}")


def _suffixes(path: str) -> Iterator[str]:
    """Return a path, and what is left of it after its first parts are taken off."""
    while path:
        yield path
        _, slash, rest = path[1:].partition("/")
        path = slash + rest
    yield ""
