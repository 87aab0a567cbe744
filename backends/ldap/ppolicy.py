"""What a server says about the password itself in the answer to a bind.

Behera's draft: https://datatracker.ietf.org/doc/html/draft-behera-ldap-password-policy-11#section-6.2
Netscape's controls: https://datatracker.ietf.org/doc/html/draft-vchu-ldap-pwd-policy-00
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyasn1.codec.ber.decoder import decode
from pyasn1.error import PyAsn1Error
from pyasn1.type import tag
from pyasn1.type.namedtype import NamedType, NamedTypes, OptionalNamedType
from pyasn1.type.univ import Choice, Enumerated, Integer, Sequence

CONTROL: Final = "1.3.6.1.4.1.42.2.27.8.5.1"
_EXPIRED_CONTROL: Final = "2.16.840.1.113730.3.4.4"
_EXPIRING_CONTROL: Final = "2.16.840.1.113730.3.4.5"

_ERRORS: Final = {
    0: "the password has expired",
    1: "the account is locked",
    2: "the password must be changed",
}


def _context(number: int, kind: int = tag.tagFormatSimple) -> Any:
    return tag.Tag(tag.tagClassContext, kind, number)


class _Warning(Choice):  # type: ignore[misc]
    componentType = NamedTypes(
        NamedType("seconds", Integer().subtype(implicitTag=_context(0))),
        NamedType("grace", Integer().subtype(implicitTag=_context(1))),
    )


class _Answer(Sequence):  # type: ignore[misc]
    """`PasswordPolicyResponseValue` of Behera's draft."""

    componentType = NamedTypes(
        OptionalNamedType("warning", _Warning().subtype(explicitTag=_context(0, tag.tagFormatConstructed))),
        OptionalNamedType("error", Enumerated().subtype(implicitTag=_context(1))),
    )


@dataclass(frozen=True, slots=True)
class PasswordState:
    """What the server says about the password that was just tried.

    Args:
        objection: why it cannot be used although it may be right; empty if it can be used.
        expires_in: seconds until it expires; 0 if unknown.
    """

    objection: str = ""
    expires_in: int = 0


def read(controls: Mapping[str, bytes]) -> PasswordState:
    """Read the controls of a bind response.

    Args:
        controls: object identifier → value.

    Raises:
        ValueError: if one cannot be understood: then it is unknown whether the password can be used.
    """
    state = _read_behera(controls[CONTROL]) if CONTROL in controls else PasswordState()
    if not state.objection and _EXPIRED_CONTROL in controls:
        return PasswordState("the password has expired")
    if not state.expires_in and controls.get(_EXPIRING_CONTROL, b"").isdigit():
        return PasswordState(state.objection, int(controls[_EXPIRING_CONTROL]))
    return state


def _read_behera(value: bytes) -> PasswordState:
    try:
        # 389 Directory Server writes every length in four octets, which BER allows (RFC 4511, 5.1).
        answer, rest = decode(value, asn1Spec=_Answer())
    except PyAsn1Error:
        raise ValueError("the password policy answer cannot be read") from None
    if rest:
        raise ValueError("the password policy answer is longer than it says")
    objection, expires_in = "", 0
    if answer["error"].hasValue():
        number = int(answer["error"])
        objection = _ERRORS.get(number, f"the password policy objects (error {number})")
    if answer["warning"].hasValue():
        kind, left = answer["warning"].getName(), int(answer["warning"].getComponent())
        if kind == "seconds":
            expires_in = left
        else:
            objection = objection or f"the password has expired, with {left} grace logins left"
    return PasswordState(objection, expires_in)
