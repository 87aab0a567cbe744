"""Why an action is allowed or not, in words. It asks the rules themselves, as a decision does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tokenissuer.policy.decision import Policy
from tokenissuer.policy.rule import CATALOG_ACTIONS, REPOSITORY_ACTIONS, WHO, Caller, Names, Rule
from tokenissuer.scope import Access

#: Rules that are named because they nearly apply.
MAX_NEAREST: Final = 3


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A rule that would allow an action, and why it does not apply.

    Args:
        rule: the rule.
        reasons: what it wants and what is there instead, one sentence each.
    """

    rule: Rule
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of one action on one resource, and why.

    Args:
        action: the action.
        is_granted: whether a token says it.
        allowed_by: the rules that allow it.
        denied_by: the rules that deny it; one suffices.
        by_backend: whether the backend grants it.
        nearest: if nothing allows it, the rules that come nearest.
    """

    action: str
    is_granted: bool
    allowed_by: tuple[Rule, ...]
    denied_by: tuple[Rule, ...]
    by_backend: bool
    nearest: tuple[Obstacle, ...]


def explain(
    policy: Policy, caller: Caller, access: Access, backend_grants: frozenset[str] = frozenset()
) -> tuple[Explanation, ...]:
    """Explain what becomes of each action that is requested; `*` stands for all.

    Args:
        policy: the rules.
        caller: who asks.
        access: what is requested.
        backend_grants: what the backend grants.
    """
    decision = policy.decide(caller, access)
    granted = decision.grant(access, backend_grants).actions
    possible = CATALOG_ACTIONS if access.is_catalog else REPOSITORY_ACTIONS
    actions = access.actions - {"*"} | (possible if "*" in access.actions else frozenset())
    return tuple(
        Explanation(
            action,
            action in granted,
            tuple(rule for rule in decision.allowed_by if action in rule.actions_on(caller, access)),
            tuple(rule for rule in decision.denied_by if action in rule.actions_on(caller, access)),
            action in backend_grants,
            () if action in decision.allowed | backend_grants else _nearest(policy.rules, caller, access, action),
        )
        for action in sorted(actions)
    )


def _nearest(rules: Iterable[Rule], caller: Caller, access: Access, action: str) -> tuple[Obstacle, ...]:
    found = []
    for rule in rules:
        could_allow = rule.catalog and action in CATALOG_ACTIONS if access.is_catalog else action in rule.actions
        if rule.deny or not could_allow:
            continue
        reasons = tuple(_REASONS[key](rule, caller, access) for key in rule.obstacles(caller, access))
        found.append(Obstacle(rule, reasons))
    found.sort(key=lambda obstacle: (len(obstacle.reasons), obstacle.rule.number))
    fewest = len(found[0].reasons) if found else 0
    return tuple(obstacle for obstacle in found if len(obstacle.reasons) == fewest)[:MAX_NEAREST]


def _who(rule: Rule, caller: Caller, access: Access) -> str:
    account = caller.account
    if account is None:
        return f"it is only for who is logged in ({_meant(rule)})"
    if account.delegated:
        return "no rule that allows something is for a credential that was made for one purpose, such as a CI job's"
    groups = "its groups are not known" if not account.groups_known else f"its groups are {_list(account.groups)}"
    return f"it is for {_meant(rule)}; the account is '{account.name}', {groups}"


def _meant(rule: Rule) -> str:
    parts = [f"{kind} {_list(names.texts)}" for kind, names in _names(rule).items() if names]
    return " or ".join(parts) or "everyone who is logged in"


def _names(rule: Rule) -> Mapping[str, Names]:
    return {"the accounts": rule.accounts, "the groups": rule.groups}


def _except_groups(rule: Rule, caller: Caller, access: Access) -> str:
    if caller.account is not None and not caller.account.groups_known:
        return f"'except_groups' has {_list(rule.except_groups.texts)}, and the groups of the account are not known"
    return f"the account is in one of its 'except_groups' ({_list(rule.except_groups.texts)})"


def _patterns(rule: Rule, caller: Caller, access: Access) -> str:
    patterns = _list(glob.text for glob in rule.repositories) if rule.repositories else "none"
    if access.is_catalog or access.is_repository:
        return f"its 'repositories' ({patterns}) do not match {access.name}"
    return f"{access.name} is not a name that a registry accepts"


_REASONS: Final[Mapping[str, Callable[[Rule, Caller, Access], str]]] = {
    WHO: _who,
    "except_accounts": lambda rule, caller, access: (
        f"the account is one of its 'except_accounts' ({_list(rule.except_accounts.texts)})"
    ),
    "except_groups": _except_groups,
    "services": lambda rule, caller, access: (
        f"its 'services' are {_list(rule.services)}; the request is for '{caller.service}'"
    ),
    "backends": lambda rule, caller, access: (
        f"its 'backends' are {_list(rule.backends)}; the account's is '{caller.backend}'"
    ),
    "networks": lambda rule, caller, access: (
        f"its 'networks' are {_list(map(str, rule.networks))}; the address is {caller.address or 'not known'}"
    ),
    "catalog": lambda rule, caller, access: "it is not about the catalog",
    "repositories": _patterns,
    "except_repositories": lambda rule, caller, access: (
        f"its 'except_repositories' ({_list(glob.text for glob in rule.except_repositories)}) match {access.name}"
    ),
}


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
