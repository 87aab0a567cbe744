"""Access rules: patterns, who is meant, denials, and properties that hold for all rules."""

from __future__ import annotations

import ipaddress
import itertools
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rules import ACCOUNTS, ASKED, CALLERS, NAMES, PATTERNS, RULES, rule
from tokenissuer.accounts.backend import Account
from tokenissuer.net import parse_network
from tokenissuer.policy import Caller, Glob, Identity, Names, Policy, Rule, account_path
from tokenissuer.scope import Access

ALICE = Account("alice", frozenset({"dev", "team-a"}))


def matches(glob: Glob, name: str, account: Account | None) -> bool:
    """Whether the name matches, with all groups of the account."""
    return glob.matches(name, account.name if account else None, account.groups if account else ())


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a", ["a"], ["b", "a/a", "aa", "a/"]),
        ("a/b", ["a/b"], ["a", "a/b/c", "x/a/b", "a/bb"]),
        ("*", ["a", "abc", "a-b.c"], ["a/b"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
        ("a*", ["a", "ab", "a-b"], ["ba", "a/b"]),
        ("*a", ["a", "ba"], ["ab", "b/a"]),
        ("a*b", ["ab", "axb", "abb", "a-b"], ["a", "b", "abx", "a/b", "xab"]),
        ("a*b*c", ["abc", "axbyc", "abbcc"], ["acb", "ab", "bc"]),
        ("aa*aa", ["aaaa", "aaxaa"], ["aaa", "aa"]),
        ("*a*a*", ["aa", "xaxax"], ["a", "xa"]),
        ("team/*", ["team/a"], ["team", "team/a/b", "teams/a"]),
        ("team/**", ["team/a", "team/a/b"], ["team", "teams/a", "x/team/a"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("**/a", ["a", "x/a", "x/y/a"], ["b", "a/b", "xa"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a/b/b"], ["a", "b", "a/bb", "xa/b", "a/b/x"]),
        ("**/a/**", ["a/x", "x/a/y", "a/a"], ["a", "x/a", "b/x"]),
        ("**/a/**/b/**", ["a/b/c", "x/a/y/b/z", "a/a/b/b/c"], ["a/b", "b/a/c"]),
        ("a/**/**", ["a/b", "a/b/c"], ["a"]),
        ("**/**", ["a", "a/b"], []),
        ("**/*-dev/*", ["x-dev/a", "y/x-dev/a"], ["x-dev", "x-dev/a/b"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a-b_c", ["a-b_c"], ["a-b-c"]),
        ("host:5000/**", ["host:5000/a"], ["host:5001/a", "host/a"]),
        ("{account}", ["alice"], ["alice/x", "bob", "account"]),
        ("{account}/**", ["alice/x", "alice/x/y"], ["alice", "alicea/x", "bob/x", "x/alice/x"]),
        ("{account}-*/x", ["alice-1/x"], ["alice/x", "bob-1/x"]),
        ("*-{account}", ["x-alice"], ["alice", "x-bob"]),
        ("{group}/**", ["dev/x", "team-a/x"], ["ops/x", "alice/x", "dev"]),
        ("{group}/{account}", ["dev/alice", "team-a/alice"], ["dev/bob", "alice/dev", "dev/dev"]),
        ("{group}/**/{group}", ["dev/dev", "dev/x/dev", "team-a/team-a"], ["dev/team-a"]),
    ],
)
def test_a_pattern_matches_the_whole_name_and_no_other(pattern: str, matching: list[str], other: list[str]) -> None:
    """`*` within a segment, `**` across them, placeholders letter by letter, for `alice` of `dev` and `team-a`."""
    glob = Glob(pattern)
    assert [name for name in matching if not matches(glob, name, ALICE)] == []
    assert [name for name in other if matches(glob, name, ALICE)] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "***",
        "a**",
        "**a",
        "a/**b",
        "A",
        "a b",
        "[a-z]",
        "a?",
        "(a)",
        "a\\b",
        "{user}",
        "{account",
        "account}",
        "{Account}",
        "{}",
        "a+b",
        "^a$",
        "a\n",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "a,b",
    ],
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    """A regular expression or a mistyped placeholder would silently match nothing, or too much."""
    with pytest.raises(ValueError, match="pattern"):
        Glob(text)


@pytest.mark.parametrize("value", ["*", "**", "a*", ".*", "[a-z]*", "{group}", "{account}", "?", "", "a|b", "\\", "."])
@pytest.mark.parametrize("kind", ["account", "group"])
def test_a_value_that_looks_like_a_pattern_is_none(value: str, kind: str) -> None:
    """A placeholder's value stands for itself."""
    account = Account(value) if kind == "account" else Account("someone", frozenset({value}))
    glob = Glob(f"{{{kind}}}/**")
    for name in ("a/b", "x/b", "someone/b", "group/b", "account/b", "b", "aa/b"):
        assert not matches(glob, name, account)


@pytest.mark.parametrize("value", ["a/b", "a/", "/a", "../a", "a/**", "a//b"])
def test_a_value_with_a_slash_reaches_nobody_elses_names(value: str) -> None:
    """Not its first part's, nor its last's."""
    for account in (Account(value), Account("x", frozenset({value}))):
        for pattern in ("{account}/**", "{group}/**", "team/{account}/**"):
            for name in ("a/c", "b/c", "a/x/y", "team/a/c", "team/b/c"):
                assert not matches(Glob(pattern), name, account)


@pytest.mark.parametrize("pattern", ["{account}", "{account}/**", "{group}/**", "x/{account}", "**/{group}"])
def test_nobody_has_no_name_and_no_group(pattern: str) -> None:
    """Whoever is not logged in matches no placeholder."""
    for name in ("alice", "x/alice", "account", "none/x", "x/none", "x/x"):
        assert not matches(Glob(pattern), name, None)


def reference(pattern: str, name: str, account: Identity | None) -> bool:
    """What a pattern means, said once more and slowly: as a regular expression."""
    if account is None and ("{account}" in pattern or "{group}" in pattern):
        return False
    for group in account.groups if account and "{group}" in pattern else [""]:
        text = "/" + pattern
        # `**` at the end is one segment or more, elsewhere any number.
        expression = ""
        for part in re.split(r"(/\*\*$|/\*\*(?=/)|\*|\{account\}|\{group\})", text):
            if part == "/**":
                expression += "(?:/[^/]+)*"
            elif part == "*":
                expression += "[^/]*"
            elif part == "{account}":
                expression += re.escape(account.name if account else "")
            elif part == "{group}":
                expression += re.escape(group)
            else:
                expression += re.escape(part)
        if pattern.endswith("**"):
            expression = expression.removesuffix("(?:/[^/]+)*") + "(?:/[^/]+)+"
        if re.fullmatch(expression, "/" + name):
            return True
    return False


@settings(deadline=None, max_examples=400)
@given(PATTERNS, NAMES, ACCOUNTS)
def test_patterns_agree_with_a_slow_reading_of_them(pattern: str, name: str, account: Account | None) -> None:
    """Two ways of matching that share nothing."""
    assert matches(Glob(pattern), name, account) == reference(pattern, name, account)


def test_short_patterns_agree_with_a_slow_reading_of_them_without_exception() -> None:
    """Every pattern of up to four segments, on every name of up to four."""
    names = ["/".join(parts) for n in range(1, 5) for parts in itertools.product("ab", repeat=n)]
    for n in range(1, 5):
        for parts in itertools.product(["a", "*", "**"], repeat=n):
            glob = Glob("/".join(parts))
            for name in names:
                assert matches(glob, name, None) == reference(glob.text, name, None), (glob, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        pytest.param("**/a/**/a/**/a/**/a/**/a/**/b", "/".join("a" * 128), id="many-double-stars"),
        pytest.param("*a*a*a*a*a*a*a*a*b", "a" * 255, id="many-stars"),
        pytest.param("/".join(["**"] * 60) + "/b", "/".join("a" * 128), id="only-double-stars"),
        pytest.param("**/" + "/".join(["*a*a*b"] * 20), "/".join(["aaa"] * 64), id="both"),
    ],
)
def test_no_pattern_takes_long(pattern: str, name: str) -> None:
    """As a ratio to a plain pattern of the same length on the same name."""

    def cost(text: str) -> float:
        glob, best = Glob(text), 99.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(20):
                matches(glob, name, None)
            best = min(best, time.perf_counter() - start)
        return best

    assert cost(pattern) < 100 * cost("*/" * name.count("/") + "*")


def asked(*actions: str, name: str = "team/app") -> Access:
    return Access("repository", name, frozenset(actions or ("pull", "push", "delete")))


def granted(rules: Sequence[Rule], access: Access, caller: Caller) -> frozenset[str]:
    return Policy(rules).decide(caller, access).grant(access, frozenset()).actions


NOBODY = Caller(None, "registry.example", None)


@pytest.mark.parametrize(
    ("who", "account", "applies"),
    [
        pytest.param({"everyone": True}, None, True, id="everyone-nobody"),
        pytest.param({"everyone": True}, ALICE, True, id="everyone-alice"),
        pytest.param({"authenticated": True}, None, False, id="authenticated-nobody"),
        pytest.param({"authenticated": True}, ALICE, True, id="authenticated-alice"),
        pytest.param({"accounts": frozenset({"alice"})}, ALICE, True, id="account"),
        pytest.param({"accounts": frozenset({"Alice"})}, ALICE, False, id="account-of-another-case"),
        pytest.param({"accounts": frozenset({"dev"})}, ALICE, False, id="account-called-like-a-group"),
        pytest.param({"accounts": frozenset({"al*"})}, ALICE, True, id="pattern-of-accounts"),
        pytest.param({"accounts": frozenset({"Al*"})}, ALICE, False, id="pattern-of-accounts-of-another-case"),
        pytest.param({"accounts": frozenset({"*"})}, None, False, id="pattern-nobody"),
        pytest.param({"accounts": {"a.ice", "a?ice", "[a]lice"}}, ALICE, False, id="only-the-star-is-special"),
        pytest.param({"groups": frozenset({"TEAM-*"})}, ALICE, True, id="pattern-of-groups-in-any-case"),
        pytest.param({"groups": frozenset({"x-*"})}, ALICE, False, id="pattern-of-other-groups"),
        pytest.param({"accounts": frozenset({""})}, None, False, id="nobody-is-not-the-empty-name"),
        pytest.param({"groups": frozenset({"dev"})}, ALICE, True, id="group"),
        pytest.param({"groups": frozenset({"alice"})}, ALICE, False, id="group-called-like-an-account"),
        pytest.param({"groups": frozenset({"de"})}, ALICE, False, id="beginning-of-a-group"),
        pytest.param({"groups": frozenset({"dev"})}, None, False, id="group-nobody"),
        pytest.param({"groups": frozenset({"x"}), "accounts": frozenset({"alice"})}, ALICE, True, id="one-suffices"),
        pytest.param({}, ALICE, False, id="for-nobody"),
    ],
)
def test_a_rule_is_for_those_it_names(who: dict[str, Any], account: Account | None, applies: bool) -> None:
    """Any one way of being named suffices."""
    one = rule(**{"everyone": False, **who})
    assert bool(granted([one], asked(), Caller(account, "registry.example", None))) is applies


@pytest.mark.parametrize(
    ("services", "service", "applies"),
    [((), "one", True), (("one",), "one", True), (("one",), "two", False), (("one", "two"), "two", True)],
)
def test_a_rule_may_be_for_some_registries_only(services: tuple[str, ...], service: str, applies: bool) -> None:
    """Absent means all."""
    assert bool(granted([rule(services=frozenset(services))], asked(), Caller(None, service, None))) is applies


@pytest.mark.parametrize(
    ("network", "address", "allowed", "denied"),
    [
        ("10.0.0.0/8", "10.9.9.9", True, True),
        ("10.0.0.0/8", "11.0.0.1", False, False),
        ("10.0.0.1/32", "10.0.0.1", True, True),
        ("2001:db8::/32", "2001:db8::1", True, True),
        ("2001:db8::/32", "10.0.0.1", False, False),
        ("0.0.0.0/0", "2001:db8::1", False, False),
        ("10.0.0.0/8", None, False, True),
        ("::ffff:10.0.0.0/104", "10.9.9.9", True, True),
        ("::ffff:10.0.0.0/104", "11.0.0.1", False, False),
    ],
)
def test_a_rule_may_be_for_some_networks_only(network: str, address: str | None, allowed: bool, denied: bool) -> None:
    """Where the address cannot be told, a denial holds and a permission does not."""
    networks = (parse_network(network),)
    caller = Caller(None, "registry.example", ipaddress.ip_address(address) if address else None)
    assert bool(granted([rule(networks=networks)], asked(), caller)) is allowed
    assert bool(granted([rule(), rule(networks=networks, deny=True)], asked(), caller)) is not denied


@pytest.mark.parametrize(
    ("catalog", "name", "actions", "expected"),
    [
        (True, "catalog", {"*"}, {"*"}),
        (True, "catalog", {"pull"}, set()),
        (True, "catalog", {"search"}, set()),
        (False, "catalog", {"*"}, set()),
        (True, "other", {"*"}, set()),
        (True, "", {"*"}, set()),
    ],
)
def test_the_catalog_is_allowed_only_where_a_rule_says_so(
    catalog: bool, name: str, actions: set[str], expected: set[str]
) -> None:
    """`**` is about repositories; the list of all of them is another matter."""
    access = Access("registry", name, frozenset(actions))
    assert granted([rule(catalog=catalog)], access, NOBODY) == expected


def test_a_denial_of_the_catalog_wins() -> None:
    """And leaves repositories alone."""
    rules = [rule(catalog=True), rule(catalog=True, repositories=(), actions=frozenset(), deny=True)]
    assert granted(rules, Access("registry", "catalog", frozenset("*")), NOBODY) == frozenset()
    assert granted(rules, asked(), NOBODY) == {"pull"}


def test_a_denial_also_takes_what_the_backend_grants() -> None:
    """The administrator has the last word."""
    decision = Policy([rule(deny=True, actions=frozenset({"push"}))]).decide(NOBODY, asked())
    assert decision.grant(asked(), frozenset({"pull", "push"})).actions == {"pull"}


def test_a_decision_names_the_rules_that_made_it() -> None:
    """By their numbers in the configuration."""
    rules = [rule(number=1), rule(number=2, repositories=("x",)), rule(number=3, deny=True)]
    assert Policy(rules).decide(NOBODY, asked()).reason == "allowed by access rule 1 and denied by access rule 3"
    assert Policy(rules[1:2]).decide(NOBODY, asked()).reason == "no access rule applies"


def meant(names: Iterable[str], by: Names) -> bool:
    """Whether a rule means one of these names."""
    return any(re.fullmatch(text.replace("*", ".*"), name) for name in names for text in by.texts)


def spoken_of(one: Rule, caller: Caller, access: Access) -> set[str]:
    """What a rule says, by a dumb reading of the manual."""
    account = caller.account
    named = one.everyone or (
        account is not None
        and (one.authenticated or meant([account.name], one.accounts) or meant(account.groups, one.groups))
    )
    if account is not None and (meant([account.name], one.except_accounts) or meant(account.groups, one.except_groups)):
        return set()
    if not named or (one.services and caller.service not in one.services):
        return set()
    if one.networks:
        if caller.address is None and not one.deny:
            return set()
        if caller.address is not None and not any(caller.address in network for network in one.networks):
            return set()
    if (access.type, access.name) == ("registry", "catalog"):
        return {"*"} if one.catalog else set()
    if access.type != "repository" or not re.fullmatch(r"[ab]+(/[ab]+)*|catalog", access.name):
        return set()
    if any(reference(glob.text, access.name, account) for glob in one.except_repositories):
        return set()
    if any(reference(glob.text, access.name, account) for glob in one.repositories):
        return set(one.actions)
    return set()


@settings(deadline=None, max_examples=300)
@given(st.lists(RULES, max_size=5), CALLERS, ASKED, st.randoms(use_true_random=False))
def test_granted_is_what_is_asked_and_allowed_and_not_denied(
    rules: list[Rule], caller: Caller, access: Access, random: Any
) -> None:
    """For generated rules, callers and scopes; and the order of the rules never matters."""
    allowed = {action for one in rules if not one.deny for action in spoken_of(one, caller, access)}
    denied = {action for one in rules if one.deny for action in spoken_of(one, caller, access)}
    wanted = allowed | denied if "*" in access.actions else set(access.actions)
    expected = (allowed - denied) & wanted
    assert granted(rules, access, caller) == expected
    shuffled = list(rules)
    random.shuffle(shuffled)
    assert granted(shuffled, access, caller) == expected
    if access.type == "repository":
        assert "*" not in expected


def test_the_placeholder_for_groups_is_the_groups_that_the_rule_names() -> None:
    """A rule for one group says nothing about what belongs to the caller's others."""
    named = Policy([rule(everyone=False, groups=frozenset({"dev"}), repositories=("{group}/**",))])
    everybody = Policy([rule(everyone=False, authenticated=True, repositories=("{group}/**",))])
    caller = Caller(ALICE, "registry", None)
    for name, by_name, by_login in (("dev/x", True, True), ("team-a/x", False, True), ("ops/x", False, False)):
        access = Access("repository", name, frozenset({"pull"}))
        assert bool(named.decide(caller, access).allowed) is by_name
        assert bool(everybody.decide(caller, access).allowed) is by_login


@pytest.mark.parametrize("spelled", ["dev", "Dev", "DEV"])
@pytest.mark.parametrize("who", ["groups", "authenticated"])
def test_capitals_switch_no_denial_off(spelled: str, who: str) -> None:
    """Membership and `{group}` compare groups in the same way, whatever the rule and the source write."""
    deny = rule(
        number=2, everyone=False, deny=True, repositories=("{group}/**",), groups=frozenset({spelled}),
        authenticated=who == "authenticated",
    )  # fmt: skip
    account = Account("alice", frozenset({"dEV"}))
    caller = Caller(account, "registry.example", None)
    assert granted([rule(), deny], asked(name="dev/app"), caller) == set()
    assert granted([rule(), deny], asked(name="other/app"), caller) == {"pull"}
    allow = rule(everyone=False, repositories=("{group}/**",), groups=frozenset({spelled}))
    assert granted([allow], asked(name="dev/app"), caller) == {"pull"}


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("{group}/**", ["a/b/x", "a/b/x/y"], ["a/b", "a/x", "a/bb/x", "b/x"]),
        ("{group}", ["a/b"], ["a", "b", "a/b/c"]),
        ("x/{group}/y", ["x/a/b/y"], ["x/a/y", "x/b/y"]),
        ("x-{group}-*/y", ["x-a/b-c/y"], ["x-a/c/y", "x-a/b/y"]),
    ],
)
def test_a_group_with_slashes_stands_for_its_path(pattern: str, matching: list[str], other: list[str]) -> None:
    """GitLab's groups are full paths."""
    member = Account("alice", frozenset({"a/b"}))
    for name in matching:
        assert matches(Glob(pattern), name, member), name
    for name in other:
        assert not matches(Glob(pattern), name, member), name
    # A name of an account is chosen by whoever registers first.
    assert not matches(Glob("{account}/**"), "a/b/c", Account("a/b"))
    assert matches(Glob("{account}/**"), "a__x2f_b/c", Account("a/b"))


def test_a_denial_for_groups_holds_where_the_groups_are_not_known() -> None:
    """For a CI job, say; and a permission for groups does not."""
    job = Caller(Account("alice", groups_known=False), "registry.example", None)
    named = rule(number=2, everyone=False, deny=True, groups=frozenset({"interns"}))
    placed = rule(number=2, everyone=False, deny=True, authenticated=True, repositories=("{group}/**",))
    assert granted([rule(), named], asked(name="team/app"), job) == set()
    assert granted([rule(), placed], asked(name="team/app"), job) == set()
    assert granted([rule(), placed], asked(name="app"), job) == {"pull"}
    assert granted([rule(everyone=False, groups=frozenset({"interns"}))], asked(name="team/app"), job) == set()


def test_a_denial_holds_for_a_group_whose_name_is_not_certain() -> None:
    """A directory's group that the rule names by its DN, and that has several names."""

    class Member(Account):
        def group_named(self, text: str) -> str | None:
            return "" if text == "cn=x" else None

    caller = Caller(Member("alice"), "registry.example", None)
    values: dict[str, Any] = {"everyone": False, "groups": frozenset({"cn=x"}), "repositories": ("{group}/**",)}
    assert granted([rule(), rule(number=2, deny=True, **values)], asked(name="team/app"), caller) == set()
    assert granted([rule(**values)], asked(name="team/app"), caller) == set()


def test_a_rule_for_one_backend_is_not_for_accounts_of_another() -> None:
    """A group of the same name may be anybody's there."""
    only = rule(everyone=False, groups=frozenset({"dev"}), backends=frozenset({"ldap"}))
    for backend, expected in (("ldap", {"pull"}), ("gitlab", set()), ("", set())):
        assert granted([only], asked(name="team/app"), Caller(ALICE, "registry.example", None, backend)) == expected


ROBOTS = Account("ci-build", frozenset({"robots"}))
UNKNOWN = Account("eve", groups_known=False)


@pytest.mark.parametrize(
    ("changes", "account", "name", "applies"),
    [
        ({"except_repositories": ("team/secret/**",)}, ALICE, "team/app", True),
        ({"except_repositories": ("team/secret/**",)}, ALICE, "team/secret/x", False),
        ({"except_repositories": ("{account}/**",)}, ALICE, "alice/x", False),
        ({"except_repositories": ("{account}/**",)}, None, "alice/x", True),
        ({"except_repositories": ("{group}/**",)}, ALICE, "dev/x", False),
        ({"except_accounts": {"ci-*"}}, ROBOTS, "team/app", False),
        ({"except_accounts": {"ci-*"}}, ALICE, "team/app", True),
        ({"except_accounts": {"ci-*"}}, None, "team/app", True),
        ({"except_groups": {"ROBOTS"}}, ROBOTS, "team/app", False),
        ({"except_groups": {"ROBOTS"}}, ALICE, "team/app", True),
    ],
)
@pytest.mark.parametrize("deny", [False, True])
def test_a_rule_does_not_apply_to_its_exceptions(
    changes: dict[str, Any], account: Account | None, name: str, applies: bool, deny: bool
) -> None:
    """Neither to allow nor to deny."""
    decision = Policy([rule(deny=deny, **changes)]).decide(Caller(account, "r", None), asked(name=name))
    assert bool(decision.denied if deny else decision.allowed) is applies


@pytest.mark.parametrize(
    "changes", [{"except_groups": {"robots"}}, {"except_groups": {"ro*"}}, {"except_repositories": ("{group}/**",)}]
)
def test_an_exception_that_is_not_certain_gives_less(changes: dict[str, Any]) -> None:
    """It may be the exception from a permission, and may not be that from a denial."""
    caller, access = Caller(UNKNOWN, "r", None), asked(name="robots/app")
    assert not Policy([rule(**changes)]).decide(caller, access).allowed
    assert Policy([rule(deny=True, **changes)]).decide(caller, access).denied


def test_a_job_is_not_spared_by_a_denial_that_spares_its_user() -> None:
    """What the user may do is not for every job."""
    job = Caller(Account("alice", delegated=True), "r", None)
    assert Policy([rule(deny=True, except_accounts={"alice"})]).decide(job, asked()).denied
    assert not Policy([rule(except_accounts={"alice"})]).decide(job, asked()).allowed


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("{group}", "org/sub"), ("{group}/app", "org/sub/app"), ("x/{group}/y", "x/org/sub/y"), ("{group}", "app")],
)
def test_an_unknown_group_may_have_slashes(pattern: str, name: str) -> None:
    """A denial holds, and a permission that spares the group does not."""
    caller = Caller(UNKNOWN, "r", None)
    denial = rule(number=2, everyone=False, deny=True, groups={"org/sub"}, repositories=(pattern,))
    assert granted([rule(), denial], asked(name=name), caller) == set()
    spared = rule(everyone=False, authenticated=True, except_repositories=(pattern,))
    assert granted([spared], asked(name=name), caller) == set()


