"""Access rules → allowed actions, and the reason. Pure: no clock, no I/O, no state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from tokenissuer.net import IPAddress, IPNetwork, parse_network
from tokenissuer.options import near_match, option
from tokenissuer.scope import Access

#: What can be done to a repository. A token never says `*` for one: some registries take it for a word.
REPOSITORY_ACTIONS: Final = frozenset({"pull", "push", "delete"})
#: What can be done to the catalog; here registries do ask for `*`.
CATALOG_ACTIONS: Final = frozenset({"*"})

#: Decisions, and accounts, that are remembered.
_MAX_REMEMBERED: Final = 10_000

_PLACEHOLDER: Final = re.compile(r"(\{account\}|\{group\})")
_LITERAL: Final = re.compile(r"[a-z0-9._:-]*", re.ASCII)


class Identity(Protocol):
    """Who is logged in, as far as access rules look: an `Account`."""

    @property
    def name(self) -> str:
        """The account's name."""

    @property
    def groups(self) -> frozenset[str]:
        """The names that `{group}` stands for."""

    @property
    def groups_known(self) -> bool:
        """Whether its groups could be found out; if not, denials for groups apply to it."""

    @property
    def delegated(self) -> bool:
        """Whether rules that allow something do not apply, because the credential was made for one purpose."""

    def group_named(self, text: str) -> str | None:
        """Return the name of its group that an access rule means; empty if the name is not certain; None if none."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends the request.

    Args:
        account: None if nobody is logged in.
        service: the registry that the token is for.
        address: the client's address; None if it is unknown.
        backend: the name of the backend that vouches for the account.
    """

    account: Identity | None
    service: str
    address: IPAddress | None
    backend: str = ""


class Glob:
    """A pattern for repository names.

    `*` stands for any characters within a path segment. `**`, alone between slashes, stands for any number of
    segments; at the end for at least one, so that `team/**` is everything below `team`. `{account}` and `{group}` stand
    for the caller's name and groups, letter by letter, never for a pattern; a group `a/b` is two segments. Matching
    takes linear time.

    Raises:
        ValueError: if the text is not such a pattern; it says why.
    """

    def __init__(self, text: str) -> None:
        self.text: Final = text
        if not text:
            raise ValueError("a repository pattern is empty; use '**' for every repository")
        self._segments: Final = [_parse_segment(segment, text) for segment in text.split("/")]
        self._has_placeholder: Final = _PLACEHOLDER.search(text) is not None
        #: Whether `{group}` is in it.
        self.names_groups: Final = "{group}" in text
        self._without_values: Final = _filled(self._segments, {})
        self._with_any_group: Final = Glob(text.replace("{group}", "*")) if self.names_groups else self

    @property
    def first_segment(self) -> str:
        """The first segment of every name that matches; empty if it can be different ones."""
        first = self._segments[0]
        if first is None or len(first) > 1 or _PLACEHOLDER.search(self.text.partition("/")[0]):
            return ""
        return "".join(first[0])

    def matches(self, name: str, account: Identity | None, groups: Iterable[str]) -> bool:
        """Whether the name matches this pattern.

        Args:
            name: the repository's name.
            account: the caller's account, if any.
            groups: the names that `{group}` may stand for; an empty one for a name that nobody knows.
        """
        segments = name.split("/")
        if not self._has_placeholder:
            return _match_segments(self._without_values, segments)
        # A name with a slash is not one segment, and may not stand for the repositories below somebody else's name.
        if account is None or ("{account}" in self.text and "/" in account.name):
            return False
        if not self.names_groups:
            return _match_segments(_filled(self._segments, {"{account}": account.name}), segments)
        return any(
            _match_segments(_filled(self._segments, {"{account}": account.name, "{group}": group}), segments)
            if group
            else self._with_any_group.matches(name, account, ())
            for group in groups
        )

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
                    f"the repository pattern '{text}' has '{part}' in it; use the characters of repository names "
                    "(a-z 0-9 . _ - : /), and *, **, {account} and {group}"
                )
        pieces.append(parts)
    return pieces


