"""The stub answers in the shapes that GitLab's published OpenAPI description gives for these routes.

The tables are written after that description (doc/api/openapi in GitLab's source): names and types of the fields that
matter here, in own words. `/jwt/auth` is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.support.gitlab import StubGitLab, serving

Shape = Mapping[str, tuple[type | None, ...]]

TEXT, NUMBER, TRUTH, LIST, TABLE = (str, None), (int, None), (bool, None), (list, None), (dict, None)

USER_BASIC: Shape = {
    "id": NUMBER,
    "username": TEXT,
    "public_email": TEXT,
    "name": TEXT,
    "state": TEXT,
    "locked": TRUTH,
    "avatar_url": TEXT,
    "avatar_path": TEXT,
    "custom_attributes": LIST,
    "web_url": TEXT,
}
USER_PUBLIC: Shape = {
    **USER_BASIC,
    "bio": TEXT,
    "bot": TEXT,
    "can_create_group": TRUTH,
    "can_create_project": TRUTH,
    "commit_email": TEXT,
    "confirmed_at": TEXT,
    "created_at": TEXT,
    "current_sign_in_at": TEXT,
    "email": TEXT,
    "external": TRUTH,
    "identities": LIST,
    "location": TEXT,
    "private_profile": TRUTH,
    "projects_limit": NUMBER,
    "two_factor_enabled": TRUTH,
}
MEMBER: Shape = {
    **USER_BASIC,
    "access_level": NUMBER,
    "created_at": TEXT,
    "created_by": TABLE,
    "expires_at": TEXT,
    "member_role": TABLE,
    "membership_state": TEXT,
}
TOKEN: Shape = {
    "id": NUMBER,
    "name": TEXT,
    "revoked": TRUTH,
    "created_at": TEXT,
    "description": TEXT,
    "scopes": LIST,
    "user_id": NUMBER,
    "last_used_at": TEXT,
    "active": TRUTH,
    "expires_at": TEXT,
    "last_used_ips": LIST,
}
PROJECT_BASIC: Shape = {
    "id": NUMBER,
    "description": TEXT,
    "name": TEXT,
    "name_with_namespace": TEXT,
    "path": TEXT,
    "path_with_namespace": TEXT,
    "created_at": TEXT,
    "default_branch": TEXT,
    "topics": LIST,
    "web_url": TEXT,
    "http_url_to_repo": TEXT,
    "star_count": NUMBER,
    "last_activity_at": TEXT,
    "namespace": TABLE,
}
PROJECT: Shape = {
    **PROJECT_BASIC,
    "visibility": TEXT,
    "archived": TRUTH,
    "empty_repo": TRUTH,
    "owner": TABLE,
    "container_registry_enabled": TRUTH,
    "container_registry_access_level": TEXT,
    "container_registry_image_prefix": TEXT,
    "container_expiration_policy": TABLE,
    "shared_with_groups": LIST,
    "permissions": TABLE,
}
GROUP: Shape = {
    "id": NUMBER,
    "web_url": TEXT,
    "name": TEXT,
    "path": TEXT,
    "full_path": TEXT,
    "visibility": TEXT,
    "parent_id": NUMBER,
}
JOB: Shape = {
    "id": NUMBER,
    "status": TEXT,
    "stage": TEXT,
    "name": TEXT,
    "ref": TEXT,
    "web_url": TEXT,
    "pipeline": TABLE,
    "user": TABLE,
    "commit": TABLE,
}
METADATA: Shape = {"version": TEXT, "revision": TEXT, "kas": TABLE, "enterprise": TRUTH}


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab with one of everything."""
    with serving() as gitlab:
        alice = gitlab.user("alice")
        gitlab.token(alice, "api")
        gitlab.job(alice, gitlab.project("Team/App", "public", direct={alice.id: 30}))
        gitlab.group("Team", {alice.id: 30})
        yield gitlab


def ask(gitlab: StubGitLab, path: str, header: str) -> Any:
    """The JSON at a path, as somebody."""
    secret = {"PRIVATE-TOKEN": gitlab.tokens[0].text, "JOB-TOKEN": gitlab.jobs[0].token, "": ""}[header]
    connection = HTTPConnection("127.0.0.1", gitlab.port, timeout=10)
    try:
        connection.request("GET", f"/api/v4{path}", headers={header: secret} if header else {})
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        return body
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "header", "shape"),
    [
        ("/version", "PRIVATE-TOKEN", METADATA),
        ("/metadata", "PRIVATE-TOKEN", METADATA),
        ("/user", "PRIVATE-TOKEN", USER_PUBLIC),
        ("/users?username=alice", "", USER_BASIC),
        ("/personal_access_tokens/self", "PRIVATE-TOKEN", TOKEN),
        ("/groups?min_access_level=10", "PRIVATE-TOKEN", GROUP),
        ("/projects/team%2Fapp", "PRIVATE-TOKEN", PROJECT),
        ("/projects/team%2Fapp", "", PROJECT_BASIC),
        ("/projects/5000/members/all/100", "PRIVATE-TOKEN", MEMBER),
        ("/job", "JOB-TOKEN", JOB),
    ],
)
def test_every_field_is_one_that_gitlab_describes_and_of_its_type(
    gitlab: StubGitLab, path: str, header: str, shape: Shape
) -> None:
    """A field of the stub's own invention would prove nothing."""
    found = ask(gitlab, path, header)
    rows = found if isinstance(found, list) else [found]
    assert rows
    for row in rows:
        for name, value in row.items():
            assert name in shape, name
            # In JSON, true is no number.
            types = shape[name] if not isinstance(value, bool) else tuple({*shape[name]} - {int})
            assert (None if value is None else type(value)) in types, name


def test_associations_hold_groups_and_projects(gitlab: StubGitLab) -> None:
    """The description names another entity for this route; GitLab's source gives two lists."""
    found = ask(gitlab, "/personal_access_tokens/self/associations?min_access_level=10", "PRIVATE-TOKEN")
    assert {name: type(value) for name, value in found.items()} == {"groups": list, "projects": list}
    assert found["groups"][0]["web_url"].endswith("/groups/Team")


def test_the_list_of_images_is_a_list(gitlab: StubGitLab) -> None:
    """Also to the anonymous caller, for a public project."""
    assert ask(gitlab, "/projects/team%2Fapp/registry/repositories?per_page=1", "") == []
