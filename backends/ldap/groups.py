"""The groups of an account: by search, by an attribute of its entry, nested."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tokenissuer_backends.ldap.directory import Conversation
from tokenissuer_backends.ldap.failure import Incomplete, Misconfigured
from tokenissuer_backends.ldap.filter import EVERYTHING, FilterTemplate, escape_octets
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import DN, GID, NAME, TOKEN_GROUPS, GroupOptions, Preset
from tokenissuer_backends.ldap.wire import Entry

T = TypeVar("T")

#: Groups that one search asks for.
_AT_ONCE: Final = 50
#: Seconds for which a group of `tokenGroups` is remembered, and how many groups are.
REMEMBERED_SECONDS: Final = 300.0
_MAX_REMEMBERED: Final = 20_000


@dataclass(frozen=True, slots=True)
class Group:
    """A group.

    Args:
        dn: its distinguished name.
        name: its short name, as the directory spells it; empty if it is not certain.
    """

    dn: DistinguishedName
    name: str


class GroupSearch:
    """Finds an account's groups.

    Args:
        options: the table of the configuration.
        preset: the defaults for the kind of directory.
        remembered_seconds: for how long the name of a group of `tokenGroups` is remembered.
    """

    def __init__(self, options: GroupOptions, preset: Preset, remembered_seconds: float = REMEMBERED_SECONDS) -> None:
        self._remembered_seconds: Final = remembered_seconds
        self._bases: Final = options.bases
        self._parsed_bases: Final = [DistinguishedName.parse(base) for base in options.bases]
        is_search = options.filter is not None or bool(options.nested)
        self._attribute: Final = options.attribute or ("" if is_search else preset.groups_attribute)
        self._filter: Final = FilterTemplate(options.filter or preset.groups_filter, [DN, NAME, GID], [DN, NAME, GID])
        self._name: Final = options.name or preset.groups_name
        self._levels: Final = preset.nested if options.nested is None else options.nested
        # By security identifier, with the moment at which it is asked for again. None: not below the base.
        self._by_sid: Final[dict[bytes, tuple[float, Group | None]]] = {}

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of the account's entry that are needed."""
        if self._uses_tokens:
            return ()  # no search but one of the entry alone may ask for them
        return (self._attribute or "gidNumber",)

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
        if self._uses_tokens:
            return frozenset(self._of_token(entry, conversation))
        if self._attribute:
            return frozenset(self._below_bases(entry.texts(self._attribute)))
        # No group has the number -1: an account without a number must match none.
        gid = (*entry.texts("gidNumber"), "-1")[0]
        found = self._search(self._filter.fill({DN: entry.dn, NAME: name, GID: gid}), conversation)
        # Each group is asked for once: groups may contain each other.
        seen = {group.dn: group for _, group in found}
        # A group is a member only by its DN. A user may have the name of a group, and no group may inherit that.
        nobody = secrets.token_hex(16)
        for _ in range(self._levels):
            if not found:
                break
            parents: list[tuple[Entry, Group]] = []
            for part in _batches(found):
                filters = "".join(self._filter.fill({DN: each.dn, NAME: nobody, GID: "-1"}) for each, _ in part)
                parents += self._search(f"(|{filters})", conversation)
            found = [(each, group) for each, group in parents if group.dn not in seen]
            seen.update((group.dn, group) for _, group in found)
        return frozenset(seen.values())

    @property
    def _uses_tokens(self) -> bool:
        return self._attribute.lower() == TOKEN_GROUPS.lower()

    def _of_token(self, entry: Entry, conversation: Conversation) -> Iterator[Group]:
        (shown,) = conversation.search(entry.dn, EVERYTHING, [TOKEN_GROUPS], below=False) or (entry,)
        sids = shown.attributes.get(TOKEN_GROUPS.lower(), ())
        if not sids and entry.attributes:
            # Every account is in its primary group.
            raise Misconfigured(
                "'bind_dn' may not read tokenGroups; make it a member of Windows Authorization Access Group, or take "
                "groups from 'attribute' (memberOf)"
            )
        now = time.monotonic()
        remembered = {sid: kept[1] for sid in sids if (kept := self._by_sid.get(sid)) and now < kept[0]}
        asked: dict[bytes, Group | None] = {sid: None for sid in sids if sid not in remembered}
        for part in _batches(tuple(asked)):
            filters = "".join(f"(objectSid={escape_octets(sid)})" for sid in part)
            for found, group in self._search(f"(|{filters})", conversation, "objectSid"):
                if "objectsid" not in found.attributes:
                    raise Misconfigured(f"'bind_dn' may not read objectSid of {found.dn}")
                asked.update((sid, group) for sid in found.attributes["objectsid"])
        if len(self._by_sid) + len(asked) > _MAX_REMEMBERED:
            self._by_sid.clear()
        self._by_sid.update((sid, (now + self._remembered_seconds, group)) for sid, group in asked.items())
        yield from (group for group in (remembered | asked).values() if group is not None)

    def _below_bases(self, values: Iterable[str]) -> Iterable[Group]:
        for value in values:
            dn = DistinguishedName.given(value)
            if not self._parsed_bases or any(dn.is_below(base) for base in self._parsed_bases):
                yield Group(dn, dn.spelling)

    def _search(self, filter_: str, conversation: Conversation, *more: str) -> list[tuple[Entry, Group]]:
        try:
            entries = [
                entry for base in self._bases for entry in conversation.search(base, filter_, [self._name, *more])
            ]
        except Incomplete as error:
            raise Misconfigured(
                f"{error.reason}; raise the server's limit for 'bind_dn', or take groups from 'attribute' (memberOf)"
            ) from None
        return [(entry, Group(DistinguishedName.given(entry.dn), self._name_of(entry))) for entry in entries]

    def _name_of(self, entry: Entry) -> str:
        values = entry.texts(self._name)
        if len(values) == 1:
            return values[0]
        # Of several names only the one in the DN counts: the others need not be unique.
        own = DistinguishedName.given(entry.dn).spelling
        return own if own in values else ""


def _batches(found: Sequence[T]) -> Iterable[Sequence[T]]:
    return (found[start : start + _AT_ONCE] for start in range(0, len(found), _AT_ONCE))
