"""What arrived of a request that `tokenissuer doctor` sent: only the holder of the signing key is told.

`doctor` signs a token that lives for a minute and sends it to the realm in a header of its own. Whoever answers it with
the nonce in it has the same key and the same issuer name: the realm ends at this instance. The answer says what the
proxies on the way have left of the request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import jwt

from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import SigningKey
from tokenissuer.web.protocol import read_body
from tokenissuer.web.proxies import TrustedProxies

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

PROBE_HEADER: Final = "X-Tokenissuer-Probe"
PROBE_VARIABLE: Final = "HTTP_X_TOKENISSUER_PROBE"

#: Seconds for which a probe is answered.
PROBE_LIFETIME: Final = 60

_AUDIENCE: Final = "tokenissuer doctor"
# What proxies say about a client, and clients about themselves.
_FORWARDED: Final = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Proto", "X-Forwarded-Host", "Via")


def sign_probe(key: SigningKey, issuer: str, nonce: str, now: float) -> str:
    """Return the value of the header.

    Args:
        key: the issuer's key.
        issuer: its name.
        nonce: comes back in the answer.
        now: seconds since 1970.
    """
    claims = {"iss": issuer, "aud": _AUDIENCE, "exp": int(now) + PROBE_LIFETIME, "nonce": nonce}
    return jwt.encode(claims, key.private, algorithm=key.algorithm)


def probe_arrival(environ: WSGIEnvironment, issuer: Issuer, proxies: TrustedProxies) -> Mapping[str, Any] | None:
    """Return what arrived of a request with a valid probe; None if it is not valid: then there is no probe.

    Args:
        environ: the WSGI environment.
        issuer: the one that must have signed it.
        proxies: the trusted proxies.

    Raises:
        InvalidRequest, ContentTooLarge, LengthRequired: if the body cannot be read.
    """
    key = issuer.key
    try:
        claims = jwt.decode(
            environ[PROBE_VARIABLE],
            key.private.public_key(),
            algorithms=[key.algorithm],
            audience=_AUDIENCE,
            issuer=issuer.name,
            options={"require": ["exp", "aud", "iss", "nonce"]},
        )
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return None
    variables = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in _FORWARDED}
    return {
        "nonce": claims["nonce"],
        "time": time.time(),
        "method": environ["REQUEST_METHOD"],
        "scheme": environ["wsgi.url_scheme"],
        "host": environ.get("HTTP_HOST", ""),
        "script_name": environ.get("SCRIPT_NAME", ""),
        "path_info": environ.get("PATH_INFO", ""),
        "query_length": len(environ.get("QUERY_STRING", "")),
        "peer": environ.get("REMOTE_ADDR", ""),
        "peer_port": str(environ.get("REMOTE_PORT", "")),
        "client": str(proxies.client(environ) or ""),
        "forwarded": {name: environ[each] for name, each in variables.items() if each in environ},
        # Its length, and never what it holds.
        "authorization_length": len(environ.get("HTTP_AUTHORIZATION", "")),
        "transfer_encoding": environ.get("HTTP_TRANSFER_ENCODING", ""),
        "content_length": environ.get("CONTENT_LENGTH", ""),
        "body_length": len(read_body(environ)),
    }
