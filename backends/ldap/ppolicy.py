"""What a server says about the password itself in the answer to a bind.

Behera's draft: https://datatracker.ietf.org/doc/html/draft-behera-ldap-password-policy-11#section-6.2
Netscape's controls: https://datatracker.ietf.org/doc/html/draft-vchu-ldap-pwd-policy-00
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

CONTROL: Final = "1.3.6.1.4.1.42.2.27.8.5.1"
_EXPIRED_CONTROL: Final = "2.16.840.1.113730.3.4.4"
_EXPIRING_CONTROL: Final = "2.16.840.1.113730.3.4.5"

_ERRORS: Final = {
    0: "the password has expired",
    1: "the account is locked",
    2: "the password must be changed",
}
_SEQUENCE: Final = 0x30
_WARNING: Final = 0xA0
_ERROR: Final = 0x81
_SECONDS_LEFT: Final = 0x80
_GRACE_LEFT: Final = 0x81


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
    objection, expires_in = "", 0
    ((kind, content),) = _elements(value)
    if kind != _SEQUENCE:
        raise ValueError("the password policy answer is not a sequence")
    for tag, inner in _elements(content):
        if tag == _ERROR:
            number = int.from_bytes(inner, "big")
            objection = _ERRORS.get(number, f"the password policy objects (error {number})")
        elif tag == _WARNING:
            ((warning, number_left),) = _elements(inner)
            left = int.from_bytes(number_left, "big")
            if warning == _GRACE_LEFT:
                objection = objection or f"the password has expired, with {left} grace logins left"
            elif warning == _SECONDS_LEFT:
                expires_in = left
    return PasswordState(objection, expires_in)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split BER elements. Those of the control are too short for a length of several octets."""
    while data:
        if len(data) < 2 or data[1] > 127 or len(data) < 2 + data[1]:
            raise ValueError("the password policy answer is cut short")
        end = 2 + data[1]
        yield data[0], data[2:end]
        data = data[end:]
