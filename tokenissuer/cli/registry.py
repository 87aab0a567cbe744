"""Whether a registry accepts a key's tokens: asked with a token that allows nothing."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Final

from tokenissuer.errors import TokenIssuerError
from tokenissuer.signing.issuer import Issuer

#: Seconds to wait for an answer.
_TIMEOUT: Final = 10
#: How often it is asked: there may be several registries behind one address.
_TIMES: Final = 5

_SERVICE: Final = re.compile(r'\bservice="([^"]*)"')


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirect: the token is only for this registry."""


def prove_trust(registry: str, issuer: Issuer, services: Sequence[str]) -> None:
    """Prove that a registry accepts the tokens of an issuer.

    Args:
        registry: its URL.
        issuer: signs, with the key in question.
        services: the services of the issuer.

    Raises:
        TokenIssuerError: if it does not, or does not answer.
    """
    status, challenge = _ask(registry, "")
    found = _SERVICE.search(challenge)
    if status != 401 or not challenge.lower().startswith("bearer") or found is None:
        raise TokenIssuerError(f"{registry} is not a registry that asks for tokens: /v2/ answered {status}")
    if found[1] not in services:
        raise TokenIssuerError(
            f"{registry}: its service is '{found[1]}', and [issuer] services has only {', '.join(services)}"
        )
    for _ in range(_TIMES):
        status, _ = _ask(registry, issuer.issue("", found[1], ()).text)
        if status != 200:
            raise TokenIssuerError(
                f"{registry} does not accept tokens of this key: it answered {status}; give it the certificate file "
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
        with opener.open(request, timeout=_TIMEOUT) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("WWW-Authenticate", "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise TokenIssuerError(f"{registry} does not answer: {reason}") from None
