"""`explain` says what a decision does, and why."""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cli import Run, failed, misused
from tests.support.rules import ASKED, CALLERS, RULES
from tokenissuer.config import load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.policy import Caller, Policy, Rule
from tokenissuer.policy.explanation import explain
from tokenissuer.scope import Access
from tokenissuer.signing.keys import KeyForm, KeyType, SigningKey, generate_private_key, self_signed_certificate

ACCESS = """
[[access]]
groups = ["dev"]
repositories = ["team/**"]
except_repositories = ["team/secret/**"]
networks = ["10.0.0.0/8"]
actions = ["pull", "push"]
comment = "the developers"

[[access]]
authenticated = true
except_accounts = ["root"]
repositories = ["prod/**"]
actions = ["push"]
effect = "deny"
"""
GRANTS = st.frozensets(st.sampled_from(["pull", "push", "delete"]))


@settings(deadline=None, max_examples=400)
@given(st.lists(RULES, max_size=5), CALLERS, ASKED, GRANTS)
def test_an_explanation_says_what_the_decision_is(
    rules: list[Rule], caller: Caller, access: Access, more: frozenset[str]
) -> None:
    """Action by action; each rule named for it does that alone, and each that is nearest does not apply."""
    numbered = [replace(one, number=number) for number, one in enumerate(rules, 1)]
    policy = Policy(numbered)
    # Backends are asked about repositories only.
    more = more if access.is_repository else frozenset()
    granted = policy.decide(caller, access).grant(access, more).actions
    explained = explain(policy, caller, access, more)
    assert {each.action for each in explained if each.is_granted} == granted & {each.action for each in explained}
    assert granted <= {each.action for each in explained}
    for each in explained:
        assert each.is_granted is ((bool(each.allowed_by) or each.by_backend) and not each.denied_by)
        for one in each.allowed_by:
            assert each.action in Policy([one]).decide(caller, access).allowed
        for one in each.denied_by:
            assert each.action in Policy([one]).decide(caller, access).denied
        for obstacle in each.nearest:
            assert obstacle.reasons
            assert each.action not in Policy([obstacle.rule]).decide(caller, access).allowed


@pytest.fixture
def config(set_up: Path) -> Path:
    """A set-up with rules to explain."""
    path = set_up / "tokenissuer.toml"
    path.write_text(path.read_text() + ACCESS)
    return path


def line_of(path: Path, text: str) -> int:
    """The line of the rule's header above a text."""
    lines = path.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if text in line)
    return max(number for number, line in enumerate(lines[:place], 1) if line == "[[access]]")


def test_a_grant_names_file_and_line(run: Run, config: Path) -> None:
    """And the comment."""
    code, out, _ = run(
        "explain", "--account", "bob", "--group", "dev", "--address", "10.1.1.1", "repository:team/app:pull,push",
        "--config", config,
    )  # fmt: skip
    assert code == 0
    place = f"{config}:{line_of(config, 'the developers')}, [[access]] 2 (the developers)"
    assert out.splitlines() == [
        "repository:team/app, account 'bob' of backend 'htpasswd', groups: dev",
        f"  pull    granted     {place} allows it",
        f"  push    granted     {place} allows it",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--account", "bob", "--group", "dev", "repository:team/app:push"],
            "'networks' are 10.0.0.0/8; the address is",
        ),
        (
            ["--account", "bob", "--group", "dev", "--address", "10.1.1.1", "repository:team/secret/x:push"],
            "its 'except_repositories' (team/secret/**) match team/secret/x",
        ),
        (["--account", "bob", "--address", "10.1.1.1", "repository:team/app:push"], "its groups are none"),
        (["--account", "bob", "--group", "dev", "--address", "10.1.1.1", "repository:x/y:push"], "do not match x/y"),
        (["--account", "bob", "repository:prod/x:push"], "denies it"),
        (["repository:team/app:push"], "it is only for who is logged in"),
        (["registry:catalog:*"], "nothing allows it, and no rule could"),
    ],
)
def test_a_refusal_names_the_condition(run: Run, config: Path, arguments: list[str], says: str) -> None:
    """Exit status 1, for scripts."""
    code, out, err = run("explain", *arguments, "--config", config)
    assert (code, err) == (1, "")
    assert says in out


