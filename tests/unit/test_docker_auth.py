"""docs/docker_auth.md: each pair of a docker_auth entry and access rules allows the same."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tokenissuer.accounts.backend import Account
from tokenissuer.config import Config, parse_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.net import parse_address
from tokenissuer.policy import Caller, Decision, Policy
from tokenissuer.scope import Access
from tokenissuer.signing.issuer import IssuerOptions
from tokenissuer.signing.keys import SigningOptions
from tokenissuer.web.proxies import ServerOptions

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "docker_auth.md").read_text(encoding="utf-8")

Entry = dict[str, Any]
Labels = Mapping[str, tuple[str, ...]]

#: docker_auth's answer if no entry matches.
NOTHING: Final[Entry] = {"match": {}, "actions": []}


# docker_auth, read anew: the first entry that matches decides.


@dataclass(frozen=True)
class Question:
    """What docker_auth asks its entries."""

    account: str
    type: str
    name: str
    service: str
    ip: str
    labels: Labels

    @property
    def fields(self) -> dict[str, str]:
        """The texts that patterns are compared with."""
        return {"account": self.account, "type": self.type, "name": self.name, "service": self.service}


def deciding(entries: Iterable[Entry], question: Question) -> Entry:
    """The entry that decides; one that denies everything if none does."""
    return next((entry for entry in entries if entry_matches(entry["match"], question)), NOTHING)


def granted_by(entry: Entry, actions: frozenset[str]) -> frozenset[str]:
    """What the entry that decides grants of the actions."""
    return actions if entry["actions"] == ["*"] else actions & frozenset(entry["actions"])


def entry_matches(match: Entry, question: Question) -> bool:
    """Whether every condition of an entry holds."""
    unknown = match.keys() - {*question.fields, "ip", "labels"}
    assert not unknown, f"unknown conditions: {unknown}"
    values = {f"${{{key}}}": quoted(text) for key, text in question.fields.items()} | captured(match, question)
    if "ip" in match and ipaddress.ip_address(question.ip) not in ipaddress.ip_network(match["ip"]):
        return False
    for label, pattern in match.get("labels", {}).items():
        if not any(text_matches(filled(pattern, values), value) for value in question.labels.get(label, ())):
            return False
    return all(
        any(text_matches(filled(match[key], each), text) for each in with_labels(match[key], values, question.labels))
        for key, text in question.fields.items()
        if key in match
    )


def with_labels(pattern: str, values: Mapping[str, str], labels: Labels) -> Iterator[Mapping[str, str]]:
    """The texts for placeholders: without labels, then for each choice of one value for each label in the pattern."""
    yield values
    named = {f"${{labels:{label}}}": of for label, of in labels.items() if f"${{labels:{label}}}" in pattern}
    if named:
        for choice in itertools.product(*named.values()):
            yield {**values, **dict(zip(named, choice, strict=True))}


def captured(match: Entry, question: Question) -> dict[str, str]:
    """The texts for placeholders such as `${account:1}`: a group of another condition's regular expression."""
    found = {}
    for text in (match[key] for key in question.fields if key in match):
        for placeholder, key, number in re.findall(r"(\$\{(.+?):(\d+)\})", text):
            expression = regular_expression(match.get(key, ""))
            groups = expression.search(question.fields[key]) if expression else None
            if groups is not None and 1 <= int(number) <= len(groups.groups()):
                found[placeholder] = groups[int(number)] or ""
    return found


def filled(pattern: str, values: Mapping[str, str]) -> str:
    """Put texts in the places of placeholders; what was put in is not looked at again."""
    if "$" not in pattern:
        return pattern
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], pattern)


@cache
def quoted(text: str) -> str:
    """Put a backslash before each character that is special in Go's regular expressions."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


@cache
def regular_expression(pattern: str) -> re.Pattern[str] | None:
    """The regular expression between two slashes; None if the pattern is another text."""
    if len(pattern) > 2 and pattern[0] == pattern[-1] == "/":
        return re.compile(pattern[1:-1])
    return None


def text_matches(pattern: str, text: str) -> bool:
    """Whether a regular expression is found in the text, or a pattern of Go's path.Match is the whole text."""
    expression = regular_expression(pattern)
    if expression is not None:
        return expression.search(text) is not None
    return path_pattern(pattern).fullmatch(text) is not None


