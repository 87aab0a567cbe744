"""Whether a registry accepts a key's tokens: asked with a token that allows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tokenissuer.doctor.caller import Answer, Caller, Unreachable
from tokenissuer.doctor.challenge import Challenge
from tokenissuer.errors import TokenIssuerError
from tokenissuer.signing.issuer import Issuer

#: How often it is asked: there may be several registries behind one address.
_TIMES: Final = 5


def prove_trust(registry: str, issuer: Issuer, services: Sequence[str]) -> None:
    """Prove that a registry accepts the tokens of an issuer.

    Args:
        registry: its URL.
        issuer: signs, with the key in question.
        services: the services of the issuer.

    Raises:
        TokenIssuerError: if it does not, or does not answer.
    """
    caller = Caller()
    answer = _ask(caller, registry, {})
    try:
        challenge = Challenge.parse(answer.headers.get("www-authenticate", "") if answer.status == 401 else "")
    except ValueError:
        raise TokenIssuerError(
            f"{registry} is not a registry that asks for tokens: /v2/ answered {answer.status}"
        ) from None
    if challenge.service not in services:
        raise TokenIssuerError(
            f"{registry}: its service is '{challenge.service}', and [issuer] services has only {', '.join(services)}"
        )
    for _ in range(_TIMES):
        token = issuer.issue("", challenge.service, ()).text
        answer = _ask(caller, registry, {"Authorization": f"Bearer {token}"})
        if answer.status != 200:
            raise TokenIssuerError(
                f"{registry} does not accept tokens of this key: it answered {answer.status}; give it the certificate "
                "file (auth.token.rootcertbundle) or the JWK Set (auth.token.jwks), and restart it"
            )


def _ask(caller: Caller, registry: str, headers: Mapping[str, str]) -> Answer:
    """Return the answer of the registry's base page."""
    try:
        return caller.ask("GET", f"{registry.rstrip('/')}/v2/", headers)
    except Unreachable as error:
        raise TokenIssuerError(f"{registry} does not answer: {error}") from None