def test_a_backend_finds_the_real_account(run: Run, config: Path) -> None:
    """Its groups and its own spelling; an account that it does not know is an error."""
    config.write_text(
        config.read_text().replace('path = "users.htpasswd"', 'path = "users.htpasswd"\ngroups = "groups"')
    )
    (config.parent / "groups").write_text("dev: alice\n")
    arguments = ("explain", "--backend", "htpasswd", "--address", "10.1.1.1", "repository:team/app:pull")
    code, out, _ = run(*arguments, "--account", "alice", "--config", config)
    assert code == 0
    assert "groups: dev" in out
    failed(run(*arguments, "--account", "mallory", "--config", config), "not in the password file", "--group")
    # Without --backend each is asked, and one that nobody has is told.
    others = ("explain", "--address", "10.1.1.1", "repository:team/app:pull", "--config", config)
    code, out, _ = run(*others, "--account", "alice")
    assert code == 0
    assert "account 'alice' of backend 'htpasswd', groups: dev" in out
    code, out, _ = run(*others, "--account", "mallory")
    assert code == 1
    assert "note: the account was not found, so it has no groups here" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--group", "dev", "repository:a:pull"], "need --account"),
        (["--account", "a", "--service", "x", "repository:a:pull"], "'x' is not in [issuer] services; known:"),
        (["--account", "a", "--backend", "x", "repository:a:pull"], "no backend 'x'"),
    ],
)
def test_what_cannot_be_explained_is_said(run: Run, config: Path, arguments: list[str], says: str) -> None:
    """One line each."""
    failed(run("explain", *arguments, "--config", config), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["team/app:pull"], "is not a scope such as"),
        (["repository:Team/App:pull"], "is not a scope such as"),
        (["repository:team/app:"], "is not a scope such as"),
        (["--address", "x", "repository:a:pull"], "'x' is not an address"),
    ],
)
def test_a_typing_error_is_not_a_denial(run: Run, config: Path, arguments: list[str], says: str) -> None:
    """Scripts ask for the exit status."""
    misused(run("explain", *arguments, "--config", config), says)


TEST = """
[[test]]
account = "bob"
groups = ["dev"]
address = "{address}"
scope = "repository:team/app:*"
actions = ["pull", "push"]
comment = "developers push"
"""