# The same with texts for the placeholders.
_Filled = list[str] | None


def _filled(segments: Iterable[_Segment], values: Mapping[str, str]) -> Sequence[_Filled]:
    """Put values in the places of placeholders. A slash in a value ends a segment."""
    filled: list[_Filled] = []
    for segment in segments:
        if segment is None:
            filled.append(None)
            continue
        pieces: list[str] = []
        filled.append(pieces)
        for piece in segment:
            first, *more = "".join(values.get(part, part) for part in piece).split("/")
            pieces.append(first)
            for text in more:
                pieces = [text]
                filled.append(pieces)
    return filled


def _match_segments(pattern: Sequence[_Filled], names: Sequence[str]) -> bool:
    """Match greedily. Where a `**` can end in several places the first is enough: what follows it, up to the next
    `**`, takes the same number of segments wherever it begins."""
    position, star, resume = 0, -1, 0
    index = 0
    while position < len(names):
        if index < len(pattern) and (segment := pattern[index]) is None:
            if index == len(pattern) - 1:
                return True
            star, resume = index, position
            index += 1
        elif index < len(pattern) and segment is not None and _match_segment(segment, names[position]):
            index, position = index + 1, position + 1
        elif star >= 0:
            resume += 1
            index, position = star + 1, resume
        else:
            return False
    # `**` stands for at least one segment at the end, and `a/**/**` is the same as `a/**`.
    return index == len(pattern)


