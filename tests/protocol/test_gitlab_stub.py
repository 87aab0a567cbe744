"""The stub answers in the shapes that are recorded for three versions of GitLab.

The files below `tests/support/gitlab_shapes` follow GitLab's own API documentation of each version, with other values:
what it shows for a member of a project in a group, without the fields that need a parameter, another role or a paid
tier. Where the documentation of a version does not tell, the shape is the smaller one. `/jwt/auth` is not recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.support.gitlab import SHAPES, StubGitLab, asking, recorded, serving, shape_file
from tokenissuer.scope import Access

VERSIONS = ("15.11.3", "17.11.2-ee", "19.2.0-ee")

#: Recorded answer → who asks what.
ROUTES = {
    "user": ("/user", "alice"),
    "user_admin": ("/user", "root"),
    "users": ("/users?username=alice", ""),
    "token": ("/personal_access_tokens/self", "alice"),
    "associations": ("/personal_access_tokens/self/associations?min_access_level=10", "alice"),
    "groups": ("/groups?min_access_level=10", "alice"),
    "group_member": ("/groups/team/members/all/100", "alice"),
    "project": ("/projects/team%2Fapp", "alice"),
    "project_anonymous": ("/projects/team%2Fapp", ""),
    "member": ("/projects/5000/members/all/100", "alice"),
    "job": ("/job", "job"),
    "metadata": ("/metadata", "alice"),
    "repositories": ("/projects/team%2Fapp/registry/repositories?per_page=1", ""),
}

#: Not in versions before 17.4.
NEW = {"associations"}

CASES = [
    (version, endpoint)
    for version in VERSIONS
    for endpoint in ROUTES
    if not (version.startswith("15.") and endpoint in NEW)
]


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab with one of everything."""
    with serving() as gitlab:
        alice = gitlab.user("alice")
        gitlab.token(alice, "api")
        gitlab.token(gitlab.user("root", admin=True), "api")
        gitlab.job(alice, gitlab.project("Team/App", "public", direct={alice.id: 30}))
        gitlab.group("Team", {alice.id: 30})
        gitlab.recorded_repositories.add("team/app/image")
        yield gitlab


def ask(gitlab: StubGitLab, path: str, name: str) -> tuple[int, Any]:
    """Status and JSON of an answer to somebody."""
    headers = {
        "alice": {"PRIVATE-TOKEN": gitlab.tokens[0].text},
        "root": {"PRIVATE-TOKEN": gitlab.tokens[1].text},
        "job": {"JOB-TOKEN": gitlab.jobs[0].token},
        "": {},
    }
    connection = HTTPConnection("127.0.0.1", gitlab.port, timeout=10)
    try:
        connection.request("GET", f"/api/v4{path}", headers=headers[name])
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def differences(shape: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where field names or JSON types are not the recorded ones.

    A recorded null says nothing of the type; an element of a list is like the first one that is recorded.
    """
    if shape is None:
        return
    # In JSON, true is no number.
    if type(found) is not type(shape):
        yield f"{where}: {type(found).__name__} instead of {type(shape).__name__}"
    elif isinstance(shape, dict):
        for name in sorted(shape.keys() ^ found.keys()):
            yield f"{where}.{name}: {'missing' if name in shape else 'invented'}"
        for name in shape.keys() & found.keys():
            yield from differences(shape[name], found[name], f"{where}.{name}")
    elif isinstance(shape, list) and shape:
        for element in found:
            yield from differences(shape[0], element, f"{where}[]")


@pytest.mark.parametrize(("version", "endpoint"), CASES)
def test_an_answer_has_the_fields_and_types_of_the_recorded_one(
    gitlab: StubGitLab, version: str, endpoint: str
) -> None:
    """Neither more fields nor fewer, also in tables within the answer."""
    gitlab.version = version
    shape = json.loads(shape_file(version, endpoint).read_text())
    status, found = ask(gitlab, *ROUTES[endpoint])
    assert status == 200
    assert list(differences(shape, found)) == []
    assert not isinstance(shape, list) or len(found) == 1


def test_every_recorded_answer_is_asked_for() -> None:
    """A file that no case reads would rot unseen."""
    assert {path for path in SHAPES.rglob("*") if path.is_file()} == {shape_file(*case) for case in CASES}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_field_that_gitlab_does_not_have_cannot_be_served(version: str) -> None:
    """A field of the stub's own invention would prove nothing."""
    assert recorded(version, "token", id=5)["id"] == 5
    with pytest.raises(AssertionError, match="no field owner"):
        recorded(version, "token", owner="alice")


def test_a_version_without_recorded_answers_is_named() -> None:
    """Else a test would ask another version than it says."""
    with pytest.raises(AssertionError, match=r"'token' is recorded for GitLab 12\.0\.1"):
        recorded("12.0.1", "token")


@pytest.mark.parametrize(
    ("shape", "found", "difference"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, ".b: invented"),
        ({"a": 1}, {}, ".a: missing"),
        ({"a": {"b": "c"}}, {"a": {"b": 1}}, ".a.b: int instead of str"),
        ({"a": 1}, {"a": True}, ".a: bool instead of int"),
        ({"a": 1}, {"a": None}, ".a: NoneType instead of int"),
        ([{"a": 1}], [{"a": 1}, {"a": "1"}], "[].a: str instead of int"),
        ({"a": None, "b": []}, {"a": {"c": 1}, "b": [1]}, None),
    ],
)
def test_the_comparison_sees_differences(shape: Any, found: Any, difference: str | None) -> None:
    """Else the answers above would pass whatever they are."""
    assert list(differences(shape, found)) == ([] if difference is None else [difference])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_older_name_of_a_route_gives_the_same_answer(gitlab: StubGitLab, version: str) -> None:
    """Since GitLab 15.5 `/version` says all that `/metadata` does."""
    gitlab.version = version
    answer = ask(gitlab, "/version", "alice")
    assert answer == ask(gitlab, "/metadata", "alice")
    assert answer[1]["version"] == version


def test_a_version_before_associations_does_not_have_the_route(gitlab: StubGitLab) -> None:
    """They came with GitLab 17.4."""
    gitlab.version = "15.11.3"
    assert ask(gitlab, *ROUTES["associations"]) == (404, {"message": "404 Not Found"})


@pytest.mark.parametrize("has_registry", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_somebody_logs_in_and_pushes_with_every_version(gitlab: StubGitLab, version: str, has_registry: bool) -> None:
    """Whether GitLab's own registry gives the rights or the API shows them."""
    gitlab.version, gitlab.registry_enabled = version, has_registry
    with asking(gitlab, grants=True) as backend:
        account = backend.authenticate("alice", gitlab.tokens[0].text)
        assert account.name == "alice"
        assert account.groups == {"team"}
        wanted = Access("repository", "team/app", frozenset({"pull", "push", "delete"}))
        assert backend.grants(account, wanted) == {"pull", "push"}
    assert (gitlab.asked("/api/v4/projects/") > 0) is not has_registry