def test_a_job_does_not_get_its_users_place_from_a_rule_for_everyone() -> None:
    """What everyone may do everywhere it may do."""
    one = rule(repositories=("public/**", "{account}/**", "{group}/**"))
    job = Caller(Account("alice", frozenset({"dev"}), delegated=True), "r", None)
    assert granted([one], asked(name="public/x"), job) == {"pull"}
    assert granted([one], asked(name="alice/x"), job) == set()
    assert granted([one], asked(name="dev/x"), job) == set()


def test_a_job_is_not_spared_by_a_denial_that_spares_its_users_place() -> None:
    """Neither by the account's name nor by a group's."""
    job = Caller(Account("alice", frozenset({"dev"}), delegated=True), "r", None)
    denial = rule(number=2, deny=True, except_repositories=("{account}/**", "{group}/**", "public/**"))
    for name, expected in (("alice/x", set()), ("dev/x", set()), ("public/x", {"pull"})):
        assert granted([rule(), denial], asked(name=name), job) == expected


def test_a_group_without_a_path_stands_for_nothing() -> None:
    """And a denial that it makes holds for all."""
    caller = Caller(Account("eve", frozenset({"x:"})), "r", None)
    one = rule(everyone=False, authenticated=True, repositories=("{group}*", "pre{group}"))
    for name in ("anything", "pre"):
        assert granted([one], asked(name=name), caller) == set()
    denial = rule(number=2, deny=True, everyone=False, authenticated=True, repositories=("{group}/**",))
    assert granted([rule(), denial], asked(name="a/b"), caller) == set()


