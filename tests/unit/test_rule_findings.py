"""Names in access rules that nobody has, and what `{account}` stands for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tokenissuer.config import parse_config
from tokenissuer.policy import AccessOptions
from tokenissuer.policy.findings import KnownNames, name_findings, path_findings

FILE = KnownNames({"alice", "ci-1", "Bob@example.com"}, {"Dev", "ops"})
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
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        caplog.clear()
        config.build(before=running)
