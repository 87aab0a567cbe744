"""What: the rights GitLab's own registry would give, found out over the REST API."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gitlab import Project, StubGitLab, asking, serving
from tokenissuer.accounts.backend import Account
from tokenissuer.options import Secret
from tokenissuer.scope import Access
from tokenissuer_backends.gitlab import GitLabBackend
from tokenissuer_backends.gitlab.role import RegistryLevel, Viewer, Visibility, actions_by_role

P, PP, ALL = frozenset({"pull"}), frozenset({"pull", "push"}), frozenset({"pull", "push", "delete"})
NONE: frozenset[str] = frozenset()

#: Who looks at a project: role, and whether external.
VIEWERS = {
    "anonymous": None,
    "non-member": (0, False),
    "external non-member": (0, True),
    "guest": (10, False),
    "external guest": (10, True),
    "planner": (15, False),
    "reporter": (20, False),
    "security manager": (25, False),
    "developer": (30, False),
    "maintainer": (40, False),
    "owner": (50, False),
}

#: GitLab's table: visibility and registry level → rights in the order of VIEWERS.
TABLE = {
    ("public", "enabled"): (P, P, P, P, P, P, P, P, PP, ALL, ALL),
    ("internal", "enabled"): (NONE, P, NONE, P, P, P, P, P, PP, ALL, ALL),
    ("private", "enabled"): (NONE, NONE, NONE, NONE, NONE, NONE, P, P, PP, ALL, ALL),
    ("public", "private"): (NONE, NONE, NONE, NONE, NONE, NONE, P, P, PP, ALL, ALL),
    ("internal", "private"): (NONE, NONE, NONE, NONE, NONE, NONE, P, P, PP, ALL, ALL),
    ("private", "private"): (NONE, NONE, NONE, NONE, NONE, NONE, P, P, PP, ALL, ALL),
    ("public", "disabled"): (NONE,) * 11,
    ("internal", "disabled"): (NONE,) * 11,
    ("private", "disabled"): (NONE,) * 11,
}

#: Scopes of a token → what it can be used for at most.
SCOPES = {
    ("api",): ALL,
    ("read_api",): P,
    ("read_registry",): P,
    ("write_registry",): frozenset({"push"}),
    ("read_registry", "write_registry"): PP,
    ("read_api", "write_registry"): PP,
    ("read_user",): NONE,
    ("read_repository", "write_repository", "read_user"): NONE,
    ("k8s_proxy",): NONE,
}

CASES = [
    pytest.param(visibility, level, viewer, rights, id=f"{visibility}-{level}-{viewer}")
    for (visibility, level), row in TABLE.items()
    for viewer, rights in zip(VIEWERS, row, strict=True)
]


def access(name: str, *actions: str) -> Access:
    """What a client asks for."""
    return Access("repository", name, frozenset(actions or ALL))


@pytest.fixture(scope="module")
def world() -> Iterator[StubGitLab]:
    """Every kind of project, and every kind of member of each, by each way of being one."""
    with serving() as gitlab:
        for viewer, standing in VIEWERS.items():
            if standing is not None:
                user = gitlab.user(viewer.replace(" ", "_"), external=standing[1])
                for scopes in SCOPES:
                    gitlab.token(user, *scopes)
        for visibility, level in TABLE:
            for way in ("direct", "inherited", "invited"):
                members = {user.id: role for user in gitlab.users if (role := role_of(user.username))}
                gitlab.project(f"Team/{way}-{visibility}-{level}", visibility, level, **{way: members})
        yield gitlab


def role_of(username: str) -> int:
    """The role of a user of that name."""
    standing = VIEWERS[username.replace("_", " ")]
    assert standing is not None
    return standing[0]


@pytest.fixture(scope="module")
def asker(world: StubGitLab) -> Iterator[GitLabBackend]:
    """A backend that asks that GitLab."""
    with asking(world, grants=True, groups=False) as backend:
        yield backend


@pytest.fixture(scope="module")
def accounts(world: StubGitLab, asker: GitLabBackend) -> dict[tuple[str, tuple[str, ...]], Account]:
    """Everybody, logged in with each of his tokens."""
    return {
        (token.user.username.replace("_", " "), tuple(token.scopes)): asker.authenticate(
            token.user.username, token.text
        )
        for token in world.tokens
    }


@pytest.mark.parametrize("way", ["direct", "inherited", "invited"])
@pytest.mark.parametrize(("visibility", "level", "viewer", "rights"), CASES)
def test_the_whole_table_of_roles_holds_for_every_scope_and_way_of_being_a_member(
    asker: GitLabBackend,
    accounts: dict[tuple[str, tuple[str, ...]], Account],
    visibility: str,
    level: str,
    viewer: str,
    rights: frozenset[str],
    way: str,
) -> None:
    """What the role allows and the token carries, neither more nor less."""
    name = f"team/{way}-{visibility}-{level}"
    if viewer == "anonymous":
        assert asker.grants(None, access(name)) & ALL == rights
        return
    for scopes, carried in SCOPES.items():
        granted = asker.grants(accounts[viewer, scopes], access(name))
        assert granted == rights & carried, scopes


@pytest.mark.parametrize(("visibility", "level", "viewer", "rights"), CASES)
def test_the_table_itself_is_gitlabs(visibility: str, level: str, viewer: str, rights: frozenset[str]) -> None:
    """Also where GitLab would show such a viewer no project at all."""
    standing = VIEWERS[viewer]
    looking = Viewer(logged_in=False) if standing is None else Viewer(standing[0], external=standing[1])
    assert actions_by_role(Visibility(visibility), RegistryLevel(level), looking) == rights


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab to fill."""
    with serving() as gitlab:
        yield gitlab


