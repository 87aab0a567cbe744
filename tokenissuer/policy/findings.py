"""What is wrong with access rules, as far as the rules and the known names tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, Protocol

from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.options import near_match
from tokenissuer.policy.pattern import NamePattern, account_path, fold
from tokenissuer.policy.rule import Rule
from tokenissuer.scope import Access

#: Accounts that are named one by one.
_MAX_NAMED: Final = 20


class KnownNames(Protocol):
    """All accounts and groups of one backend: a `Listing`."""

    @property
    def accounts(self) -> frozenset[str]:
        """Names of the accounts."""

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups."""


def rule_findings(rules: Sequence[Rule]) -> Findings:
    """Report rules that do nothing, or more than people mean."""
    for rule in rules:
        subject = f"[[access]] {rule.number}"
        for glob in (*rule.repositories, *rule.except_repositories):
            if not _can_match(glob.text):
                yield Finding(
                    Severity.WARNING,
                    subject,
                    f"no repository can have a name that the pattern '{glob.text}' matches",
                    "the parts of a name begin and end with a letter or digit",
                )
        if reason := _emptied(rule):
            yield Finding(Severity.WARNING, subject, f"{reason}, so the rule never applies", "correct the exception")
        if rule.deny:
            continue
        for fact, remedy in _excesses(rule):
            yield Finding(Severity.WARNING, subject, fact, remedy)
        shadow = next((other for other in rules if other.deny and _covers(other, rule)), None)
        if shadow is not None:
            yield Finding(
                Severity.WARNING,
                subject,
                f"[[access]] {shadow.number} denies all that it allows",
                "take one of them out, or make the denial narrower",
            )


def _excesses(rule: Rule) -> Iterator[tuple[str, str]]:
    """Say what a rule allows that people seldom mean, and what to write in its place."""
    log_in = "use authenticated = true if that is not intended"
    if "push" in rule.actions and "pull" not in rule.actions:
        yield (
            "it allows push without pull, and a registry accepts a push only with both",
            'use actions = ["pull", "push"]',
        )
    if rule.everyone and rule.actions & {"push", "delete"}:
        yield "anybody may push or delete without logging in", log_in
    if rule.everyone and rule.catalog:
        yield "anybody may list all repositories without logging in", log_in
    if rule.everyone and (rule.except_accounts or rule.except_groups):
        yield (
            "who is excepted may do the same without logging in",
            'use authenticated = true, or a rule with effect = "deny"',
        )


def _can_match(pattern: str) -> bool:
    """Whether a registry accepts some name that a pattern matches, as far as a few examples tell."""
    examples = (
        pattern.replace("{account}", "x").replace("{group}", "x").replace("**", "x").replace("*", star)
        for star in ("x", "", "x-x")
    )
    return any(Access("repository", example, frozenset()).is_repository for example in examples)


def _emptied(rule: Rule) -> str:
    """Say how a rule's exceptions take out everything; empty if they do not."""
    repositories = [glob.text for glob in rule.repositories]
    excepted = [glob.text for glob in rule.except_repositories]
    if repositories and not rule.catalog and all(any(_includes(e, r) for e in excepted) for r in repositories):
        return "'except_repositories' take out all its 'repositories'"
    is_named = not (rule.everyone or rule.authenticated)
    if is_named and rule.accounts.texts <= rule.except_accounts.texts and rule.groups.texts <= rule.except_groups.texts:
        return "'except_accounts' and 'except_groups' take out everybody that it names"
    return ""


def _covers(denial: Rule, rule: Rule) -> bool:
    """Whether a denial surely takes away all that a rule allows."""
    has_exceptions = denial.except_accounts or denial.except_groups or denial.except_repositories
    if has_exceptions or denial.networks or denial.backends:
        return False
    if denial.services and not (rule.services and rule.services <= denial.services):
        return False
    is_named = not (rule.everyone or rule.authenticated)
    covers_who = (
        denial.everyone
        or (denial.authenticated and not rule.everyone)
        or (
            is_named
            and rule.accounts.texts <= denial.accounts.texts
            and set(map(fold, rule.groups.texts)) <= set(map(fold, denial.groups.texts))
        )
    )
    covers_what = all(
        any(_includes(other.text, glob.text) for other in denial.repositories) for glob in rule.repositories
    )
    return covers_who and covers_what and rule.actions <= denial.actions and (denial.catalog or not rule.catalog)


def _includes(wide: str, narrow: str) -> bool:
    """Whether a pattern surely matches all names that another one matches."""
    return wide in ("**", narrow) or (wide.endswith("/**") and "*" not in wide[:-3] and narrow.startswith(wide[:-2]))


def allowance_findings(rules: Iterable[Rule], *, may_grant: bool) -> Findings:
    """Report that nobody can pull or push anything.

    Args:
        rules: the rules.
        may_grant: whether some backend allows actions itself.
    """
    if not may_grant and all(rule.deny for rule in rules):
        yield Finding(
            Severity.WARNING,
            "[[access]]",
            "no rule allows anything, and no backend grants anything itself: nobody can pull or push",
            'add a rule: authenticated = true, repositories = ["{account}/**"], actions = ["pull", "push"]',
        )


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
    names = set(map(fold, there)) if folds else there
    for text in sorted(texts):
        wanted = fold(text) if folds else text
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