@pytest.mark.parametrize(("written", "other"), [("ci:secret", "ci:\u017fecret"), ("ci:kube", "ci:\u212aube")])
def test_letters_of_other_alphabets_are_no_small_ascii_letters(written: str, other: str) -> None:
    """Whoever makes groups elsewhere may make one of that name."""
    one = rule(everyone=False, groups={written}, repositories=("{group}/**", "**"))
    assert granted([one], asked(name="a/b"), Caller(Account("eve", frozenset({other})), "r", None)) == set()
    for name in (written, written.upper()):
        assert granted([one], asked(name="a/b"), Caller(Account("a", frozenset({name})), "r", None)) == {"pull"}
    umlaut = rule(everyone=False, groups={"\xdcbung"})
    assert granted([umlaut], asked(name="a"), Caller(Account("a", frozenset({"\xfcbung"})), "r", None)) == {"pull"}


def test_a_comment_is_in_the_reason() -> None:
    """For whoever reads the log."""
    rules = [rule(number=4, comment="the builders"), rule(number=5, deny=True)]
    reason = Policy(rules).decide(NOBODY, asked()).reason
    assert reason == "allowed by access rule 4 (the builders) and denied by access rule 5"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("alice", "alice"),
        ("a.b-c_d--e", "a.b-c_d--e"),
        ("Alice", "alice__cap1"),
        ("alice@example.com", "alice__at_example.com"),
        ("Bob@Example.com", "bob__at_example.com__cap1.cap5"),
        ("a__b", "a__x5f.x5f_b"),
        ("@bob", "0__0.at_bob"),
        ("bob@", "bob__at"),
        ("bob.", "bob__x2e"),
        ("müller", "m__xfc_ller"),
        ("Ü", "0__0.xdc"),
        ("a/b", "a__x2f_b"),
    ],
)
def test_the_path_of_an_account_is_as_the_manual_says(name: str, path: str) -> None:
    """Small letters, digits and single separators stay."""
    assert account_path(name) == path


