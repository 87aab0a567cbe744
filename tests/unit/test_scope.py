"""Scope text ↔ `Access`."""

from __future__ import annotations

import time
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenissuer.scope
from tokenissuer.scope import MAX_ACTIONS, MAX_SCOPE_LENGTH, MAX_SCOPES, Access, parse_scopes, scope_text


def repository(name: str, *actions: str) -> Access:
    return Access("repository", name, frozenset(actions))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], (), id="none"),
        pytest.param([""], (), id="empty"),
        pytest.param([" ", "\t\n"], (), id="only-white-space"),
        pytest.param(["repository:a/b:pull"], (repository("a/b", "pull"),), id="pull"),
        pytest.param(["repository:a/b:push,pull"], (repository("a/b", "pull", "push"),), id="order-of-actions"),
        pytest.param(["repository:a/b:pull,,pull,"], (repository("a/b", "pull"),), id="empty-and-double-actions"),
        pytest.param(["repository:a/b:*"], (repository("a/b", "*"),), id="star"),
        pytest.param(["registry:catalog:*"], (Access("registry", "catalog", frozenset("*")),), id="catalog"),
        pytest.param(
            ["repository:a:pull", "repository:b:pull"],
            (repository("a", "pull"), repository("b", "pull")),
            id="repeated-parameter",
        ),
        pytest.param(
            ["repository:a:pull repository:b:pull"],
            (repository("a", "pull"), repository("b", "pull")),
            id="joined-with-a-space",
        ),
        pytest.param(
            ["repository:a:pull\trepository:b:pull  repository:a:push"],
            (repository("a", "pull", "push"), repository("b", "pull")),
            id="overlap-keeps-the-first-place",
        ),
        pytest.param(["repository:host:5000/a/b:pull"], (repository("host:5000/a/b", "pull"),), id="port-in-the-name"),
        pytest.param(["repository(plugin):x:pull"], (repository("x", "pull"),), id="class-is-dropped"),
        pytest.param(["repository::pull"], (repository("", "pull"),), id="empty-name"),
        pytest.param(["repository:x:"], (repository("x"),), id="no-actions"),
        pytest.param(["thing:x:pull"], (Access("thing", "x", frozenset({"pull"})),), id="unknown-type-is-read"),
        pytest.param(["repository:x:destroy"], (repository("x", "destroy"),), id="unknown-action-is-read"),
        pytest.param(
            ["repository:x:PULL,__class__,pu-ll,pull"], (repository("x", "pull"),), id="malformed-actions-are-dropped"
        ),
        pytest.param([f"repository:x:{'a' * 33},pull"], (repository("x", "pull"),), id="long-action-is-dropped"),
    ],
)
def test_scopes_are_read(values: list[str], expected: tuple[Access, ...]) -> None:
    """Every form that clients send gives one entry for each resource, in the order asked."""
    assert parse_scopes(values) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("repository", id="one-part"),
        pytest.param("repository:x", id="two-parts"),
        pytest.param(":x:pull", id="no-type"),
        pytest.param("Repository:x:pull", id="upper-case-type"),
        pytest.param("repository(:x:pull", id="open-class"),
        pytest.param("repository(a)(b):x:pull", id="two-classes"),
        pytest.param("repository():x:pull", id="empty-class"),
        pytest.param("r\N{LATIN SMALL LETTER E WITH ACUTE}p:x:pull", id="non-ascii-type"),
        pytest.param("repository\n:x:pull", id="type-with-a-newline"),
        pytest.param("::", id="only-colons"),
        pytest.param(f"repository:{'x' * MAX_SCOPE_LENGTH}:pull", id="too-long"),
    ],
)
def test_what_is_no_scope_is_dropped_and_the_rest_is_read(text: str) -> None:
    """A scope that cannot be understood costs nobody the ones beside it."""
    assert parse_scopes([f"{text} repository:good:pull"]) == (repository("good", "pull"),)


def test_at_most_so_many_resources_are_read() -> None:
    """The first ones count; a later scope for one of them still joins it."""
    asked = [f"repository:r{n}:pull" for n in range(MAX_SCOPES + 5)]
    found = parse_scopes([*asked, "repository:r0:push"])
    assert len(found) == MAX_SCOPES
    assert found[0] == repository("r0", "pull", "push")
    assert found[-1].name == f"r{MAX_SCOPES - 1}"


def test_at_most_so_many_actions_are_read() -> None:
    """Of one resource, in one scope or in many; those that registries have still join the ones before them."""
    invented = [f"{first}{second}" for first in "abcdefgh" for second in "abcdefgh"]
    assert len(parse_scopes([f"repository:a:{','.join(invented)}"])[0].actions) == MAX_ACTIONS
    (found,) = parse_scopes(["repository:a:pull,pull", *(f"repository:a:pull,{action}" for action in invented)])
    assert len(found.actions) == MAX_ACTIONS
    assert "pull" in found.actions


