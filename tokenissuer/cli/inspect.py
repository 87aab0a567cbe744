"""`tokenissuer inspect`: what a token says, and who would accept it until when."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jwt

from tokenissuer.config import Config, find_config, load_config
from tokenissuer.diagnosis import one_line
from tokenissuer.doctor.trust import Trust, load_bundle
from tokenissuer.errors import TokenIssuerError
from tokenissuer.signing.issuer import BACKDATING
from tokenissuer.signing.keys import PublicKey

#: Characters read from standard input: the largest header that a server takes.
_MAX_TOKEN: Final = 65_536
_ALGORITHMS: Final = ("RS256", "ES256", "ES384", "ES512", "RS384", "RS512")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="the registry's auth.token.rootcertbundle (default: [signing] certificate)",
    )


def run(arguments: argparse.Namespace) -> int:
    """say what a token on standard input allows, and whether registries accept it; exit status 1 if one does not"""
    config = load_config(find_config(arguments.config))
    text = _token(sys.stdin.read(_MAX_TOKEN).strip())
    try:
        header, claims = jwt.get_unverified_header(text), jwt.decode(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise TokenIssuerError(
            "standard input is not a token: three parts with dots between, or the JSON answer with it"
        ) from None
    bundle = arguments.bundle or config.signing.certificate
    print(f"issuer    {claims.get('iss')!a}")
    print(f"subject   {claims.get('sub')!a}" if claims.get("sub") else "subject   nobody")
    print(f"audience  {claims.get('aud')!a}")
    for name in ("nbf", "exp"):
        print(f"{name}       {_moment(claims.get(name))}")
    for entry in _entries(claims):
        print(f"allows    {one_line(entry)}")
    if not claims.get("access"):
        print("allows    nothing; it only proves who somebody is")
    troubles = [*_troubles(config, claims), *_signature_troubles(text, header, bundle)]
    for trouble in troubles:
        print(f"refused   {trouble}")
    if not troubles:
        print(f"accepted  by registries that have {bundle}, until {_moment(claims.get('exp'))}")
    return 1 if troubles else 0


def _token(text: str) -> str:
    """Return the token in a token server's answer, or the text itself if it is none."""
    try:
        answer = json.loads(text)
        return str(answer.get("token") or answer["access_token"])
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return text


def _entries(claims: Mapping[str, Any]) -> Iterator[str]:
    found = claims.get("access")
    for entry in found if isinstance(found, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("actions"), list):
            yield f"{entry.get('type')}:{entry.get('name')}:{','.join(map(str, entry['actions']))}"


def _troubles(config: Config, claims: Mapping[str, Any]) -> Iterator[str]:
    now = time.time()
    if claims.get("iss") != config.issuer.name:
        yield f"the issuer is {claims.get('iss')!a}; [issuer] name is {config.issuer.name!a}"
    if claims.get("aud") not in config.issuer.services:
        yield f"it is for {claims.get('aud')!a}; [issuer] services are {', '.join(config.issuer.services)}"
    end, begin = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(end, int) or not isinstance(begin, int):
        yield "it has no times that a registry can read"
    elif end < now:
        yield f"it has ended, {now - end:.0f} seconds ago"
    elif begin > now + BACKDATING:
        yield f"it begins in {begin - now:.0f} seconds"


def _signature_troubles(text: str, header: Mapping[str, Any], bundle: Path) -> Iterator[str]:
    certificates = load_bundle(bundle)
    keys = [certificate.public_key() for certificate in certificates]
    key = next((key for key in keys if _has_signed(key, text)), None)  # type: ignore[arg-type]  # a plain key
    if key is None:
        yield f"no key of {bundle} has signed it"
        return
    for version, reason in Trust(certificates).refusals(header, key, time.time()).items():  # type: ignore[arg-type]
        yield f"by a registry {version}: {reason}"


def _has_signed(key: PublicKey, text: str) -> bool:
    options: Any = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss"), False)
    try:
        jwt.decode(text, key, algorithms=list(_ALGORITHMS), options=options)
    except (jwt.PyJWTError, ValueError, TypeError):
        return False
    return True


def _moment(seconds: object) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"  # type: ignore[arg-type]  # tried
    except (ValueError, OverflowError, TypeError, OSError):
        return ascii(seconds)[:40]
