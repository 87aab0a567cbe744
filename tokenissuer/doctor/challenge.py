"""What a registry says to who has no token: https://distribution.github.io/distribution/spec/auth/token/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PARAMETER: Final = re.compile(r'([A-Za-z_]+)\s*=\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Challenge:
    """A Bearer challenge.

    Args:
        realm: the URL that clients are sent to.
        service: the registry's name.
        error: why the token that came with the request is refused; empty if there was none.
    """

    realm: str
    service: str
    error: str = ""

    @classmethod
    def parse(cls, header: str) -> Challenge:
        """Read a WWW-Authenticate header.

        Raises:
            ValueError: if it is no Bearer challenge with a realm.
        """
        scheme, _, rest = header.strip().partition(" ")
        found = {name.lower(): re.sub(r"\\(.)", r"\1", value) for name, value in _PARAMETER.findall(rest)}
        if scheme.lower() != "bearer" or not found.get("realm"):
            raise ValueError(f"found {header[:80]!r}, expected: Bearer realm=…,service=…")
        return cls(found["realm"], found.get("service", ""), found.get("error", ""))
