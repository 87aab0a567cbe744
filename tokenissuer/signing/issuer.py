"""Claims and signatures: https://distribution.github.io/distribution/spec/auth/jwt/. Owns the clock."""

from __future__ import annotations

import json
import secrets
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from jwt.utils import base64url_encode

from tokenissuer.errors import InvalidCredentials
from tokenissuer.net import shown_url
from tokenissuer.options import option
from tokenissuer.scope import Access
from tokenissuer.signing.keys import KeyForm, SigningKey

#: Seconds: clients take a shorter or absent lifetime for this one.
MIN_LIFETIME: Final = 60
#: Seconds by which `nbf` and `iat` are in the past: zot, Pulp and Distribution before 2.6 allow a clock that is behind
#: ours no difference.
BACKDATING: Final = 30
#: Characters of a token by default: proxies take a header of at most 8 KiB, with its name.
MAX_SIZE: Final = 8000
#: Characters below which no token can be useful: a certificate alone may have 3,000.
_MIN_SIZE: Final = 4096
#: Signed tokens kept to be used again; the oldest is dropped first.
MAX_TOKENS: Final = 4096

# Entries that fit in any case: a name has at most 255 characters.
_ALWAYS_FITTING: Final = 3
_JTI_LENGTH: Final = 22
# Three moments have more digits than in a token without them.
_LONG_TIMES: Final = 40


@dataclass(frozen=True, slots=True)
class IssuerOptions:
    """The `[issuer]` table."""

    name: str = option("the issuer name: the registry's auth.token.issuer")
    services: tuple[str, ...] = option("the registries' names: their auth.token.service; any other is refused")
    realm: str = option("the URL clients are sent to: the registry's auth.token.realm")
    lifetime: int = option("seconds a token is valid, at least 60", default=900)
    reuse: bool = option(
        "true: an equal request of the same account gets the same token again, while half of its life remains",
        default=True,
    )
    max_size: int = option(
        "characters of a token at most; of what is requested, the last is left out beyond it", default=MAX_SIZE
    )

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("'name' is empty")
        if not self.services or "" in self.services:
            raise ValueError("'services' needs at least one name; use the registry's auth.token.service")
        if self.lifetime < MIN_LIFETIME:
            raise ValueError(f"'lifetime' is {self.lifetime}; clients need at least {MIN_LIFETIME} seconds")
        if self.max_size < _MIN_SIZE:
            raise ValueError(f"'max_size' is {self.max_size}; a token with a certificate needs at least {_MIN_SIZE}")
        check_realm(self.realm)