def _match_segment(pieces: list[str], text: str) -> bool:
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
        accounts: names of accounts it applies to.
        groups: groups it applies to.
        authenticated: whether it applies to everyone who is logged in.
        everyone: whether it applies to everyone, logged in or not.
        repositories: patterns of repository names.
        catalog: whether it is about the catalog.
        actions: the actions on these repositories.
        services: only for these registries; empty for all.
        networks: only from these networks; empty for anywhere.
        deny: whether it takes actions away.
        backends: only for accounts of these backends; empty for all.
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
    backends: frozenset[str] = frozenset()

    def actions_on(self, caller: Caller, access: Access) -> frozenset[str]:
        """Return the actions that this rule allows or denies the caller on a resource; empty if it does not apply."""
        if not self._applies_to(caller):
            return frozenset()
        if access.is_catalog:
            return CATALOG_ACTIONS if self.catalog else frozenset()
        # Only a name that a registry accepts is compared with patterns: `team/../other` is not one.
        if not access.is_repository:
            return frozenset()
        groups = self._groups_of(caller.account)
        if any(glob.matches(access.name, caller.account, groups) for glob in self.repositories):
            return self.actions
        return frozenset()

    def _applies_to(self, caller: Caller) -> bool:
        return (
            self._names(caller.account)
            and (not self.services or caller.service in self.services)
            and (not self.backends or caller.backend in self.backends)
            and (not self.networks or self._covers(caller.address))
        )

    def _names(self, account: Identity | None) -> bool:
        if self.everyone:
            return True
        if account is None:
            return False
        if account.delegated and not self.deny:
            # A CI job may do what its backend grants to jobs; what else its user may do is not for every job.
            return False
        return (
            self.authenticated
            or account.name in self.accounts
            or (self.deny and bool(self.groups) and not account.groups_known)
            or any(account.group_named(group) is not None for group in self.groups)
        )

    @property
    def needs_all_groups(self) -> bool:
        """Whether `{group}` may stand for groups that the rule does not name."""
        is_for_others = self.everyone or self.authenticated or bool(self.accounts)
        return is_for_others and any(glob.names_groups for glob in self.repositories)

    def _groups_of(self, account: Identity | None) -> frozenset[str]:
        """Return what `{group}` stands for: if only its groups make the rule apply, then only the groups it names.

        An unknown name is there for a denial, which then applies whatever the name is.
        """
        if account is None:
            return frozenset()
        if self.everyone or self.authenticated or account.name in self.accounts:
            names = account.groups
        else:
            found = (account.group_named(group) for group in self.groups)
            names = frozenset(name for name in found if name is not None)
        if not self.deny:
            return names - {""}
        return names if account.groups_known else names | {""}

    def _covers(self, address: IPAddress | None) -> bool:
        if address is None:
            # Unknown: a denial applies, a permission does not.
            return self.deny
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """One `[[access]]` table."""

    accounts: frozenset[str] = option("accounts the rule applies to", default=frozenset())
    groups: frozenset[str] = option("groups the rule applies to", default=frozenset())
    authenticated: bool = option("true: it applies to everyone who is logged in", default=False)
    everyone: bool = option("true: it applies to everyone, logged in or not", default=False)
    repositories: tuple[str, ...] = option("patterns of repository names: `*`, `**`, {account}, {group}", default=())
    catalog: bool = option("true: it is about the list of all repositories", default=False)
    actions: frozenset[str] = option("'pull', 'push', 'delete', or '*' for all three", default=frozenset())
    services: frozenset[str] | None = option("only for these registries (default: for all)", default=None)
    backends: frozenset[str] | None = option("only for accounts of these backends (default: of all)", default=None)
    networks: tuple[str, ...] | None = option(
        "only from these addresses or networks (default: from anywhere)", default=None
    )
    effect: Literal["allow", "deny"] = option("'deny' takes away, whatever other rules allow", default="allow")

    def __post_init__(self) -> None:
        if not (self.accounts or self.groups or self.authenticated or self.everyone):
            raise ValueError(
                "the rule applies to nobody; add accounts, groups, authenticated = true or everyone = true"
            )
        if not self.repositories and not self.catalog:
            raise ValueError("the rule names no resource; add repositories or catalog = true")
        if self.repositories and not self.actions:
            raise ValueError("the key 'actions' is missing; use for example actions = [\"pull\"]")
        if self.actions and not self.repositories:
            raise ValueError("'actions' needs 'repositories'; the catalog needs no actions")
        if self.backends and self.everyone:
            raise ValueError(
                "'backends' is for accounts, and everyone = true for who has none; use authenticated = true"
            )
        for key, names in (("accounts", self.accounts), ("groups", self.groups)):
            if "" in names:
                raise ValueError(f"'{key}' has an empty name, which is nobody's; take it out")
        for key, values in (("services", self.services), ("backends", self.backends), ("networks", self.networks)):
            if values is not None and not values:
                raise ValueError(f"'{key}' is empty, so the rule would never apply; name some, or leave the key out")
        for action in self.actions - REPOSITORY_ACTIONS - {"*"}:
            raise ValueError(f"unknown action '{action}'; {near_match(action, REPOSITORY_ACTIONS)}")

    def rule(self, number: int) -> Rule:
        """Build the rule.

        Raises:
            ValueError: if a pattern or network cannot be understood.
        """
        return Rule(
            number=number,
            accounts=self.accounts,
            groups=self.groups,
            authenticated=self.authenticated,
            everyone=self.everyone,
            repositories=tuple(Glob(text) for text in self.repositories),
            catalog=self.catalog,
            actions=REPOSITORY_ACTIONS if "*" in self.actions else self.actions,
            services=self.services or frozenset(),
            backends=self.backends or frozenset(),
            networks=tuple(parse_network(text) for text in self.networks or ()),
            deny=self.effect == "deny",
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say about one resource.

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
    #: Which rules decided, for the log. Made once: decisions are remembered.
    reason: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = [
            f"{verb} by access rule {', '.join(map(str, rules))}"
            for verb, rules in (("allowed", self.allowed_by), ("denied", self.denied_by))
            if rules
        ]
        object.__setattr__(self, "reason", " and ".join(parts) or "no access rule applies")

    def grant(self, access: Access, more: frozenset[str]) -> Access:
        """Return what is granted of what was requested.

        Args:
            access: what was requested; `*` requests everything.
            more: actions that the backend grants.
        """
        may = (self.allowed | more) - self.denied
        if access.actions <= may and "*" not in access.actions:
            return access
        return Access(access.type, access.name, may if "*" in access.actions else may & access.actions)


class _Index:
    """Rules by the first segment of the repositories they are about."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._by_segment: Final[dict[str, list[Rule]]] = {}
        self._catalog: Final[list[Rule]] = []
        for rule in rules:
            for segment in dict.fromkeys(glob.first_segment for glob in rule.repositories):
                self._by_segment.setdefault(segment, []).append(rule)
            if rule.catalog:
                self._catalog.append(rule)

    def about(self, access: Access) -> Iterable[Rule]:
        """Return the rules that may be about a resource; a rule may be there twice."""
        if access.is_catalog:
            return self._catalog
        segment = access.name.partition("/")[0]
        return [*self._by_segment.get(segment, ()), *self._by_segment.get("", ())]


class Policy:
    """All access rules. Their order never matters.

    Args:
        rules: the rules.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: Final = tuple(rules)
        self._has_networks: Final = any(rule.networks for rule in self.rules)
        self._everyone: Final = _Index(rule for rule in self.rules if rule.everyone)
        self._authenticated: Final = _Index(rule for rule in self.rules if rule.authenticated)
        self._accounts: Final[dict[str, list[Rule]]] = {}
        self._groups: Final[dict[str, list[Rule]]] = {}
        for rule in self.rules:
            for name in rule.accounts:
                self._accounts.setdefault(name, []).append(rule)
            for group in rule.groups:
                self._groups.setdefault(group, []).append(rule)
        # By the account object itself, which is kept here: another account may be equal and belong to other groups.
        self._named: Final[dict[int, tuple[Identity, _Index]]] = {}
        self._decisions: Final[dict[object, tuple[Identity | None, Decision]]] = {}

    def decide(self, caller: Caller, access: Access) -> Decision:
        """Say what the rules allow and deny on a resource, whatever of it was requested."""
        account = caller.account
        address = caller.address if self._has_networks else None
        key = (id(account), caller.service, address, access.type, access.name)
        remembered = self._decisions.get(key)
        if remembered is not None and remembered[0] is account:
            return remembered[1]
        decision = self._decide(caller, access)
        _remember(self._decisions, key, (account, decision))
        return decision

    def _decide(self, caller: Caller, access: Access) -> Decision:
        candidates = [*self._everyone.about(access)]
        if caller.account is not None:
            candidates += [*self._authenticated.about(access), *self._rules_naming(caller.account).about(access)]
        actions: dict[bool, frozenset[str]] = {True: frozenset(), False: frozenset()}
        numbers: dict[bool, set[int]] = {True: set(), False: set()}
        for rule in candidates:
            found = rule.actions_on(caller, access)
            if found:
                actions[rule.deny] |= found
                numbers[rule.deny].add(rule.number)
        allowed_by, denied_by = (tuple(sorted(numbers[deny])) for deny in (False, True))
        return Decision(actions[False], actions[True], allowed_by, denied_by)

    def _rules_naming(self, account: Identity) -> _Index:
        remembered = self._named.get(id(account))
        if remembered is not None and remembered[0] is account:
            return remembered[1]
        rules = dict.fromkeys(self._accounts.get(account.name, ()))
        for group, more in self._groups.items():
            if not account.groups_known or account.group_named(group) is not None:
                rules.update(dict.fromkeys(more))
        index = _Index(rules)
        _remember(self._named, id(account), (account, index))
        return index


def _remember(kept: dict[Any, Any], key: object, value: object) -> None:
    if len(kept) >= _MAX_REMEMBERED:
        # Rare: one account on so many repositories. What is needed again is soon there again.
        kept.clear()
    kept[key] = value