@cache
def path_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of Go's path.Match as a regular expression."""
    written = ""
    for part in re.findall(r"\\.|.", pattern, re.DOTALL):
        assert part not in ("[", "\\"), f"this reading has no '{part}': {pattern}"
        written += {"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part.removeprefix("\\")))
    return re.compile(written)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("", [""], ["a"]),
        ("test-*", ["test-", "test-a"], ["test", "test-a/b", "a/test-a"]),
        ("a?c", ["abc", "a-c"], ["ac", "a/c", "abbc"]),
        ("*/*", ["a/b", "/"], ["a", "a/b/c"]),
        ("a\\.b", ["a.b"], ["axb"]),
        ("a\\*", ["a*"], ["ab"]),
        ("a.b", ["a.b"], ["axb"]),
        ("/.+/", ["a", "a/b"], [""]),
        ("/a|b/", ["a", "xbx"], ["c"]),
        ("/^a$/", ["a"], ["ab"]),
        ("//", ["//"], ["a", ""]),
        ("bob\\.smith/*", ["bob.smith/app"], ["bob-smith/app"]),
        ("/^(.+)@test.com$/", ["a@test.com", "a@test-com"], ["a@test.com.x"]),
        ("${name}", ["${name}"], ["a"]),
    ],
)
def test_a_pattern_is_read_as_go_reads_it(pattern: str, matching: list[str], other: list[str]) -> None:
    """Expected values are those of Go 1.26, path.Match and regexp."""
    assert [text for text in matching if not text_matches(pattern, text)] == []
    assert [text for text in other if text_matches(pattern, text)] == []


# The page.