@pytest.fixture
def backend(gitlab: StubGitLab) -> Iterator[GitLabBackend]:
    """A backend that asks it."""
    with asking(gitlab, grants=True) as backend:
        yield backend


@pytest.fixture
def alice(gitlab: StubGitLab, backend: GitLabBackend) -> Account:
    """Somebody with a token that can do everything."""
    return backend.authenticate("alice", gitlab.token(gitlab.user("alice"), "api"))


def member(gitlab: StubGitLab, path: str, level: int = 40, **more: str) -> Project:
    """A project that alice is a member of."""
    return gitlab.project(path, direct={gitlab.users[0].id: level}, **more)


@pytest.mark.parametrize(
    ("name", "rights"),
    [
        ("team/app", ALL),
        ("team/app/image", ALL),
        ("team/app/image/part", ALL),
        ("team/app/image/part/deep", NONE),
        ("team", NONE),
        ("team/other", NONE),
        ("group/sub/sub/app/image/part", ALL),
        ("group/sub/sub/app", ALL),
        ("group/sub/sub", NONE),
        ("/".join("abcdefghijklmnopqrs"), ALL),
        ("/".join("abcdefghijklmnopqrst"), NONE),
    ],
)
def test_a_project_is_found_from_its_images_as_gitlab_does(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account, name: str, rights: frozenset[str]
) -> None:
    """The repository itself, or up to two components less."""
    member(gitlab, "Team/App")
    member(gitlab, "Group/sub/Sub/app")
    member(gitlab, "/".join("abcdefghijklmnopqrs"))
    member(gitlab, "/".join("ABCDEFGHIJKLMNOPQRST"))
    assert backend.grants(alice, access(name)) == rights