def test_a_test_that_holds_is_silent_and_one_that_does_not_stops_the_start(run: Run, config: Path) -> None:
    """`check` names it too; `explain` still works, to find out why."""
    before = config.read_text()
    config.write_text(before + TEST.format(address="10.1.1.1"))
    load_config(config).build().close()
    config.write_text(before + TEST.format(address="192.0.2.1"))
    says = "[[test]] 1 (developers push): bob gets nothing of repository:team/app:*, and the test wants pull, push"
    with pytest.raises(ConfigurationError) as caught:
        load_config(config).build()
    assert says in str(caught.value)
    code, out, _ = run("check", "--config", config)
    assert code == 1
    assert f"error: {says}" in out
    assert run("explain", "repository:team/app:pull", "--config", config)[0] == 1


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('scope = "team/app"\nactions = []', "is not a scope"),
        ('scope = "repository:a:pull"\nactions = ["push"]', "'actions' has push, which 'scope' does not request"),
        ('scope = "repository:a:pull"', "'actions' is missing"),
        ('scope = "repository:a:pull"\nactions = []\ngroups = ["x"]', "'groups' needs 'account'"),
        ('scope = "repository:a:pull"\nactions = []\naddress = "x"', "'address' is 'x'"),
        ('scope = "repository:a:pull"\nactions = []\nservice = "x"', "the service 'x' is not in"),
        ('scope = "repository:a:pull"\nactions = []\nbackend = "x"', "no backend is called 'x'"),
    ],
)
def test_a_test_that_cannot_be_understood_is_named(config: Path, table: str, says: str) -> None:
    """With its number."""
    config.write_text(config.read_text() + f"\n[[test]]\n{table}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_config(config)
    assert "[[test]] 1" in str(caught.value)
    assert says in str(caught.value)


def test_a_token_can_be_signed_by_hand(run: Run, config: Path) -> None:
    """It allows what is named, and who has signed it is noted."""
    code, out, err = run("token", "--account", "alice", "repository:team/app:pull", "--config", config)
    assert code == 0
    assert out.count(".") == 2
    assert "has signed a token by hand: account 'alice'" in err
    assert "repository:team/app:pull" in err
    failed(run("token", "--service", "x", "--config", config), "'x' is not in [issuer] services")
    misused(run("token", "x", "--config", config), "is not a scope")


def test_a_user_without_a_name_signs_under_its_number(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container."""
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    code, _, err = run("token", "--config", config)
    assert code == 0
    assert f"tokenissuer: {os.getuid()} has signed a token by hand" in err


def test_a_token_is_read_and_tried(run: Run, config: Path, typed: Callable[[str | bytes], None]) -> None:
    """What it allows, who accepts it until when, and why somebody does not."""
    _, token, _ = run("token", "--account", "alice", "repository:team/app:pull", "--config", config)
    typed(token)
    code, out, _ = run("inspect", "--config", config)
    assert code == 0
    for answer in ({"token": token.strip(), "expires_in": 900}, {"access_token": token.strip()}):
        typed(json.dumps(answer))
        assert run("inspect", "--config", config) == (0, out, "")
    assert "allows    repository:team/app:pull" in out
    assert "subject   'alice'" in out
    assert f"accepted  by registries that have {config.parent / 'auth.crt'}, until 20" in out
    assert token.strip() not in out
    other = config.parent / "other.crt"
    private = generate_private_key(KeyType.RSA)
    other.write_bytes(self_signed_certificate(private, "other", time.time()).public_bytes(Encoding.PEM))
    typed(token)
    code, out, _ = run("inspect", "--bundle", other, "--config", config)
    assert code == 1
    assert f"refused   no key of {other} has signed it" in out


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"iss": "x "}, "the issuer is 'x '; [issuer] name is"),
        ({"aud": "x"}, "it is for 'x'; [issuer] services are"),
        ({"exp": 1}, "it has ended,"),
        ({"nbf": 9_000_000_000, "exp": 9_999_999_999}, "it begins in"),
        ({"exp": "soon"}, "no times that a registry can read"),
        ({"exp": 10**30, "aud": "x"}, "it is for 'x'"),
        ({"exp": -(10**14)}, "it has ended,"),
        (
            {"iss": "\x1b[8m\nforged", "access": [{"type": "repository", "name": "a\x1b[8m\nforged", "actions": []}]},
            "the issuer",
        ),
    ],
)
def test_a_token_that_no_registry_accepts_says_why(
    run: Run, config: Path, typed: Callable[[str | bytes], None], key: SigningKey, claims: dict[str, Any], says: str
) -> None:
    """One line for each reason."""
    issuer = load_config(config).issuer
    good = {"iss": issuer.name, "aud": issuer.services[0], "exp": 9_999_999_999}
    header = key.header(KeyForm.X5C)
    typed(jwt.encode({**good, "access": [], **claims}, key.private, algorithm=key.algorithm, headers=header))
    code, out, _ = run("inspect", "--config", config)
    assert code == 1
    assert "\x1b" not in out
    assert not any(line.startswith("forged") for line in out.splitlines())
    refused = [line for line in out.splitlines() if line.startswith("refused")]
    assert says in refused[0]


def test_what_is_no_token_is_not_shown(run: Run, config: Path, typed: Callable[[str | bytes], None]) -> None:
    """It may be a password."""
    typed("planted.secret")
    assert "planted" not in failed(run("inspect", "--config", config), "standard input is not a token")


def test_the_picture_in_the_manual_is_what_is_printed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the set-up that `init` makes."""
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    command, picture = re.findall(r"```sh\ntokenissuer (explain [^\n]*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)[0]
    assert run("init", tmp_path / "set-up")[0] == 0
    monkeypatch.chdir(tmp_path / "set-up")
    arguments = [word.replace("/etc/tokenissuer/", "") for word in command.split()]
    _, out, err = run(*arguments)
    assert (out, err) == (picture, "")
