"""Names in access rules that nobody has, and what `{account}` stands for."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rules import ASKED, CALLERS, RULES
from tokenissuer.accounts.backend import Listing
from tokenissuer.config import parse_config
from tokenissuer.policy import AccessOptions, Caller, Policy, Rule
from tokenissuer.policy.findings import allowance_findings, name_findings, path_findings, rule_findings
from tokenissuer.scope import Access

FILE = Listing(frozenset({"alice", "ci-1", "Bob@example.com"}), frozenset({"Dev", "ops"}))
SHA = "{SHA}nU4eI71bcnBGqeO0t9tXvY1u5oQ="  # pass


def options(**keys: Any) -> AccessOptions:
    return AccessOptions(**{"repositories": ("**",), "actions": frozenset({"pull"}), **keys})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"accounts": {"alice"}}, None),
        (
            {"accounts": {"alicia"}},
            "'accounts' names 'alicia', and there is no such account: it allows nobody",
        ),
        ({"accounts": {"alicia"}, "effect": "deny"}, "no such account: the denial protects nothing"),
        ({"groups": {"dev"}}, None),
        ({"groups": {"dve"}, "effect": "deny"}, "no such group: the denial protects nothing"),
        ({"accounts": {"ci-*"}}, None),
        ({"accounts": {"robot-*"}}, "no such account"),
        ({"groups": {"D*"}}, None),
        (
            {"authenticated": True, "except_groups": {"interns"}},
            "'except_groups' names 'interns', and there",
        ),
        ({"authenticated": True, "except_accounts": {"alicia"}}, "did you mean 'alice'?"),
        ({"everyone": True}, None),
    ],
)
def test_a_name_that_nobody_has_is_named(keys: dict[str, Any], says: str | None) -> None:
    """A denial for a group that nobody has protects nothing."""
    found = [str(finding) for finding in name_findings([options(**keys).rule(1)], {"file": FILE})]
    assert len(found) == (says is not None)
    assert all(says in text for text in found if says)


def test_a_backend_that_cannot_tell_may_know_any_name() -> None:
    """But not for a rule that is for another backend's accounts."""
    known = {"file": FILE, "ldap": None}
    assert not list(name_findings([options(groups={"interns"}).rule(1)], known))
    assert list(name_findings([options(groups={"interns"}, backends={"file"}).rule(1)], known))
    assert not list(name_findings([options(groups={"interns"}, backends={"ldap"}).rule(1)], known))


def test_a_set_up_that_allows_nothing_is_named() -> None:
    """A denial allows nothing."""
    denial, allowance = options(everyone=True, effect="deny").rule(1), options(everyone=True).rule(2)
    assert list(allowance_findings([], may_grant=False))
    assert list(allowance_findings([denial], may_grant=False))
    assert not list(allowance_findings([denial], may_grant=True))
    assert not list(allowance_findings([denial, allowance], may_grant=False))


def test_what_account_stands_for_is_said_where_it_is_not_the_name() -> None:
    """Only where a rule has it."""
    (finding,) = path_findings([options(everyone=True, repositories=("{account}/**",)).rule(1)], FILE.accounts)
    assert "'Bob@example.com'" in finding.fact
    assert "'bob__at_example.com__cap1'" in finding.fact
    assert not list(path_findings([options(everyone=True).rule(1)], FILE.accounts))


