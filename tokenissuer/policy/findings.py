"""What is wrong with access rules, as far as the rules and the known names tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final

from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.options import near_match
from tokenissuer.policy.pattern import NamePattern, account_path
from tokenissuer.policy.rule import Rule

#: Accounts that are named one by one.
_MAX_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class KnownNames:
    """All accounts and groups of one backend.

    Args:
        accounts: names of the accounts.
        groups: names of the groups.
    """

    accounts: Set[str]
    groups: Set[str]


def name_findings(rules: Iterable[Rule], known: Mapping[str, KnownNames | None]) -> Findings:
    """Report names in rules that nobody has.

    Args:
        rules: the rules.
        known: for each backend its names; None for one that cannot tell: then any name may be there.
    """
    for rule in rules:
        listings = [names for backend, names in known.items() if not rule.backends or backend in rule.backends]
        if any(names is None for names in listings):
            continue
        accounts = frozenset[str]().union(*(names.accounts for names in listings if names))
        groups = frozenset[str]().union(*(names.groups for names in listings if names))
        for key, texts, kind, there in (
            ("accounts", rule.accounts.texts, "account", accounts),
            ("groups", rule.groups.texts, "group", groups),
            ("except_accounts", rule.except_accounts.texts, "account", accounts),
            ("except_groups", rule.except_groups.texts, "group", groups),
        ):
            for text in _unknown(texts, there, folds=kind == "group"):
                yield _nobody(rule, key, kind, text, there)


def path_findings(rules: Iterable[Rule], accounts: Iterable[str]) -> Findings:
    """Name the accounts for which `{account}` stands for something else than their name.

    Args:
        rules: the rules.
        accounts: names of accounts.
    """
    globs = [glob for rule in rules for glob in (*rule.repositories, *rule.except_repositories)]
    if not any("{account}" in glob.text for glob in globs):
        return
    for name in sorted(name for name in accounts if account_path(name) != name)[:_MAX_NAMED]:
        yield Finding(
            Severity.INFO, "[[access]]", f"for the account '{name}', {{account}} stands for '{account_path(name)}'"
        )


def _unknown(texts: Iterable[str], there: Set[str], *, folds: bool) -> Iterator[str]:
    # Rules compare groups without regard to capitals.
    names = {name.casefold() for name in there} if folds else there
    for text in sorted(texts):
        wanted = text.casefold() if folds else text
        pattern = NamePattern(wanted)
        if wanted not in names and not ("*" in wanted and any(pattern.matches(name) for name in names)):
            yield text


def _nobody(rule: Rule, key: str, kind: str, text: str, there: Set[str]) -> Finding:
    # An exception that does not exist makes a denial hold for all, which is what it says.
    what = "the denial protects nothing" if rule.deny else "it allows nobody anything"
    if key.startswith("except_"):
        what = "the exception is for nobody"
    return Finding(
        Severity.WARNING,
        f"[[access]] {rule.number}",
        f"'{key}' names '{text}', and there is no such {kind}: {what}",
        f"correct the name, or take it out ({near_match(text, there)})" if there else "correct the name",
    )