def check_realm(realm: str) -> None:
    """Refuse a realm that some client cannot use.

    Raises:
        ValueError: if it is not an absolute http(s) URL, or has a query: Jib and Apple's client lose it.
    """
    try:
        url = urllib.parse.urlsplit(realm)
        # `port` is read here and raises if it is not a number.
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() or character in '"\\' for character in realm):
        raise ValueError(f"'realm' is '{shown_url(realm)}'; use a whole URL such as https://auth.example.com/token")
    # By the characters: parsing drops an empty query, and Jib would add a second question mark.
    if "?" in realm or "#" in realm or url.username is not None:
        raise ValueError(f"'realm' is '{shown_url(realm)}'; leave out user, query and fragment: some clients lose them")


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed access token.

    Args:
        text: the compact JWS.
        jti: its id; only this may be logged.
        issued_at: when this answer is given, in seconds since 1970.
        expires_in: seconds from then until the token ends.
    """

    text: str = field(repr=False)
    jti: str
    issued_at: float
    expires_in: int


class Issuer:
    """Signs access tokens.

    Args:
        name: the `iss` claim.
        key: signs.
        lifetime: seconds a token is valid.
        key_forms: for each service, how the token's header names the key (default: `x5c`).
        reuse: whether an equal request of the same account gets the same token again.
        max_size: characters of a token at most.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        key: SigningKey,
        lifetime: int = 900,
        key_forms: Mapping[str, KeyForm] | None = None,
        reuse: bool = True,
        max_size: int = MAX_SIZE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name: Final = name
        self.key: Final = key
        self.lifetime: Final = lifetime
        self._key_forms: Final = dict(key_forms or {})
        self._max_size: Final = max_size
        self._clock: Final = clock
        self._algorithm: Final = jwt.get_algorithm_by_name(key.algorithm)
        self._signature_length: Final = len(base64url_encode(self._algorithm.sign(b"", key.private)))
        # Each holds a certificate and two key ids: made once.
        self._headers: Final = {form: _segment(key.header(form)) for form in KeyForm}
        # Clients may take a token that ends within a minute for one that lasts a minute.
        self._reusable: Final = max(lifetime / 2, MIN_LIFETIME) if reuse else lifetime + 1
        self._lock: Final = threading.Lock()
        # Not a dict: to find the oldest entry of one it passes over the places of all that were taken out before.
        self._tokens: Final[OrderedDict[tuple[str, str, str, tuple[Access, ...]], tuple[int, AccessToken]]] = (
            OrderedDict()
        )

    def fitting(self, subject: str, service: str, granted: tuple[Access, ...]) -> tuple[Access, ...]:
        """Return as many of the entries, from the first, as a token has room for.

        Args:
            subject: the account's name.
            service: the registry that it is for.
            granted: one entry for each resource.
        """
        if len(granted) <= _ALWAYS_FITTING:
            return granted
        empty = self._claims(subject, service, (), 0, 0, "x" * _JTI_LENGTH)
        fixed = len(self._header(service)) + 2 + self._signature_length
        # Three bytes of JSON become four characters.
        left = (self._max_size - fixed) * 3 // 4 - len(_json(empty)) - _LONG_TIMES
        fitting = []
        for access in granted:
            left -= access.size + 1
            if left < 0:
                break
            fitting.append(access)
        return tuple(fitting)

    def issue(
        self,
        subject: str,
        service: str,
        granted: tuple[Access, ...],
        *,
        backend: str = "",
        valid_until: float | None = None,
    ) -> AccessToken:
        """Sign a token, or return one that was signed for the same account, service and access.

        Args:
            subject: the account's name; empty for anonymous.
            service: the registry that it is for.
            granted: one entry for each resource, with explicit actions.
            backend: the backend that vouches for the account: no token is used again for another backend's account.
            valid_until: seconds since 1970 by which the token must end, if that is before the end of its lifetime.

        Raises:
            InvalidCredentials: if that is so soon that clients would use the token after its end.
        """
        moment = self._clock()
        now = int(moment)
        request = (backend, subject, service, granted)
        if valid_until is None and (signed := self._tokens.get(request)) and signed[0] - now >= self._reusable:
            return AccessToken(signed[1].text, signed[1].jti, moment, signed[0] - now)
        token = self._sign(subject, service, granted, moment, valid_until)
        if valid_until is None:
            with self._lock:
                self._tokens.pop(request, None)
                self._tokens[request] = (now + token.expires_in, token)
                if len(self._tokens) > MAX_TOKENS:
                    self._tokens.popitem(last=False)
        return token

    def _sign(
        self, subject: str, service: str, granted: tuple[Access, ...], moment: float, valid_until: float | None
    ) -> AccessToken:
        now = int(moment)
        lifetime = self.lifetime if valid_until is None else min(self.lifetime, int(valid_until) - now)
        if lifetime < MIN_LIFETIME:
            raise InvalidCredentials(
                reason=f"the account source vouches for this login for only {lifetime} more seconds", is_guess=False
            )
        jti = secrets.token_urlsafe(16)
        claims = self._claims(subject, service, granted, now, now + lifetime, jti)
        content = self._header(service) + b"." + _segment(claims)
        signature = base64url_encode(self._algorithm.sign(content, self.key.private))
        return AccessToken(f"{content.decode('ascii')}.{signature.decode('ascii')}", jti, moment, lifetime)

    def _claims(
        self, subject: str, service: str, granted: tuple[Access, ...], now: int, end: int, jti: str
    ) -> Mapping[str, Any]:
        # Every line is a hard failure somewhere if it is otherwise: Distribution 2.x takes only a single string for
        # `aud` and whole numbers for times, Pulp needs `sub` and `access`.
        return {
            "iss": self.name,
            "sub": subject,
            "aud": service,
            "exp": end,
            "nbf": now - BACKDATING,
            "iat": now - BACKDATING,
            "jti": jti,
            "access": [access.claim() for access in granted],
        }

    def _header(self, service: str) -> bytes:
        return self._headers[self._key_forms.get(service, KeyForm.X5C)]


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def _segment(content: Mapping[str, Any]) -> bytes:
    """Write one part of a compact JWS (RFC 7515, 7.1)."""
    return base64url_encode(_json(content))
