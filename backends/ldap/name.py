"""Distinguished names as values: `CN=Smith\\, John` and `cn=smith\\2C john` are equal. RFC 4514."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final

from tokenissuer_backends.ldap.failure import Misconfigured

_TYPE: Final = re.compile(r" *([A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)*) *= *", re.ASCII)
_HEX_PAIR: Final = re.compile(r"[0-9A-Fa-f]{2}", re.ASCII)
_HEX_VALUE: Final = re.compile(r"#((?:[0-9A-Fa-f]{2})+) *(?=[,+]|$)", re.ASCII)
#: Characters that a value may have only after a backslash.
_SPECIAL: Final = frozenset('"+,;<>\0')
_ESCAPABLE: Final = frozenset('"+,;<>\\ #=')


@dataclass(frozen=True, slots=True)
class DistinguishedName:
    """A distinguished name, parsed and folded as directories compare names.

    Args:
        parts: from the entry up to the root, the attribute types and values of each.
        spelling: the first value, as it was written.
    """

    parts: tuple[frozenset[tuple[str, str]], ...]
    spelling: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> DistinguishedName:
        """Parse a name.

        Raises:
            ValueError: if it is not a distinguished name.
        """
        return _parse(text)

    @classmethod
    def given(cls, text: str) -> DistinguishedName:
        """Parse a name that a directory has returned.

        Raises:
            Misconfigured: if it is not a distinguished name.
        """
        try:
            return _parse(text)
        except ValueError as error:
            raise Misconfigured(f"the directory returned a wrong name: {error}") from None

    def is_below(self, base: DistinguishedName) -> bool:
        """Whether the entry is the base or anywhere below it."""
        return len(self.parts) >= len(base.parts) and self.parts[len(self.parts) - len(base.parts) :] == base.parts


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> DistinguishedName:
    parts: list[frozenset[tuple[str, str]]] = []
    pairs: list[tuple[str, str]] = []
    spelling = ""
    position = 0
    while True:
        match = _TYPE.match(text, position)
        if match is None:
            raise ValueError(f"'{text}' is not a distinguished name such as cn=name,dc=example,dc=com")
        kind = match[1].lower()
        if encoded := _HEX_VALUE.match(text, match.end()):
            # This is the value's encoding and not its text. It gets its own type, because it must not equal any text.
            kind, value, position = f"{kind}#", encoded[1].lower(), encoded.end()
        else:
            value, position = _value(text, match.end())
        if not value:
            raise ValueError(f"'{text}' is not a distinguished name: the value of '{match[1]}' is empty")
        spelling = spelling or value
        pairs.append((kind, _fold(value)))
        end = text[position : position + 1]
        if end != "+":
            parts.append(frozenset(pairs))
            pairs = []
        if not end:
            return DistinguishedName(tuple(parts), spelling)
        position += 1


def _value(text: str, start: int) -> tuple[str, int]:
    """Read one value; return it without escapes, and its end."""
    octets = bytearray()
    kept = 0  # octets without trailing spaces
    position = start
    while position < len(text) and text[position] not in ",+":
        character = text[position]
        if character == "\\":
            if pair := _HEX_PAIR.match(text, position + 1):
                octets.append(int(pair[0], 16))
                position += 3
            elif text[position + 1 : position + 2] in _ESCAPABLE:
                octets += text[position + 1].encode()
                position += 2
            else:
                raise ValueError(f"'{text}' is not a distinguished name: a backslash escapes nothing")
            kept = len(octets)
            continue
        if character in _SPECIAL:
            raise ValueError(f"'{text}' is not a distinguished name: put a backslash before '{character}'")
        octets += character.encode("utf-8", "surrogatepass")
        position += 1
        if character != " ":
            kept = len(octets)
    try:
        return octets[:kept].decode("utf-8"), position
    except UnicodeDecodeError:
        raise ValueError(f"'{text}' is not a distinguished name: a value is not UTF-8") from None


def _fold(value: str) -> str:
    """Remove what directories ignore: case, and all spaces but one between words. RFC 4518."""
    return " ".join(word for word in unicodedata.normalize("NFC", value).casefold().split(" ") if word)