def test_a_resource_that_is_repeated_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 64 KiB, which anybody may send, would cost seconds."""
    made = []
    monkeypatch.setattr(tokenissuer.scope, "Access", lambda *values: made.append(values))
    parse_scopes(["repository:a:pull " * 3000])
    assert len(made) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("a", True, id="one-letter"),
        pytest.param("a/b/c", True, id="three-segments"),
        pytest.param("a-b/c__d/e.f/g--h/i_j", True, id="separators"),
        pytest.param("0/1", True, id="digits"),
        pytest.param("host:5000/a", True, id="host-and-port"),
        pytest.param("x" * 255, True, id="255-characters"),
        pytest.param("x" * 256, False, id="256-characters"),
        pytest.param("", False, id="empty"),
        pytest.param("..", False, id="dots"),
        pytest.param("a/..", False, id="dots-at-the-end"),
        pytest.param("a/../b", False, id="dots-between"),
        pytest.param("a/./b", False, id="dot-between"),
        pytest.param("a//b", False, id="two-slashes"),
        pytest.param("/a", False, id="slash-first"),
        pytest.param("a/", False, id="slash-last"),
        pytest.param("A", False, id="upper-case"),
        pytest.param("a%2fb", False, id="percent"),
        pytest.param("a%2e%2e", False, id="percent-dots"),
        pytest.param("a\\b", False, id="backslash"),
        pytest.param("a\n", False, id="newline-last"),
        pytest.param("a\0", False, id="nul"),
        pytest.param("a b", False, id="space"),
        pytest.param("*", False, id="star"),
        pytest.param("a/**", False, id="two-stars"),
        pytest.param("{account}", False, id="placeholder"),
        pytest.param("-a", False, id="separator-first"),
        pytest.param("a-", False, id="separator-last"),
        pytest.param("a___b", False, id="three-underscores"),
        pytest.param("a..b", False, id="two-dots"),
        pytest.param("a._b", False, id="mixed-separators"),
        pytest.param("host:5000", False, id="port-without-path"),
        pytest.param("a/host:5000/b", False, id="port-not-in-the-first-segment"),
        pytest.param("host:123456/a", False, id="port-of-six-digits"),
        pytest.param("\N{LATIN SMALL LETTER E WITH ACUTE}", False, id="non-ascii-letter"),
        pytest.param("\N{ARABIC-INDIC DIGIT ONE}", False, id="non-ascii-digit"),
        pytest.param("\N{FULLWIDTH LATIN SMALL LETTER A}", False, id="full-width-letter"),
    ],
)
def test_only_a_registrys_own_names_are_repositories(name: str, expected: bool) -> None:
    """What a registry's routes would not take never meets an access rule."""
    assert repository(name, "pull").is_repository is expected


@pytest.mark.parametrize("type_", ["registry", "thing", "repositories"])
def test_another_type_is_no_repository(type_: str) -> None:
    """A good name is not enough."""
    assert not Access(type_, "a", frozenset({"pull"})).is_repository


@pytest.mark.parametrize(
    ("type_", "name", "expected"),
    [("registry", "catalog", True), ("repository", "catalog", False), ("registry", "catalog2", False)],
)
def test_the_catalog_is_one_resource(type_: str, name: str, expected: bool) -> None:
    """Only `registry:catalog` is the list of all repositories; a repository may be called `catalog`."""
    assert Access(type_, name, frozenset("*")).is_catalog is expected


def test_a_claim_has_type_name_and_sorted_actions() -> None:
    """The entry of the token's `access` claim has these three members and no other."""
    for actions in permutations(("push", "pull", "delete")):
        claim = repository("a", *actions).claim()
        assert claim == {"type": "repository", "name": "a", "actions": ["delete", "pull", "push"]}


def test_hostile_names_are_refused_in_linear_time() -> None:
    """Names made to send a regular expression backwards cost no more than plain ones."""

    def cost(name: str) -> float:
        best = 9.9
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                _ = repository(name, "pull").is_repository
            best = min(best, time.perf_counter() - start)
        return best

    plain = cost("a" * 255)
    for hostile in ("a" * 254 + "!", "a-" * 127 + "!", "a__" * 84 + "!", "a/" * 127, "-" * 255, "1:" * 127):
        assert cost(hostile) < 50 * plain


NAMES = st.from_regex(r"\A[a-z0-9]{1,8}([._/-][a-z0-9]{1,8}){0,3}\Z") | st.text(
    st.characters(exclude_characters=" \t\r\n\f\v", exclude_categories=["Cs"]), max_size=20
)
ACCESSES = st.builds(
    Access,
    type=st.sampled_from(["repository", "registry", "thing"]),
    name=NAMES,
    actions=st.frozensets(st.sampled_from(["pull", "push", "delete", "*", "search"])),
)


@settings(deadline=None)
@given(st.lists(ACCESSES, max_size=MAX_SCOPES, unique_by=lambda access: (access.type, access.name)))
def test_what_is_written_is_read_again(accesses: list[Access]) -> None:
    """`parse_scopes` undoes `scope_text`."""
    assert parse_scopes([scope_text(accesses)]) == tuple(accesses)


@settings(deadline=None)
@given(st.lists(st.text(max_size=80), max_size=5))
def test_any_text_is_read_without_an_exception(values: list[str]) -> None:
    """Whatever comes, there is one entry for each resource, and reading is idempotent."""
    found = parse_scopes(values)
    assert len({(access.type, access.name) for access in found}) == len(found) <= MAX_SCOPES
    assert parse_scopes([scope_text(found)]) == found
