"""Whether a registry takes a key's tokens: asked of the registry itself, with a token that allows nothing."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Final

from tokenissuer.errors import TokenIssuerError
from tokenissuer.issuer import Issuer

#: Seconds to wait for an answer.
_PATIENCE: Final = 10
#: Times it is asked: behind one address there may be several registries.
_TIMES: Final = 5

_SERVICE: Final = re.compile(r'\bservice="([^"]*)"')


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirect: the token is for this registry alone."""


def prove_trust(registry: str, issuer: Issuer, services: Sequence[str]) -> None:
    """Prove that a registry takes the tokens of an issuer.

    Args:
        registry: its URL.
        issuer: signs, with the key in question.
        services: those that the issuer serves.

    Raises:
        TokenIssuerError: if it does not, or cannot be asked.
    """
    status, challenge = _ask(registry, "")
    found = _SERVICE.search(challenge)
    if status != 401 or not challenge.lower().startswith("bearer") or found is None:
        raise TokenIssuerError(f"{registry}: this is no registry that wants tokens (it answers {status} at /v2/)")
    if found[1] not in services:
        raise TokenIssuerError(
            f"{registry}: its service is '{found[1]}', and [issuer] services has only {', '.join(services)}"
        )
    for _ in range(_TIMES):
        status, _ = _ask(registry, issuer.issue("", found[1], ()).text)
        if status != 200:
            raise TokenIssuerError(
                f"{registry}: it does not take tokens of this key (it answers {status}); give it the certificate file "
                "(auth.token.rootcertbundle) or the JWK Set (auth.token.jwks), and restart it"
            )


def _ask(registry: str, token: str) -> tuple[int, str]:
    """Return status and challenge of the registry's base page."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        request = urllib.request.Request(f"{registry.rstrip('/')}/v2/", headers=headers)
        if request.type not in ("http", "https"):
            raise TokenIssuerError(f"{registry}: use the registry's URL, such as http://127.0.0.1:5000")
        with opener.open(request, timeout=_PATIENCE) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("WWW-Authenticate", "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise TokenIssuerError(f"{registry}: it cannot be asked: {reason}") from None