@pytest.mark.parametrize(
    "name",
    [
        "team/../team/app",
        "team//app",
        "team/app/",
        "/team/app",
        "team%2fapp",
        "team/app%2f..",
        "team/.app",
        "team/app.",
        "Team/App",
        "team/app?x=y",
        "team/app#x",
        "host:5000/team/app",
        "team\\app",
        "team/app\n",
        "team/app/members/all/100",
        "5000",
        "5000/members",
        "-/5000",
        "/".join(["a"] * 20),
    ],
)
def test_a_name_that_is_no_image_of_a_project_asks_for_nothing_but_itself(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account, name: str
) -> None:
    """Names go into addresses: none may lead to another one."""
    member(gitlab, "team/app")
    gitlab.requests.clear()
    assert backend.grants(alice, access(name)) == NONE
    for request in gitlab.requests:
        assert request.path == "/jwt/auth"
    gitlab.registry_enabled = False
    assert backend.grants(alice, access("team/other")) == NONE
    gitlab.requests.clear()
    assert backend.grants(alice, access(name)) == NONE
    for request in gitlab.requests:
        assert request.path.startswith("/api/v4/projects/")
        assert request.path.removeprefix("/api/v4/projects/").count("/") == 0


def test_something_that_is_no_repository_gets_nothing(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """The catalog is not GitLab's to give."""
    assert backend.grants(alice, Access("registry", "catalog", frozenset({"*"}))) == NONE
    assert backend.grants(None, Access("registry", "catalog", frozenset({"*"}))) == NONE


def test_a_star_asks_for_everything_the_role_allows(gitlab: StubGitLab, backend: GitLabBackend, alice: Account) -> None:
    """Also where the role comes by way of an invited group."""
    gitlab.project("team/app", invited={gitlab.users[0].id: 40})
    assert backend.grants(alice, access("team/app", "*")) == ALL


def test_a_renamed_project_has_no_rights_under_its_old_name(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """GitLab's API redirects, its registry does not. The redirect is not followed."""
    project = member(gitlab, "team/new", former_paths=["team/old"])  # type: ignore[arg-type]
    assert backend.grants(alice, access("team/old")) == NONE
    assert backend.grants(None, access("team/old")) == NONE
    assert not gitlab.asked(f"/projects/{project.id}")
    assert backend.grants(alice, access("team/new")) == ALL


def test_what_answers_to_another_path_is_not_the_project(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """A server that finds projects more freely than GitLab gives nothing away."""
    project = member(gitlab, "other/app")
    gitlab.find_by_any_path = project
    assert backend.grants(alice, access("team/app")) == NONE


@pytest.mark.parametrize(
    ("admin_mode", "registry", "rights"),
    [(False, False, ALL), (True, False, NONE), (False, True, ALL), (True, True, ALL)],
)
def test_an_administrator_has_the_rights_that_the_token_has(
    gitlab: StubGitLab, backend: GitLabBackend, admin_mode: bool, registry: bool, rights: frozenset[str]
) -> None:
    """In admin mode a token without that scope is like anybody's. Only GitLab's own registry knows no such mode."""
    gitlab.admin_mode, gitlab.registry_enabled = admin_mode, registry
    gitlab.project("team/app")
    root = backend.authenticate("root", gitlab.token(gitlab.user("root", admin=True), "api"))
    assert backend.grants(root, access("team/app")) == rights


@pytest.mark.parametrize("scopes", [["api"], ["read_api", "write_registry"], ["read_registry", "write_registry"]])
@pytest.mark.parametrize("admin", [False, True])
def test_an_archived_project_can_be_read_and_no_more(
    gitlab: StubGitLab, backend: GitLabBackend, scopes: list[str], admin: bool
) -> None:
    """Not by its owner, not by an administrator."""
    alice = gitlab.user("alice", admin=admin)
    gitlab.project("team/app", direct={alice.id: 50}, archived=True)
    account = backend.authenticate("alice", gitlab.token(alice, *scopes))
    assert backend.grants(account, access("team/app")) == P


@pytest.mark.parametrize("scopes", [["api"], ["read_api", "write_registry"], ["read_registry", "write_registry"]])
def test_which_token_is_used_decides_nothing(gitlab: StubGitLab, backend: GitLabBackend, scopes: list[str]) -> None:
    """A protected repository and protected tags are protected from every kind of token."""
    alice = gitlab.user("alice")
    gitlab.project("team/app", direct={alice.id: 30}, protected_repository=True)
    gitlab.project("team/tags", direct={alice.id: 30}, protected_tags=["v*"])
    account = backend.authenticate("alice", gitlab.token(alice, *scopes))
    assert backend.grants(account, access("team/app", "pull", "push")) == NONE
    assert backend.grants(account, access("team/app", "pull")) == P
    assert backend.grants(account, access("team/tags", "pull", "push")) == P


def test_a_fine_grained_token_may_what_gitlab_says(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Its scope tells nothing."""
    alice = gitlab.user("alice")
    gitlab.project("team/app", direct={alice.id: 30})
    account = backend.authenticate("alice", gitlab.token(alice, "granular"))
    assert backend.grants(account, access("team/app", "pull", "push")) == P


def test_no_role_is_asked_for_when_the_visible_one_suffices(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """One request for a project, for most people."""
    member(gitlab, "team/app", 30)
    gitlab.requests.clear()
    assert backend.grants(alice, access("team/app", "pull", "push")) == PP
    assert len(gitlab.requests) == 1


def test_a_push_of_many_layers_asks_gitlab_a_handful_of_times(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """Answers are remembered for the account and the project."""
    member(gitlab, "team/app", 30)
    gitlab.requests.clear()
    for _ in range(20):
        assert backend.grants(alice, access("team/app", "pull", "push")) == PP
        assert backend.grants(alice, access("team/app", "pull")) == P
        assert backend.grants(alice, access("team/app/cache")) == PP
    assert len(gitlab.requests) == 3


def test_many_at_once_ask_once(gitlab: StubGitLab, backend: GitLabBackend, alice: Account) -> None:
    """They wait for the one who asks."""
    member(gitlab, "team/app", 30)
    gitlab.requests.clear()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: backend.grants(alice, access("team/app", "pull")), range(100)))
    assert set(answers) == {P}
    assert len(gitlab.requests) == 1


def test_many_at_once_find_out_together_that_the_registry_is_switched_off(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """And each gets what its role allows."""
    gitlab.registry_enabled = False
    member(gitlab, "team/app", 30)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: backend.grants(alice, access("team/app", "pull", "push")), range(8)))
    assert set(answers) == {PP}


def test_what_one_account_may_is_not_what_another_may(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Nor what one of its tokens may is what another may."""
    alice, bob = gitlab.user("alice"), gitlab.user("bob")
    gitlab.project("team/app", direct={alice.id: 40})
    full = backend.authenticate("alice", gitlab.token(alice, "api"))
    reading = backend.authenticate("alice", gitlab.token(alice, "read_api"))
    other = backend.authenticate("bob", gitlab.token(bob, "api"))
    for _ in range(2):
        assert backend.grants(full, access("team/app")) == ALL
        assert backend.grants(reading, access("team/app")) == P
        assert backend.grants(other, access("team/app")) == NONE
        assert backend.grants(None, access("team/app")) == NONE


def test_a_right_taken_away_ends_with_the_memory(gitlab: StubGitLab) -> None:
    """And without memory at once."""
    with asking(gitlab, grants=True, remember=0) as backend:
        alice = gitlab.user("alice")
        project = gitlab.project("team/app", direct={alice.id: 40})
        account = backend.authenticate("alice", gitlab.token(alice, "api"))
        assert backend.grants(account, access("team/app")) == ALL
        project.direct.clear()
        assert backend.grants(account, access("team/app")) == NONE


def test_a_token_revoked_after_the_login_grants_nothing(
    gitlab: StubGitLab, backend: GitLabBackend, alice: Account
) -> None:
    """GitLab says so when asked about the project."""
    member(gitlab, "team/app")
    gitlab.tokens[-1].revoked = True
    assert backend.grants(alice, access("team/app")) == NONE


@pytest.mark.parametrize("registry", [True, False])
def test_a_job_does_everything_in_its_own_project_and_pulls_what_gitlab_lets_it(
    gitlab: StubGitLab, backend: GitLabBackend, registry: bool
) -> None:
    """What its user may do elsewhere only GitLab's token endpoint tells."""
    gitlab.registry_enabled = registry
    alice = gitlab.user("alice")
    own = gitlab.project("Team/App", direct={alice.id: 30})
    gitlab.project("team/other", direct={alice.id: 50})
    gitlab.project("open/app", "public")
    job = backend.authenticate("gitlab-ci-token", gitlab.job(alice, own))
    assert backend.grants(job, access("team/app/image")) == ALL
    assert backend.grants(job, access("team/other")) == (P if registry else NONE)
    assert backend.grants(job, access("open/app")) == P
    assert backend.grants(job, access("team/app2")) == NONE


def test_a_job_gets_nothing_where_its_projects_registry_is_switched_off(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """The job itself does not tell; its project's list of images does."""
    alice = gitlab.user("alice")
    job = gitlab.job(alice, gitlab.project("team/app", registry="disabled", direct={alice.id: 50}))
    assert backend.grants(backend.authenticate("gitlab-ci-token", job), access("team/app")) == NONE


def test_the_configured_token_shows_what_is_public_and_nothing_else(gitlab: StubGitLab) -> None:
    """It may see more than everyone, but what it sees is not everyone's."""
    observer = gitlab.user("observer")
    gitlab.project("team/open", "public")
    gitlab.project("team/closed", direct={observer.id: 40})
    gitlab.project("team/inside", "internal")
    gitlab.project("team/members", "public", "private")
    own = Secret(gitlab.token(observer, "read_api"))
    with asking(gitlab, grants=True, token=own) as backend:
        assert backend.grants(None, access("team/open")) == P
        for name in ("team/closed", "team/inside", "team/members", "team/none"):
            assert backend.grants(None, access(name)) == NONE


def test_nothing_is_granted_or_asked_unless_the_configuration_says_so(gitlab: StubGitLab) -> None:
    """Then access rules alone decide."""
    alice = gitlab.user("alice")
    gitlab.project("team/app", "public", direct={alice.id: 50})
    with asking(gitlab) as backend:
        account = backend.authenticate("alice", gitlab.token(alice, "api"))
        gitlab.requests.clear()
        assert backend.grants(account, access("team/app")) == NONE
        assert backend.grants(None, access("team/app")) == NONE
    assert not gitlab.requests


def test_an_account_of_another_backend_gets_nothing(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """It carries nothing to ask GitLab with."""
    gitlab.project("team/app", "public")
    assert backend.grants(Account("alice"), access("team/app")) == NONE


def test_a_registry_token_is_asked_about_by_its_own_token_endpoint_without_asking_for_more(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """GitLab notes a repository for each push it grants: a pull must not ask for one."""
    alice = gitlab.user("alice")
    gitlab.project("team/app", direct={alice.id: 30})
    account = backend.authenticate("alice", gitlab.token(alice, "read_registry", "write_registry"))
    assert backend.grants(account, access("team/app", "pull")) == P
    assert not gitlab.recorded_repositories
    assert backend.grants(account, access("team/app/image", "pull", "push")) == PP
    assert gitlab.recorded_repositories == {"team/app/image"}


def test_a_registry_token_allows_nothing_once_gitlabs_registry_is_switched_off(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """Then its scopes mean nothing in GitLab either."""
    gitlab.registry_enabled = False
    alice = gitlab.user("alice")
    gitlab.project("team/app", direct={alice.id: 50})
    account = backend.authenticate("alice", gitlab.token(alice, "read_registry", "write_registry"))
    assert backend.grants(account, access("team/app")) == NONE
