"""Search filters with placeholders for values. RFC 4515."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

#: Matches every entry.
EVERYTHING: Final = "(objectClass=*)"

_LEAF: Final = re.compile(r"\((?P<attribute>[A-Za-z0-9.;:-]+)(?P<operator>=|~=|>=|<=)(?P<value>[^()]*)\)", re.ASCII)
_PLACEHOLDER: Final = re.compile(r"\{[^{}]*\}")
_STRAY_BACKSLASH: Final = re.compile(r"\\(?![0-9A-Fa-f]{2})", re.ASCII)
_BRANCH: Final = re.compile(r"\(\s*(?:[&|]\s*(?:L\s*)+|!\s*L\s*)\)")
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@")


class FilterTemplate:
    """A filter with placeholders such as `{user}`, which stand for values and never for a part of the filter itself.

    Args:
        text: the filter.
        known: the placeholders it may have, with braces.
        needed: placeholders of which it must have at least one.

    Raises:
        ValueError: if it is not a filter, or a placeholder is unknown, missing or outside a value.
    """

    def __init__(self, text: str, known: Iterable[str], needed: Iterable[str]) -> None:
        self.text: Final = text.strip()
        known, needed = sorted(known), sorted(needed)
        shape = _LEAF.sub("L", self.text)
        while (shorter := _BRANCH.sub("L", shape)) != shape:
            shape = shorter
        if shape != "L":
            raise ValueError(f"'{text}' is not a search filter such as (&(objectClass=person)(uid={{user}}))")
        for leaf in _LEAF.finditer(self.text):
            if _STRAY_BACKSLASH.search(leaf["value"]):
                raise ValueError(f"in the filter '{text}', write the backslash in '{leaf['value']}' as \\5c")
        found = set(_PLACEHOLDER.findall(self.text))
        for placeholder in sorted(found.difference(known)):
            raise ValueError(f"the filter '{text}' has {placeholder}; known here: {', '.join(known)}")
        if not found.intersection(needed):
            raise ValueError(f"the filter '{text}' has no {' or '.join(needed)}; it would find the same for everyone")

    def fill(self, values: Mapping[str, str]) -> str:
        """Replace the placeholders.

        Args:
            values: for each placeholder, with braces, the value without escapes.
        """
        return _PLACEHOLDER.sub(lambda match: escape(values[match[0]]), self.text)

    def by(self, attribute: str, placeholder: str) -> FilterTemplate:
        """Return the same filter with another attribute wherever it compares this value."""

        def replaced(leaf: re.Match[str]) -> str:
            return f"({attribute}={placeholder})" if placeholder in leaf["value"] else leaf[0]

        return FilterTemplate(_LEAF.sub(replaced, self.text), [placeholder], [placeholder])

    def __repr__(self) -> str:
        return f"FilterTemplate({self.text!r})"


def escape(value: str) -> str:
    """Escape a value so that it cannot change the filter.

    More is escaped than RFC 4515 requires: the library that reads the filter strips white space and looks for stars.
    """
    return "".join(chr(octet) if octet in _PLAIN else f"\\{octet:02x}" for octet in value.encode("utf-8"))


def escape_octets(value: bytes) -> str:
    """Escape a value that is not text."""
    return "".join(f"\\{octet:02x}" for octet in value)
