"""Scope text ↔ `Access`: https://distribution.github.io/distribution/spec/auth/scope/.

Reading is lenient: clients repeat the parameter, join scopes with spaces, do both, and put a port into the name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

#: Distinct resources read from one request. A client that asks for more, one for each possible mount source, does
#: without the rest.
MAX_SCOPES: Final = 40
#: Characters in one scope: 255 for the name and room for type and actions.
MAX_SCOPE_LENGTH: Final = 512
#: Actions read for one resource: registries have three, and some clients invent more.
MAX_ACTIONS: Final = 16

# The repository name as a registry's routes take it, https://pkg.go.dev/github.com/distribution/reference, in lower
# case throughout: a component, then more behind slashes; the first may be a host with a port.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PORT: Final = r"(?::[0-9]{1,5}(?=/))?"
_REPOSITORY_NAME: Final = re.compile(rf"{_COMPONENT}{_PORT}(?:/{_COMPONENT})*", re.ASCII)
_MAX_NAME_LENGTH: Final = 255

_TYPE: Final = re.compile(r"([a-z0-9]+)(?:\([a-z0-9]+\))?", re.ASCII)
_ACTION: Final = re.compile(r"[a-z]{1,32}|\*", re.ASCII)

_TEXT_OF: Final = attrgetter("text")
#: Characters of a request's scopes that are remembered.
REMEMBERED_LENGTH: Final = 2048
#: Requests whose scopes are remembered.
REMEMBERED_REQUESTS: Final = 1024

_SPACE: Final = re.compile(r"[ \t\r\n\f\v]+")

#: The one resource that is not a repository: the list of all repositories.
CATALOG: Final = ("registry", "catalog")


@dataclass(frozen=True, slots=True)
class Access:
    """Actions on one resource: requested or granted.

    Args:
        type: `repository` or `registry`; other types are read and get nothing.
        name: the resource's name.
        actions: `pull`, `push`, `delete`, …, or `*`.
    """

    type: str
    name: str
    actions: frozenset[str]
    #: The scope as text. Made once, because log and answer need it for each request.
    text: str = field(init=False, repr=False, compare=False)
    #: Whether this is a repository with a name that a registry accepts: no other name may match a rule.
    is_repository: bool = field(init=False, repr=False, compare=False)
    #: Whether this is the list of all repositories.
    is_catalog: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_name = len(self.name) <= _MAX_NAME_LENGTH and _REPOSITORY_NAME.fullmatch(self.name) is not None
        object.__setattr__(self, "text", f"{self.type}:{self.name}:{','.join(sorted(self.actions))}")
        object.__setattr__(self, "is_repository", self.type == "repository" and is_name)
        object.__setattr__(self, "is_catalog", (self.type, self.name) == CATALOG)

    @property
    def size(self) -> int:
        """The length of the claim as JSON."""
        return len(json.dumps(self.claim(), separators=(",", ":")))

    def claim(self) -> dict[str, Any]:
        """Return the entry of the token's `access` claim."""
        return {"type": self.type, "name": self.name, "actions": sorted(self.actions)}

    def __str__(self) -> str:
        return self.text


def parse_scopes(values: Iterable[str]) -> tuple[Access, ...]:
    """Read every scope in the values of all `scope` parameters.

    A scope that cannot be understood is dropped and never an error: registries and clients invent scopes. Scopes for
    the same resource are merged. At most `MAX_SCOPES` resources are read, in the order of the request, and at most
    `MAX_ACTIONS` actions of each.

    Args:
        values: each parameter's value; one value may hold several scopes with white space between.
    """
    values = tuple(values)
    # Clients send the same few scopes again and again. Long ones are not remembered: they would fill memory.
    return _remembered(values) if sum(map(len, values)) <= REMEMBERED_LENGTH else _parse(values)


def _parse(values: tuple[str, ...]) -> tuple[Access, ...]:
    # An `Access` is made once for each resource, however often a request repeats it: making one costs more with each
    # action that it has.
    merged: dict[tuple[str, str], set[str]] = {}
    for value in values:
        for text in _SPACE.split(value):
            type_, name, actions = _split_scope(text)
            resource = (type_, name)
            if type_ and (resource in merged or len(merged) < MAX_SCOPES):
                found = merged.setdefault(resource, set())
                for action in actions:
                    if len(found) < MAX_ACTIONS:
                        found.add(action)
    return tuple(Access(*resource, frozenset(actions)) for resource, actions in merged.items())


_remembered: Final = lru_cache(maxsize=REMEMBERED_REQUESTS)(_parse)


def _split_scope(text: str) -> tuple[str, str, Sequence[str]]:
    """Return type, name and actions; an empty type if the text is no scope."""
    # The name may hold a port (`repository:host:5000/a/b:pull`): the type ends at the first colon, the actions
    # begin after the last.
    type_, _, rest = text.partition(":")
    name, colon, actions = rest.rpartition(":")
    # The class in `repository(plugin)` is deprecated, and no registry matches a token entry that carries one.
    kind = _TYPE.fullmatch(type_)
    if len(text) > MAX_SCOPE_LENGTH or not colon or kind is None:
        return "", "", ()
    return kind[1], name, [action for action in actions.split(",") if _ACTION.fullmatch(action)]


def scope_text(accesses: Iterable[Access]) -> str:
    """Write the scopes as OAuth's `scope` does, with a space between."""
    return " ".join(map(_TEXT_OF, accesses))