def test_start_and_reload_say_it(set_up: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, with the accounts that cannot log in."""
    (set_up / "users.htpasswd").write_text(f"alice:{SHA}\nbob:damaged\n")
    config = parse_config(
        {
            "issuer": {"name": "i", "services": ["s"], "realm": "https://auth.example.com/token"},
            "signing": {"key": "auth.key", "certificate": "auth.crt"},
            "backends": [{"type": "htpasswd", "path": "users.htpasswd"}],
            "access": [{"accounts": ["mallory"], "repositories": ["**"], "actions": ["pull"], "effect": "deny"}],
        },
        set_up,
    )
    running = config.build()
    for _ in range(2):
        assert "backend 'htpasswd': the account 'bob' cannot log in: " in caplog.text
        assert "[[access]] 1: 'accounts' names 'mallory', and there is no such account: the denial" in caplog.text
        assert "[[access]]: no rule allows anything, and no backend grants anything itself" in caplog.text
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        caplog.clear()
        config.build(before=running)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ([{"authenticated": True}], None),
        ([{"authenticated": True, "repositories": ("team/-x",)}], "no repository can have a name"),
        ([{"authenticated": True, "repositories": ("team/_*",)}], "no repository can have a name"),
        ([{"authenticated": True, "repositories": ("a..b/**",)}], "no repository can have a name"),
        ([{"authenticated": True, "repositories": ("a-*", "*-a", "a.*.b", "{account}-{group}", "h:5000/a")}], None),
        ([{"authenticated": True, "actions": {"push"}}], "push without pull"),
        ([{"everyone": True, "actions": {"pull", "push"}}], "anybody may push"),
        ([{"everyone": True, "catalog": True}], "anybody may list all repositories"),
        ([{"everyone": True, "except_accounts": {"a"}}], "may do the same without logging in"),
        ([{"accounts": {"a"}, "except_accounts": {"a"}}], "take out everybody that it names"),
        ([{"accounts": {"a", "b"}, "except_accounts": {"a"}}], None),
        ([{"authenticated": True, "except_repositories": ("**",)}], "take out all its 'repositories'"),
        (
            [{"authenticated": True, "repositories": ("a/b",), "except_repositories": ("a/**",)}],
            "take out all its 'repositories'",
        ),
        ([{"authenticated": True}, {"everyone": True, "effect": "deny"}], "[[access]] 2 denies all that it allows"),
        ([{"authenticated": True}, {"everyone": True, "effect": "deny", "repositories": ("a/**",)}], None),
        ([{"authenticated": True, "actions": {"*"}}, {"everyone": True, "effect": "deny"}], None),
        ([{"everyone": True}, {"authenticated": True, "effect": "deny"}], None),
        ([{"accounts": {"a"}}, {"accounts": {"a", "b"}, "effect": "deny"}], "denies all"),
        ([{"groups": {"DEV"}}, {"groups": {"dev"}, "effect": "deny"}], "denies all"),
        ([{"accounts": {"a"}}, {"authenticated": True, "effect": "deny", "except_accounts": {"a"}}], None),
        ([{"authenticated": True}, {"everyone": True, "effect": "deny", "networks": ("10.0.0.0/8",)}], None),
        (
            [
                {"authenticated": True, "repositories": ("a/b/**",)},
                {"everyone": True, "effect": "deny", "repositories": ("a/**",)},
            ],
            "denies all",
        ),
    ],
)
def test_a_rule_that_does_nothing_or_too_much_is_named(tables: list[dict[str, Any]], says: str | None) -> None:
    """And no other."""
    rules = [options(**table).rule(number) for number, table in enumerate(tables, 1)]
    found = [str(finding) for finding in rule_findings(rules)]
    assert len(found) == (says is not None), found
    assert all(says in text for text in found if says)


@settings(deadline=None, max_examples=200)
@given(st.lists(RULES, min_size=2, max_size=4), CALLERS, ASKED)
def test_a_rule_that_is_said_to_be_taken_away_allows_nothing(rules: list[Rule], caller: Caller, access: Access) -> None:
    """For generated rules."""
    numbered = [replace(one, number=number) for number, one in enumerate(rules, 1)]
    for finding in rule_findings(numbered):
        number = int(finding.subject.rpartition(" ")[2])
        if "denies all" in finding.fact:
            others = [one for one in numbered if one.number == number or one.deny]
            assert not Policy(others).decide(caller, access).grant(access, frozenset()).actions
        if "never applies" in finding.fact:
            assert not numbered[number - 1].actions_on(caller, access)
