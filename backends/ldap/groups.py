"""The groups of an account: by search, by an attribute of its entry, nested."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tokenissuer_backends.ldap.directory import Conversation
from tokenissuer_backends.ldap.failure import Incomplete, Misconfigured
from tokenissuer_backends.ldap.filter import FilterTemplate
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import DN, NAME, GroupOptions, Preset
from tokenissuer_backends.ldap.wire import Entry

#: Groups whose own groups are asked for in one search.
_AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True)
class Group:
    """A group.

    Args:
        dn: its distinguished name.
        name: its short name, in lower case; empty if it is not certain.
    """

    dn: DistinguishedName
    name: str


class GroupSearch:
    """Finds an account's groups.

    Args:
        options: the table of the configuration.
        preset: the defaults for the kind of directory.
    """

    def __init__(self, options: GroupOptions, preset: Preset) -> None:
        self._base: Final = options.base
        self._attribute: Final = options.attribute
        self._filter: Final = FilterTemplate(options.filter or preset.groups_filter, [DN, NAME], [DN, NAME])
        self._name: Final = options.name or preset.groups_name
        self._levels: Final = preset.nested if options.nested is None else options.nested

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of the account's entry that are needed."""
        return (self._attribute,) if self._attribute else ()

    def of(self, entry: Entry, name: str, conversation: Conversation) -> frozenset[Group]:
        """Return the account's groups: all of them, or none at all.

        Args:
            entry: the account's.
            name: the account's, as the directory spells it.
            conversation: with the server that has the entry.

        Raises:
            Misconfigured: if the server returns only a part: too few groups would be too few denials.
            Unreachable: if it does not answer.
        """
        if self._attribute is not None:
            return frozenset(self._listed(entry.texts(self._attribute)))
        found = self._search(self._filter.fill({DN: entry.dn, NAME: name}), conversation)
        # Each group is asked for once: groups may contain each other.
        seen = {group.dn: group for _, group in found}
        # A group is a member only by its DN. A user may have the name of a group, and no group may inherit that.
        nobody = secrets.token_hex(16)
        for _ in range(self._levels):
            if not found:
                break
            parents: list[tuple[str, Group]] = []
            for part in _batches(found):
                filters = "".join(self._filter.fill({DN: dn, NAME: nobody}) for dn, _ in part)
                parents += self._search(f"(|{filters})", conversation)
            found = [(dn, group) for dn, group in parents if group.dn not in seen]
            seen.update((group.dn, group) for _, group in found)
        return frozenset(seen.values())

    def _listed(self, values: Iterable[str]) -> Iterable[Group]:
        base = None if self._base is None else DistinguishedName.parse(self._base)
        for value in values:
            dn = DistinguishedName.given(value)
            if base is None or dn.is_below(base):
                yield Group(dn, dn.spelling.lower())

    def _search(self, filter_: str, conversation: Conversation) -> list[tuple[str, Group]]:
        if self._base is None:
            raise Misconfigured("'base' is missing in [backends.groups]")
        try:
            entries = conversation.search(self._base, filter_, [self._name])
        except Incomplete as error:
            raise Misconfigured(
                f"{error.reason}; raise the server's limit for 'bind_dn', or take groups from 'attribute' (memberOf)"
            ) from None
        return [(entry.dn, Group(DistinguishedName.given(entry.dn), self._name_of(entry))) for entry in entries]

    def _name_of(self, entry: Entry) -> str:
        values = entry.texts(self._name)
        if len(values) == 1:
            return values[0].lower()
        # Of several names only the one in the DN counts: the others need not be unique.
        own = DistinguishedName.given(entry.dn).spelling
        return own.lower() if own in values else ""


def _batches(found: list[tuple[str, Group]]) -> Iterable[list[tuple[str, Group]]]:
    return (found[start : start + _AT_ONCE] for start in range(0, len(found), _AT_ONCE))
