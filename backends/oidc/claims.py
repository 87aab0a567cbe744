"""What a token says of itself, and texts made of its claims."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenissuer import InvalidCredentials, UnknownAccount

#: Characters of an account's or a group's name.
MAX_NAME: Final = 512

#: A claim in a template.
PLACEHOLDER: Final = re.compile(r"\{([^{}]+)\}")
# Seconds since 1970 beyond which nothing is a time.
_END_OF_TIME: Final = 1 << 40


def unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what a token shows of itself: its header and claims.

    Raises:
        UnknownAccount: if this is no token: another backend may know the password.
    """
    parts = token.split(".")
    try:
        found = [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2]]
    except (ValueError, RecursionError):
        found = []
    if len(parts) != 3 or len(found) != 2 or not all(isinstance(each, dict) for each in found):
        raise UnknownAccount(reason="the password is no ID token")
    return found[0], found[1]


def expiry(claims: Mapping[str, Any]) -> float:
    """Return the time at which a token expires, which is to come."""
    for name in ("exp", "iat", "nbf"):
        seconds = claims.get(name, 0)
        if type(seconds) not in (int, float) or not 0 <= seconds < _END_OF_TIME:
            raise refused(f"its '{name}' is no time")
    end = float(claims["exp"])
    if end <= time.time():
        raise InvalidCredentials(
            "the ID token has expired; get a new one from your platform",
            reason="the ID token has expired",
            is_guess=False,
        )
    return end


def filled(template: str, claims: Mapping[str, Any], forbidden: str = "") -> Sequence[str | None]:
    """Return a template with claims in the places of {claim}: a text for each value of a list, none without a value.

    None stands for a text that cannot be used: it is too long or unprintable, or a claim has a character that is
    forbidden or that follows it in the template. So no two sets of claims give the same text.
    """
    first, *rest = PLACEHOLDER.split(template)
    texts: list[str | None] = [first]
    for claim, literal in zip(rest[::2], rest[1::2], strict=True):
        signs = forbidden + literal[:1]
        values = [
            None if value is None or any(sign in value for sign in signs) else value
            for value in values_of(claims, claim)
        ]
        texts = [None if None in (text, value) else f"{text}{value}{literal}" for text in texts for value in values]
    return [text if text and len(text) <= MAX_NAME and text.isprintable() else None for text in texts]


def values_of(claims: Mapping[str, Any], name: str) -> Sequence[str | None]:
    """Return the values of a claim as texts; `a/b` is the claim b in the table a, if there is no claim of that name.

    None stands for a value that is no text, whole number or truth: nobody knows what it means.
    """
    found: Any = claims
    for part in [name] if name in claims else name.split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    values = found if isinstance(found, list) else [] if found is None else [found]
    return [_text(value) for value in values if value not in ("", [])]


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, int)) else None


def listed(wanted: Sequence[str] | str) -> Sequence[str]:
    return (wanted,) if isinstance(wanted, str) else wanted


def claim_pattern(text: str) -> re.Pattern[str]:
    first, *more = map(re.escape, text.split("*"))
    # What a star has found stays found: a long claim must not take quadratic time.
    middle = [f"(?>.*?{piece})" for piece in more[:-1]]
    return re.compile("".join([first, *middle, *(f".*{last}" for last in more[-1:])]))


def shown(value: object) -> str:
    return ascii(value)[:200]


def refused(fault: str) -> InvalidCredentials:
    # A machine has made the token, so it is no guess at a password.
    return InvalidCredentials(reason=f"the ID token is refused: {fault}", is_guess=False)
