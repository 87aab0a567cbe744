"""Claims and signatures: https://distribution.github.io/distribution/spec/auth/jwt/. Owns the clock."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tokenissuer.errors import ConfigurationError, InvalidCredentials
from tokenissuer.keys import KeyForm, SigningKey
from tokenissuer.metrics import metrics, timed
from tokenissuer.scope import Access

#: Seconds: clients take a shorter or absent lifetime for this one.
MIN_LIFETIME: Final = 60
#: Seconds by which `nbf` and `iat` lie in the past: zot, Pulp and Distribution before 2.6 grant no leeway to a clock
#: that is behind ours.
BACKDATING: Final = 30


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed access token.

    Args:
        text: the compact JWS.
        jti: its id, which alone may be logged.
        issued_at: seconds since 1970.
        expires_in: seconds from `issued_at`.
    """

    text: str = field(repr=False)
    jti: str
    issued_at: float
    expires_in: int


class Issuer:
    """Signs access tokens.

    Args:
        name: the `iss` claim.
        key: what tokens are signed with.
        lifetime: seconds a token is good for.
        key_forms: for each service, how the token's header names the key; `x5c` where absent.
        clock: seconds since 1970.

    Raises:
        ConfigurationError: if the lifetime is too short for clients.
    """

    def __init__(
        self,
        name: str,
        key: SigningKey,
        lifetime: int,
        key_forms: Mapping[str, KeyForm],
        clock: Callable[[], float] = time.time,
    ) -> None:
        if lifetime < MIN_LIFETIME:
            raise ConfigurationError(f"the lifetime must be at least {MIN_LIFETIME} seconds, found {lifetime}")
        self.name: Final = name
        self.key: Final = key
        self.lifetime: Final = lifetime
        self._key_forms: Final = dict(key_forms)
        self._clock: Final = clock

    def issue(
        self, subject: str, service: str, granted: Iterable[Access], *, valid_until: float | None = None
    ) -> AccessToken:
        """Sign a token.

        Args:
            subject: the account's name; empty for anonymous.
            service: the registry it is for.
            granted: one entry for each resource, with explicit actions.
            valid_until: seconds since 1970 that the token must not outlive, if that is before its lifetime ends.

        Raises:
            InvalidCredentials: if that is so soon that clients would take the token for good when it no longer is.
        """
        moment = self._clock()
        now = int(moment)
        lifetime = self.lifetime if valid_until is None else min(self.lifetime, int(valid_until) - now)
        if lifetime < MIN_LIFETIME:
            raise InvalidCredentials(
                reason=f"the account source vouches for this login for {lifetime} more seconds only"
            )
        jti = secrets.token_urlsafe(16)
        # Every line is a hard failure somewhere if it is otherwise: Distribution 2.x takes only a single string for
        # `aud` and whole numbers for times, Pulp needs `sub` and `access`.
        claims: dict[str, Any] = {
            "iss": self.name,
            "sub": subject,
            "aud": service,
            "exp": now + lifetime,
            "nbf": now - BACKDATING,
            "iat": now - BACKDATING,
            "jti": jti,
            "access": [access.claim() for access in granted],
        }
        header = {"typ": "JWT", **self.key.header(self._key_forms.get(service, KeyForm.X5C))}
        with timed(metrics().signing_seconds, self.key.algorithm):
            text = self.key.sign(claims, header)
        return AccessToken(text, jti, moment, lifetime)