@dataclass(frozen=True)
class Pair:
    """Entries of docker_auth, and tables of tokenissuer.

    Args:
        entries: docker_auth's.
        tables: tokenissuer's.
        labels: the labels of docker_auth whose values are groups.
        denies: whether the rules take something away.
    """

    entries: Sequence[Entry]
    tables: Mapping[str, Any]
    labels: Sequence[str] = ()
    denies: bool = False


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def sections(level: str) -> dict[str, str]:
    """The sections of the page, each up to the next heading of its level or above."""
    found = re.findall(rf"^{level} ([^\n]+)\n(.*?)(?=^#{{2,{len(level)}}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return dict(found)


def _pair(body: str) -> Pair:
    (text,), (tables,) = blocks(body, "yaml"), blocks(body, "toml")
    # JSON in a list of YAML is YAML, and no parser for YAML is needed.
    entries = [json.loads(line.removeprefix("- ")) for line in text.splitlines()]
    match = entries[-1]["match"]
    labels = [*match.get("labels", ()), *re.findall(r"\$\{labels:(\w+)\}", match.get("name", ""))]
    return Pair(entries, tomllib.loads(tables), labels, 'effect = "deny"' in tables)


PAIRS: Final = {int(heading.partition(".")[0]): _pair(body) for heading, body in sections("###").items()}
#: The last entry of a section is the one that it is about; one before that is an earlier section's.
ALL: Final = Pair(
    [pair.entries[-1] for pair in PAIRS.values()],
    tomllib.loads(blocks(sections("##")["All of them in their order"], "toml")[0]),
)


def test_the_page_has_every_entry_once() -> None:
    """Each entry has its own section, and those it is shown with are the ones before it."""
    assert list(PAIRS) == list(range(1, 19))
    assert len({json.dumps(entry, sort_keys=True) for entry in ALL.entries}) == 18
    for number, pair in PAIRS.items():
        before = [ALL.entries[each] for each in range(number - 1)]
        assert [entry for entry in pair.entries[:-1] if entry not in before] == []
    assert len(blocks(PAGE, "yaml")) == 18
    assert len(blocks(PAGE, "toml")) == 19


def test_lines_of_prose_are_short() -> None:
    """Rows of tables may be long."""
    assert [line for line in PAGE.splitlines() if len(line) > 120 and not line.startswith("|")] == []


# The callers and what they ask for.


@dataclass(frozen=True)
class Person:
    """Somebody with labels; without a name, nobody is logged in."""

    name: str = ""
    labels: Labels = field(default_factory=dict)


def person(name: str, **labels: str) -> Person:
    """Somebody whose labels are written as words with spaces between."""
    return Person(name, {label: tuple(values.split()) for label, values in labels.items()})


PEOPLE: Final = (
    Person(),
    person("admin"),
    person("administrator", group="web"),
    person("test"),
    person("tester", groups="staff"),
    person("alice", group="web VIP", project="website api", tier="frontend backend", title="Manager", groups="staff"),
    person("bob.smith", group="trainee", project="website", tier="backend", title="Developer", groups="staff Admin"),
    person("carol", group="dev", project="api", title="Developer-Advocate", groups="Administrators"),
    person("dave", group="ops-dev VIP2"),
    person("erin", group="senior-trainees", tier="frontend"),
    person("alice@test.com"),
    # Those for whom the page says that something is different.
    person("bob@test.com"),
    person("alice@test-com"),
    person("Bob"),
    person("frank", group="Dev vip", project="API", tier="Frontend", title="developer", groups="admin"),
    person("grace", group="*", project="*", tier="*", title="*", groups="*"),
)
REPOSITORIES: Final = tuple(
    """
    app catalog hello-world hello-world/x test test-1 test-long test-1/x x/test-1 test/x
    alice alice/app alice/app/part alice/alice bob/app bob.smith/app bob-smith/app admin/app
    web-shared/app web-shared/app/part dev-shared/app trainee-shared/app vip-shared/app shared/app
    website/app website/app/part api/app web/app
    website-frontend/app website-backend/app website-backend/app/part api-frontend/app api-backend/app
    bob__cap1/app alice__at_test.com/app bob__at_test.com/app
    """.split()
)
EVERYTHING: Final = frozenset({"pull", "push", "delete"})
REQUESTS: Final = tuple(map(frozenset, (["pull"], ["delete"], ["pull", "push"], EVERYTHING)))
#: What is asked for: each time the same resource, with different actions.
REQUESTED: Final = (
    *([Access("repository", name, actions) for actions in REQUESTS] for name in REPOSITORIES),
    [Access("registry", "catalog", frozenset({"*"}))],
)
#: Services and addresses.
PLACES: Final = (
    ("other", "192.0.2.7"),
    ("other", "172.17.0.1"),
    ("other", "::1"),
    ("other", "127.9.9.9"),
    *(("Docker registry", address) for address in "126.0.0.1 ::2 172.17.0.2".split()),
)


# Both sides.

Case = tuple[tuple[str, str], Person, Sequence[Access]]
#: Differences show early: tests stop at the first one.
CASES: Final[Sequence[Case]] = tuple(itertools.product(PLACES, PEOPLE, REQUESTED))

_FILTER: Final = re.compile(r"\((\w+)=([^{}()]+)\)")


def there(pair: Pair) -> Iterator[Entry]:
    """For each case, the entry that decides."""
    text = json.dumps(pair.entries)
    return (decided(text, number) for number in range(len(CASES)))


@cache
def decided(text: str, number: int) -> Entry:
    """The entry that decides a case; many lists are asked about the same cases again and again."""
    (service, address), person, (access, *_) = CASES[number]
    return deciding(parsed(text), Question(person.name, access.type, access.name, service, address, person.labels))


@cache
def parsed(text: str) -> Sequence[Entry]:
    """Entries from their JSON text."""
    entries: Sequence[Entry] = json.loads(text)
    return entries


def here(pair: Pair) -> Iterator[Decision]:
    """For each case, what the rules say."""
    policy, callers = prepared(json.dumps(pair.tables), tuple(pair.labels))
    for place, person, (access, *_) in CASES:
        yield policy.decide(callers[person.name, place], access)


@cache
def prepared(tables: str, labels: Sequence[str]) -> tuple[Policy, Mapping[tuple[str, tuple[str, str]], Caller]]:
    """The rules in a JSON text, and each person in each place; what they have decided is remembered."""
    config = loaded(json.loads(tables))
    callers = {}
    for person in PEOPLE:
        account = Account(person.name, groups_of(person, labels)) if person.name else None
        backend = backend_of(person, config) if account else ""
        for place in PLACES:
            service, address = place
            callers[person.name, place] = Caller(account, service, parse_address(address), backend)
    return Policy(config.rules), callers


def loaded(tables: Mapping[str, Any]) -> Config:
    """The tables in a whole configuration. A password file is its last backend."""
    return parse_config(
        {
            "issuer": {
                "name": "issuer",
                "services": sorted({service for service, _ in PLACES}),
                "realm": "https://registry.example.com/auth",
            },
            "signing": {"key": "auth.key", "certificate": "auth.crt"},
            **tables,
            "backends": [*tables.get("backends", []), {"type": "htpasswd", "path": "users.htpasswd"}],
        }
    )


def groups_of(person: Person, labels: Iterable[str]) -> frozenset[str]:
    """The groups of the account: the values of the label, or pairs of the values of two."""
    choices = itertools.product(*(person.labels.get(label, ()) for label in labels))
    return frozenset("-".join(choice) for choice in choices if choice)


def backend_of(person: Person, config: Config) -> str:
    """The first backend that finds the person: an attribute of the person is a label there."""
    for backend in config.backends[:-1]:
        # Directories compare texts without regard to capitals.
        wanted = _FILTER.findall(backend.options.user.filter)
        if all(value.casefold() in map(str.casefold, person.labels.get(key, ())) for key, value in wanted):
            return backend.name
    return config.backends[-1].name


#: What comes after a list that denies something: without it, nothing shows that it does.
ANYTHING_ENTRY: Final[Entry] = {"match": {}, "actions": ["*"]}
ANYTHING_RULE: Final = {"everyone": True, "repositories": ["**"], "catalog": True, "actions": ["*"]}


def with_all_else_allowed(pair: Pair) -> Pair:
    """The pair, and behind it on each side what allows everything."""
    tables = {**pair.tables, "access": [*pair.tables["access"], ANYTHING_RULE]}
    return dataclasses.replace(pair, entries=[*pair.entries, ANYTHING_ENTRY], tables=tables)


def differences(pair: Pair, requests: Sequence[frozenset[str]] = REQUESTS) -> Iterator[tuple[str, str]]:
    """Who gets something else on the two sides, and on what."""
    for each in [with_all_else_allowed(pair), pair] if pair.denies else [pair]:
        for (_, person, asked), entry, decision in zip(CASES, there(each), here(each), strict=True):
            for access in asked:
                if access.actions in requests or access.is_catalog:
                    granted = decision.grant(access, frozenset()).actions
                    if granted_by(entry, access.actions) != granted:
                        yield person.name, access.name


def everywhere(name: str) -> set[tuple[str, str]]:
    """The person, with every repository."""
    return {(name, repository) for repository in REPOSITORIES}


#: Where the page says that something is different: who, and on what.
DOCUMENTED: Final[Mapping[int, set[tuple[str, str]]]] = {
    # {account} is a form of the name that a registry takes.
    7: {
        ("Bob", "bob__cap1/app"),
        ("alice@test.com", "alice__at_test.com/app"),
        ("bob@test.com", "bob__at_test.com/app"),
    },
    # Only the accounts that the rules name; and a dot in a regular expression is any character.
    11: {("bob@test.com", "bob/app"), *(("alice@test-com", f"alice/{name}") for name in ("app", "alice"))},
    # Capitals in groups do not count.
    12: everywhere("frank"),
    13: everywhere("frank"),
    # The same, and the value of a label is a pattern.
    14: {
        ("alice", "vip-shared/app"),
        ("frank", "dev-shared/app"),
        *(("grace", name) for name in REPOSITORIES if name.endswith("-shared/app")),
    },
    15: {
        ("frank", "api/app"),
        *(("grace", name) for name in REPOSITORIES if name.count("/") == 1),
    },
    16: {
        ("frank", "api-frontend/app"),
        *(("grace", name) for name in REPOSITORIES if re.fullmatch("[^/]*-[^/]*/[^/]*", name)),
    },
    17: {*everywhere("frank"), ("frank", "catalog")},
    18: everywhere("frank"),
}


@pytest.mark.parametrize("number", PAIRS)
def test_both_sides_allow_the_same(number: int) -> None:
    """For every caller, resource and set of actions, but for what the page says."""
    assert set(differences(PAIRS[number])) == DOCUMENTED.get(number, set())


def test_the_whole_list_allows_the_same() -> None:
    """With docker_auth's order on one side and none on the other."""
    assert set(differences(ALL)) == DOCUMENTED[7]


def test_the_entries_from_the_eleventh_on_never_decide() -> None:
    """Whoever has a name or labels meets an earlier entry."""
    assert all(found is NOTHING or ALL.entries.index(found) < 10 for found in there(ALL))


# What is different whatever the entry.


def both(number: int, person: Person, access: Access, groups: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """What the two sides of a pair grant."""
    pair, account = PAIRS[number], Account(person.name, frozenset(groups))
    question = Question(person.name, access.type, access.name, "other", "192.0.2.7", person.labels)
    decision = Policy(loaded(pair.tables).rules).decide(Caller(account, "other", None, "htpasswd"), access)
    return (
        set(granted_by(deciding(pair.entries, question), access.actions)),
        set(decision.grant(access, frozenset()).actions),
    )


def test_the_action_for_everything_becomes_the_three_actions() -> None:
    """docker_auth gives it only where an entry has it, and then as it is."""
    everything = Access("repository", "app", frozenset("*"))
    assert both(4, person("admin"), everything) == ({"*"}, set(EVERYTHING))
    assert both(9, person("alice"), everything) == (set(), {"pull"})


def test_a_catalog_that_may_only_be_pulled_is_not_shown() -> None:
    """A registry asks for `*` on it."""
    assert both(9, person("alice"), Access("registry", "catalog", frozenset("*"))) == (set(), set())


@pytest.mark.parametrize(
    "access",
    [
        Access("registry", "other", frozenset("*")),
        Access("plugin", "app", frozenset({"pull"})),
        Access("repository", "app", frozenset({"mount"})),
        Access("repository", "a/../b", frozenset({"pull"})),
        Access("repository", "App", frozenset({"pull"})),
    ],
    ids=str,
)
def test_what_no_registry_asks_for_is_allowed_there_only(access: Access) -> None:
    """Other types, other actions, and names that no registry takes."""
    assert both(4, person("admin"), access) == (set(access.actions), set())


def test_the_values_of_two_labels_are_groups_alike() -> None:
    """Where both become groups, {group} stands for both."""
    member = person("alice", group="web", project="api")
    groups = {"web", "api"}
    push = frozenset({"push"})
    assert both(15, member, Access("repository", "api/app", push), groups) == ({"push"}, {"push"})
    assert both(15, member, Access("repository", "web/app", push), groups) == (set(), {"push"})


def test_the_entry_with_two_labels_allows_nothing_as_the_reference_has_it() -> None:
    """The second placeholder has no dollar sign there."""
    (entry,) = PAIRS[16].entries
    name = entry["match"]["name"].replace("-$", "-")
    assert name.count("$") == 1
    missing = dataclasses.replace(PAIRS[16], entries=[{**entry, "match": {"name": name}}])
    assert all(found is NOTHING for found in there(missing))


def test_the_keys_of_the_last_table_exist() -> None:
    """Each key of ours that is named with its table."""
    options: Mapping[str, Any] = {"issuer": IssuerOptions, "signing": SigningOptions, "server": ServerOptions}
    named = re.findall(r"`\[(\w+)\] (\w+)`", PAGE)
    assert len(named) > 8
    for table, key in named:
        assert key in [each.name for each in dataclasses.fields(options[table])], f"[{table}] {key}"


# A change on one side is noticed.


def changed_entries(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries with one thing changed."""
    for place, entry in enumerate(entries):
        yield [*entries[:place], *entries[place + 1 :]]
        match, actions = entry["match"], entry["actions"]
        more = [{**entry, "actions": each} for each in (["pull"], ["push"], ["delete"], [*EVERYTHING], ["*"], [])]
        for key, value in match.items():
            rest = {each: match[each] for each in match if each != key}
            more.append({**entry, "match": rest})
            if key == "ip":
                others: list[Any] = ["192.0.2.1", "128.0.0.0/1"]
            elif key == "labels":
                ((label, text),) = value.items()
                others = [{f"x{label}": text}, *({label: other} for other in others_of(text))]
            else:
                others = list(others_of(value))
            more += [{**entry, "match": {**rest, key: other}} for other in others]
        for other in more:
            if other["actions"] == actions and other["match"] == match:
                continue
            if other["match"].keys() == {"account", "type"} and "name" in match:
                continue  # of the type `registry`, tokenissuer knows the catalog only
            if other["match"] == {"name": "${account}/*"}:
                continue  # without an account, that is a name with nothing before the slash
            if set(other["actions"]) == EVERYTHING and actions == ["*"] and not about_catalog(match):
                continue  # the same, but for what is no repository
            yield [*entries[:place], other, *entries[place + 1 :]]


def about_catalog(match: Entry) -> bool:
    """Whether an entry may be about the list of all repositories."""
    type_, name = match.get("type", "registry"), match.get("name", "catalog")
    return (type_, name) == ("registry", "catalog")


def others_of(text: str) -> Iterator[str]:
    """Other patterns than this one."""
    if regular_expression(text):
        yield f"/{text[1:-1]}x/"
        yield f"/x{text[1:-1]}/"
    else:
        yield f"{text}x"
        yield f"x{text}"
        if "*" in text:
            yield text.replace("*", "?")


def changed_tables(tables: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The tables with one thing changed."""
    for kind, found in tables.items():
        for place, table in enumerate(found):
            for other in changed_rules(table) if kind == "access" else changed_filters(table):
                yield {**tables, kind: [*found[:place], other, *found[place + 1 :]]}
            yield {**tables, kind: [*found[:place], *found[place + 1 :]]}


def changed_filters(backend: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A backend that finds other people."""
    for old, new in (("title", "sn"), ("Developer", "Manager")):
        yield {**backend, "user": {**backend["user"], "filter": backend["user"]["filter"].replace(old, new)}}


def changed_rules(rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One rule with one thing changed; its comment means nothing."""
    actions = {frozenset(["pull"]), frozenset(["push"]), frozenset(["delete"]), frozenset(["pull", "push"]), EVERYTHING}
    if "actions" in rule:
        now = EVERYTHING if rule["actions"] == ["*"] else frozenset(rule["actions"])
        yield from ({**rule, "actions": sorted(each)} for each in actions if each != now)
    yield {**rule, "services": ["Docker registry"]}
    yield {**rule, "effect": "allow" if "effect" in rule else "deny"}
    for key, value in rule.items():
        if key in ("actions", "effect", "comment"):
            continue
        yield {each: rule[each] for each in rule if each != key}
        for place, text in enumerate(value if isinstance(value, list) else []):
            rest = [*value[:place], *value[place + 1 :]]
            yield {**rule, key: rest}
            more = ["192.0.2.1", "128.0.0.0/1"] if key == "networks" else [f"{text}x", f"x{text}"]
            if text.endswith("/*"):
                more.append(f"{text}*")
            yield from ({**rule, key: [*value[:place], other, *value[place + 1 :]]} for other in more)


def is_noticed(pair: Pair, documented: set[tuple[str, str]]) -> bool:
    """Whether the two sides differ in more than the page says."""
    try:
        return any(each not in documented for each in differences(pair, [EVERYTHING]))
    except (ConfigurationError, ValueError, re.error):
        return True


@pytest.mark.parametrize("number", PAIRS)
def test_a_change_on_one_side_is_noticed(number: int) -> None:
    """Of an entry or of a rule."""
    pair, documented = PAIRS[number], DOCUMENTED.get(number, set())
    changed = [dataclasses.replace(pair, entries=entries) for entries in changed_entries(pair.entries)]
    changed += [dataclasses.replace(pair, tables=tables) for tables in changed_tables(pair.tables)]
    assert len(changed) > 10
    assert [each for each in changed if not is_noticed(each, documented)] == []


def test_a_change_of_the_rules_for_the_whole_list_is_noticed() -> None:
    """None of them is superfluous."""
    changed = [dataclasses.replace(ALL, tables=tables) for tables in changed_tables(ALL.tables)]
    assert [each.tables for each in changed if not is_noticed(each, DOCUMENTED[7])] == []
