"""Access rules → allowed actions, and the reason. Pure: no clock, no I/O, no state."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from tokenissuer.backend import Account
from tokenissuer.scope import Access

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: What can be done to a repository. A token never says `*` for one: some registries take it for a word.
REPOSITORY_ACTIONS: Final = frozenset({"pull", "push", "delete"})
#: What can be done to the catalog; here registries do ask for `*`.
CATALOG_ACTIONS: Final = frozenset({"*"})

_PLACEHOLDER: Final = re.compile(r"(\{account\}|\{group\})")
_LITERAL: Final = re.compile(r"[a-z0-9._:-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Args:
        account: None if nobody is logged in.
        service: the registry the token is for.
        address: where the request comes from; None if that cannot be told.
    """

    account: Account | None
    service: str
    address: IPAddress | None


class Glob:
    """A pattern for repository names.

    `*` stands for any characters within a path segment. `**`, alone between slashes, stands for any number of
    segments; at the end for at least one, so that `team/**` is all below `team`. `{account}` and `{group}` stand for
    the caller's name and groups, letter by letter, never for a pattern. Matching takes linear time.

    Raises:
        ValueError: if the text cannot be such a pattern; it says why.
    """

    def __init__(self, text: str) -> None:
        self.text: Final = text
        if not text:
            raise ValueError("a repository pattern is empty; use '**' for every repository")
        self._segments: Final = [_parse_segment(segment, text) for segment in text.split("/")]
        self._of_group: Final = "{group}" in text

    def matches(self, name: str, account: Account | None) -> bool:
        """Whether the name is of this pattern for this caller."""
        if account is None:
            return _PLACEHOLDER.search(self.text) is None and self._matches(name, {})
        groups = account.groups if self._of_group else {""}
        return any(self._matches(name, {"{account}": account.name, "{group}": group}) for group in groups)

    def _matches(self, name: str, values: dict[str, str]) -> bool:
        return _match_segments(self._segments, name.split("/"), values)

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"


# A segment is None for `**`, else the pieces between its stars; a piece is a list of texts and placeholders.
_Segment = list[list[str]] | None


def _parse_segment(segment: str, text: str) -> _Segment:
    if segment == "**":
        return None
    if not segment:
        raise ValueError(f"the repository pattern '{text}' begins or ends with a slash, or has two in a row")
    if "**" in segment:
        raise ValueError(f"in the repository pattern '{text}', '**' must stand alone between slashes")
    pieces = []
    for piece in segment.split("*"):
        parts = [part for part in _PLACEHOLDER.split(piece) if part]
        for part in parts:
            if not _PLACEHOLDER.fullmatch(part) and not _LITERAL.fullmatch(part):
                raise ValueError(
                    f"the repository pattern '{text}' holds '{part}'; repository names have only a-z 0-9 . _ - : /, "
                    "and patterns besides these only *, **, {account} and {group}"
                )
        pieces.append(parts)
    return pieces


def _match_segments(pattern: Sequence[_Segment], names: Sequence[str], values: dict[str, str]) -> bool:
    """Match greedily: where a `**` could end in several places the first will do, because what follows it up to the
    next `**` takes the same number of segments in any case."""
    position, star, resume = 0, -1, 0
    index = 0
    while position < len(names):
        if index < len(pattern) and (segment := pattern[index]) is None:
            if index == len(pattern) - 1:
                return True
            star, resume = index, position
            index += 1
        elif index < len(pattern) and segment is not None and _match_segment(segment, names[position], values):
            index, position = index + 1, position + 1
        elif star >= 0:
            resume += 1
            index, position = star + 1, resume
        else:
            return False
    # `**` stands for at least one segment at the end, and `a/**/**` is no other thing than `a/**`.
    return index == len(pattern)


