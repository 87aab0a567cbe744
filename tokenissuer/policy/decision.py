"""Access rules → allowed actions, and the reason. No clock, no I/O; decisions are remembered, and never change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tokenissuer.policy.rule import Caller, Identity, Rule
from tokenissuer.scope import Access

#: Decisions, and accounts, that are remembered.
_MAX_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say about one resource.

    Args:
        allowed: the union of the rules that allow.
        denied: the union of the rules that deny; it wins.
        allowed_by: the rules that allow something.
        denied_by: the rules that deny something.
    """

    allowed: frozenset[str]
    denied: frozenset[str]
    allowed_by: tuple[Rule, ...]
    denied_by: tuple[Rule, ...]
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
        self._with_patterns: Final = [
            rule for rule in self.rules if rule.accounts.has_patterns or rule.groups.has_patterns
        ]
        for rule in self.rules:
            for name in rule.accounts.exact:
                self._accounts.setdefault(name, []).append(rule)
            for group in rule.groups.exact:
                self._groups.setdefault(group, []).append(rule)
        # By the account object itself, which is kept here: another account may be equal and belong to other groups.
        self._named: Final[dict[int, tuple[Identity, _Index]]] = {}
        self._decisions: Final[dict[object, tuple[Identity | None, Decision]]] = {}

    def decide(self, caller: Caller, access: Access) -> Decision:
        """Say what the rules allow and deny on a resource, whatever of it was requested."""
        account = caller.account
        address = caller.address if self._has_networks else None
        key = (id(account), caller.backend, caller.service, address, access.type, access.name)
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
        rules: dict[bool, dict[int, Rule]] = {True: {}, False: {}}
        for rule in candidates:
            found = rule.actions_on(caller, access)
            if found:
                actions[rule.deny] |= found
                rules[rule.deny][rule.number] = rule
        allowed_by, denied_by = (tuple(rules[deny][number] for number in sorted(rules[deny])) for deny in (False, True))
        return Decision(actions[False], actions[True], allowed_by, denied_by)

    def _rules_naming(self, account: Identity) -> _Index:
        remembered = self._named.get(id(account))
        if remembered is not None and remembered[0] is account:
            return remembered[1]
        rules = dict.fromkeys([*self._accounts.get(account.name, ()), *self._with_patterns])
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