def account_of(path: str) -> str:
    """The name that a path was made of, by the manual."""
    literal, *rest = path.split("__")
    name, capitals = literal, []
    for part in rest:
        codes, _, literal = part.partition("_")
        for code in codes.split("."):
            if code == "0":
                name = name[:-1]
            elif code.startswith("cap"):
                capitals.append(int(code[3:]) - 1)
            else:
                name += "@" if code == "at" else chr(int(code[1:], 16))
        name += literal
    return "".join(letter.upper() if place in capitals else letter for place, letter in enumerate(name))


@given(st.text(st.sampled_from("ab01AB@._-/ü\u212a "), min_size=1) | st.text(min_size=1))
def test_no_two_accounts_have_the_same_path(name: str) -> None:
    """The name can be had back; and the path is one part of a repository's name."""
    path = account_path(name)
    assert account_of(path) == name
    assert Access("repository", path, frozenset()).is_repository or len(path) > 255


def test_a_decision_for_one_backend_is_not_remembered_for_another() -> None:
    """A plug-in may give out the same object for accounts of both."""
    policy = Policy([rule(everyone=False, authenticated=True, backends=frozenset({"people"}))])
    assert policy.decide(Caller(ALICE, "r", None, "people"), asked()).allowed
    assert not policy.decide(Caller(ALICE, "r", None, "robots"), asked()).allowed


@pytest.mark.parametrize("who", ["everyone", "groups", "accounts"])
def test_many_rules_cost_no_more_than_those_that_may_matter(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Ten thousand rules, and forty scopes: only the rules for the caller and the first part of the name are tried."""
    tried = 0
    actions_on = Rule.actions_on

    def counted(self: Rule, caller: Caller, access: Access) -> frozenset[str]:
        nonlocal tried
        tried += 1
        return actions_on(self, caller, access)

    monkeypatch.setattr(Rule, "actions_on", counted)
    everyone = who == "everyone"
    rules = [
        rule(
            number=number,
            everyone=everyone,
            groups=frozenset({f"g{number}"} if who == "groups" else ()),
            accounts=frozenset({f"a{number}"} if who == "accounts" else ()),
            repositories=(f"team{number}/**" if everyone else "**",),
        )
        for number in range(10_000)
    ]
    policy = Policy(rules)
    caller = Caller(Account("a7", frozenset({"g7", "g8"})), "registry.example", None)
    for number in range(40):
        policy.decide(caller, asked(name=f"team{number}/app"))
    assert tried <= 40 * 2