def _match_segment(segment: list[list[str]], text: str, values: dict[str, str]) -> bool:
    pieces = ["".join(values.get(part, part) for part in piece) for piece in segment]
    if len(pieces) == 1:
        return text == pieces[0]
    first, *middle, last = pieces
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[access]]` table: who may do what, or may not.

    Args:
        number: its place in the configuration, from 1.
        accounts: names of accounts it is for.
        groups: groups it is for.
        authenticated: whether it is for everyone who is logged in.
        everyone: whether it is for everyone, logged in or not.
        repositories: which repositories it is about.
        catalog: whether it is about the catalog.
        actions: which actions on these repositories.
        services: which registries; empty for all.
        networks: from where; empty for anywhere.
        deny: whether it forbids.
    """

    number: int
    accounts: frozenset[str]
    groups: frozenset[str]
    authenticated: bool
    everyone: bool
    repositories: tuple[Glob, ...]
    catalog: bool
    actions: frozenset[str]
    services: frozenset[str]
    networks: tuple[IPNetwork, ...]
    deny: bool

    def actions_on(self, caller: Caller, access: Access) -> frozenset[str]:
        """Return the actions this rule speaks of, for this caller on this resource; empty if it does not apply."""
        if not self._is_for(caller):
            return frozenset()
        if access.is_catalog:
            return CATALOG_ACTIONS if self.catalog else frozenset()
        # Nothing but a name that a registry would take meets a pattern: `team/../other` is no name.
        account = self._as_named(caller.account)
        if access.is_repository and any(glob.matches(access.name, account) for glob in self.repositories):
            return self.actions
        return frozenset()

    def _is_for(self, caller: Caller) -> bool:
        return (
            self._names(caller.account)
            and (not self.services or caller.service in self.services)
            and (not self.networks or self._covers(caller.address))
        )

    def _names(self, account: Account | None) -> bool:
        if self.everyone:
            return True
        if account is None:
            return False
        if account.delegated and not self.deny:
            # A CI job may do what its source grants to jobs; what its user may do besides is not for every job.
            return False
        return (
            self.authenticated
            or account.name in self.accounts
            or any(account.belongs_to(group) for group in self.groups)
        )

    def _as_named(self, account: Account | None) -> Account | None:
        """Leave the account only the groups that the rule names, if it is by them that the rule is for it."""
        if account is None or self.everyone or self.authenticated or account.name in self.accounts:
            return account
        return dataclasses.replace(account, groups=account.groups & self.groups)

    def _covers(self, address: IPAddress | None) -> bool:
        if address is None:
            # Not to be told apart: a denial holds, a permission does not.
            return self.deny
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say of one resource.

    Args:
        allowed: the union of the rules that allow.
        denied: the union of the rules that deny; it wins.
        allowed_by: numbers of the rules that allow something.
        denied_by: numbers of the rules that deny something.
    """

    allowed: frozenset[str]
    denied: frozenset[str]
    allowed_by: tuple[int, ...]
    denied_by: tuple[int, ...]

    def grant(self, access: Access, more: frozenset[str]) -> Access:
        """Return what is granted of what was asked.

        Args:
            access: what was asked; `*` asks for everything there is.
            more: actions that the account source itself allows.
        """
        may = (self.allowed | more) - self.denied
        if "*" in access.actions:
            return Access(access.type, access.name, may)
        return Access(access.type, access.name, may & access.actions)

    @property
    def reason(self) -> str:
        """Which rules decided, for the log."""
        said = [
            f"{verb} by access rule {', '.join(map(str, rules))}"
            for verb, rules in (("allowed", self.allowed_by), ("denied", self.denied_by))
            if rules
        ]
        return " and ".join(said) or "no access rule applies"


class Policy:
    """All access rules. Their order never matters.

    Args:
        rules: the rules.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: Final = tuple(rules)

    def decide(self, caller: Caller, access: Access) -> Decision:
        """Say what the rules allow and deny on a resource, whatever of it was asked."""
        actions: dict[bool, frozenset[str]] = {True: frozenset(), False: frozenset()}
        numbers: dict[bool, list[int]] = {True: [], False: []}
        for rule in self.rules:
            spoken_of = rule.actions_on(caller, access)
            if spoken_of:
                actions[rule.deny] |= spoken_of
                numbers[rule.deny].append(rule.number)
        return Decision(actions[False], actions[True], tuple(numbers[False]), tuple(numbers[True]))
