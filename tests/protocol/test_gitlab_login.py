"""Who: whose token it is, and whether that is who was named."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.support.gitlab import Handler, Reply, StubGitLab, answers, asking, cut, cut_body, serving
from tokenissuer.accounts.backend import Account, Backend, WantedGroups
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, UnknownAccount
from tokenissuer.options import Secret
from tokenissuer.testing import BackendContract
from tokenissuer_backends.gitlab import GitLabBackend

HTML = b"<html><body>502 Bad Gateway</body></html>"


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab to fill."""
    with serving() as gitlab:
        yield gitlab


@pytest.fixture
def backend(gitlab: StubGitLab) -> Iterator[GitLabBackend]:
    """A backend that asks it."""
    with asking(gitlab) as backend:
        yield backend


def only(names: frozenset[str]) -> WantedGroups:
    """No groups but these."""
    return WantedGroups(names, others=False, others_deny=False)


class TestGitLab(BackendContract):
    """What holds for every backend."""

    stub: StubGitLab
    username, password = "alice", "glpat-AliceAliceAliceAlice"
    others: dict[str, str] = {  # noqa: RUF012 (the contract declares it so)
        "Bob": "glpat-BobBobBobBobBobBob01",
        "bot_7": "glpat-BotBotBotBotBotBot07",
    }

    @pytest.fixture
    def gitlab(self) -> Iterator[StubGitLab]:
        """Three accounts, each with a group of its own."""
        with serving() as gitlab:
            for number, (name, text) in enumerate([(self.username, self.password), *self.others.items()]):
                user = gitlab.user(name)
                gitlab.token(user, "read_api")
                gitlab.tokens[-1].text = text
                gitlab.group(f"group{number}", {user.id: 30})
            yield gitlab

    @pytest.fixture
    def backend(self, gitlab: StubGitLab) -> Iterator[Backend]:
        """A backend that gives up soon."""
        self.stub = gitlab
        with asking(gitlab, timeout=1) as backend:
            yield backend

    def outages(self, backend: Backend) -> Iterable[AbstractContextManager[object]]:
        """Everything that is no answer of GitLab's, or none that decides."""
        yield self.stub.broken(cut)
        yield self.stub.broken(cut_body)
        yield self.stub.broken(answers(502, HTML, Content_Type="text/html"))
        yield self.stub.broken(answers(502, b""))
        yield self.stub.broken(answers(500, b'{"message":"500 Internal Server Error"}'))
        yield self.stub.broken(answers(200, HTML))
        yield self.stub.broken(answers(200, b"[]"))
        yield self.stub.broken(answers(200, b"{}"))
        # A proxy with a login page, or a ban of our address, is not GitLab speaking about a token.
        yield self.stub.broken(answers(401, HTML))
        yield self.stub.broken(answers(403, b"Forbidden\n"))
        yield self.stub.broken(answers(404, HTML))


@pytest.mark.parametrize("typed", ["alice", "Alice", "ALICE"])
def test_the_name_is_compared_without_case_and_taken_from_gitlab(
    gitlab: StubGitLab, backend: GitLabBackend, typed: str
) -> None:
    """Rules and logs see one spelling, whatever was typed."""
    token = gitlab.token(gitlab.user("Alice"), "api")
    assert backend.authenticate(typed, token).name == "Alice"


@pytest.mark.parametrize("scopes", [["api"], ["read_api"], ["read_user"], ["read_registry", "write_registry"]])
def test_somebody_elses_token_is_a_wrong_login(gitlab: StubGitLab, backend: GitLabBackend, scopes: list[str]) -> None:
    """GitLab itself ignores the user name; here it decides what rules apply, so it must be the owner's."""
    gitlab.user("alice")
    token = gitlab.token(gitlab.user("mallory"), *scopes)
    for name in ("alice", "nobody", "mallor"):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, token)


@pytest.mark.parametrize("name", ["al\N{KELVIN SIGN}e", "al\N{LATIN SMALL LETTER DOTLESS I}ke"])
def test_letters_that_only_fold_to_the_name_are_not_the_name(
    gitlab: StubGitLab, backend: GitLabBackend, name: str
) -> None:
    """The Kelvin sign is no k, though its lower case is."""
    token = gitlab.token(gitlab.user("alke"), "api")
    with pytest.raises(UnknownAccount):
        backend.authenticate(name, token)
    assert not gitlab.requests


@pytest.mark.parametrize("scopes", [["read_registry"], ["write_registry"], ["read_registry", "write_registry"]])
def test_tokens_with_registry_scopes_only_log_in(gitlab: StubGitLab, backend: GitLabBackend, scopes: list[str]) -> None:
    """Such a token tells only its owner's number; the name is looked up without it."""
    gitlab.user("bob")
    token = gitlab.token(gitlab.user("Alice"), *scopes)
    assert backend.authenticate("alice", token).name == "Alice"
    (lookup,) = [request for request in gitlab.requests if request.path == "/api/v4/users"]
    assert "private-token" not in lookup.headers


def test_where_users_cannot_be_looked_up_the_refusal_names_the_scope_to_add(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """It says the same for everybody's name, so that it tells of no account."""
    gitlab.anonymous_users = False
    gitlab.user("bob")
    token = gitlab.token(gitlab.user("alice"), "read_registry")
    sentences = set()
    for name in ("alice", "bob", "nobody"):
        with pytest.raises(InvalidCredentials) as refusal:
            backend.authenticate(name, token)
        sentences.add(refusal.value.description)
    (sentence,) = sentences
    assert "read_user" in sentence


def test_the_configured_token_looks_users_up_where_the_anonymous_caller_may_not(gitlab: StubGitLab) -> None:
    """Registry tokens work on a closed GitLab too."""
    gitlab.anonymous_users = False
    own = gitlab.token(gitlab.user("observer"), "read_api")
    token = gitlab.token(gitlab.user("alice"), "read_registry")
    with asking(gitlab, token=Secret(own)) as backend:
        assert backend.authenticate("alice", token).name == "alice"


def test_that_the_configured_token_has_ended_is_an_outage(gitlab: StubGitLab) -> None:
    """Nobody is told to make another token of their own."""
    gitlab.anonymous_users = False
    own = gitlab.token(gitlab.user("observer"), "read_api")
    token = gitlab.token(gitlab.user("alice"), "read_registry")
    with asking(gitlab, token=Secret(own)) as backend:
        next(each for each in gitlab.tokens if each.text == own).expired = True
        with pytest.raises(BackendUnavailable) as caught:
            backend.authenticate("alice", token)
        assert "refuses the configured token" in caught.value.reason
        assert own not in caught.value.reason


@pytest.mark.parametrize(
    "bad",
    [{"expired": True}, {"revoked": True}, {"oauth": True}, {"inactive": True}],
    ids=["expired", "revoked", "another kind", "inactive"],
)
def test_a_token_that_gitlab_refuses_is_refused_with_what_is_needed(
    gitlab: StubGitLab, backend: GitLabBackend, bad: dict[str, bool]
) -> None:
    """The user learns what to make, nobody learns what was wrong."""
    token = gitlab.token(gitlab.user("alice"), "api", **bad)
    with pytest.raises(InvalidCredentials) as refusal:
        backend.authenticate("alice", token)
    assert "personal access token" in refusal.value.description
    assert token not in refusal.value.reason


@pytest.mark.parametrize("state", ["blocked", "deactivated", "ldap_blocked", "banned"])
@pytest.mark.parametrize("scope", ["api", "read_registry"])
def test_a_user_who_may_not_use_gitlab_may_not_log_in(
    gitlab: StubGitLab, backend: GitLabBackend, state: str, scope: str
) -> None:
    """Whether GitLab refuses the token or only says so."""
    token = gitlab.token(gitlab.user("alice", state=state), scope)
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", token)


def test_every_refusal_says_the_same(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """The password of an account, a made-up token, somebody else's token, an unknown name: one sentence for all."""
    alice = gitlab.user("alice", password="correct horse battery staple")
    blocked = gitlab.token(gitlab.user("carol", state="blocked"), "api")
    token = gitlab.token(alice, "api")
    gitlab.token(alice, "api", expired=True)
    attempts = [
        ("alice", "correct horse battery staple"),
        ("alice", "Tr0ub4dor"),
        ("alice", "glpat-00000000000000000000"),
        ("alice", gitlab.tokens[-1].text),
        ("nobody", token),
        ("nobody", "glpat-00000000000000000000"),
        ("carol", blocked),
        ("gitlab-ci-token", token),
    ]
    sentences = set()
    for name, password in attempts:
        with pytest.raises(InvalidCredentials) as refusal:
            backend.authenticate(name, password)
        sentences.add(refusal.value.description)
    assert len(sentences) == 1


def test_a_password_that_can_be_no_token_is_not_shown_to_gitlab(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """It has no business there, and a line end in it would be a header of its own."""
    for password in ("pass phrase", "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss", 'a"b', "x\u2028y", "{}"):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", password)
    assert not gitlab.requests


@pytest.mark.parametrize("name", ["robot$ci", "a b", "a/b", "alice@example.com", "..%2f", "x" * 256])
def test_a_name_no_gitlab_user_can_have_is_left_to_the_next_backend(
    gitlab: StubGitLab, backend: GitLabBackend, name: str
) -> None:
    """GitLab is not asked about it."""
    with pytest.raises(UnknownAccount):
        backend.authenticate(name, "glpat-00000000000000000000")
    assert not gitlab.requests


def test_project_access_tokens_log_in_under_the_name_of_their_bot(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """GitLab makes a user for each."""
    token = gitlab.token(gitlab.user("project_42_bot_0a1b2c"), "read_api")
    assert backend.authenticate("project_42_bot_0a1b2c", token).name == "project_42_bot_0a1b2c"
    with pytest.raises(InvalidCredentials):
        backend.authenticate("my-token", token)


def test_a_running_job_logs_in_as_its_user_and_is_marked_as_a_job(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """What the user may do besides is not for every job that runs in his name."""
    token = gitlab.job(gitlab.user("Alice"), gitlab.project("team/app"))
    account = backend.authenticate("gitlab-ci-token", token)
    assert account.name == "Alice"
    assert account.delegated
    assert not account.groups


@pytest.mark.parametrize("status", ["success", "failed", "canceled", "pending"])
def test_a_job_that_does_not_run_is_refused(gitlab: StubGitLab, backend: GitLabBackend, status: str) -> None:
    """Its token is dead."""
    token = gitlab.job(gitlab.user("alice"), gitlab.project("team/app"), status)
    with pytest.raises(InvalidCredentials):
        backend.authenticate("gitlab-ci-token", token)


def test_a_job_token_is_good_under_no_other_name(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Least of all its user's."""
    token = gitlab.job(gitlab.user("alice"), gitlab.project("team/app"))
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", token)


def test_groups_are_full_paths_and_compared_without_case(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """A rule may name them as GitLab shows them."""
    alice = gitlab.user("alice")
    gitlab.group("Team/Backend", {alice.id: 10})
    gitlab.group("everyone", {}, visibility="public")
    account = backend.authenticate("alice", gitlab.token(alice, "read_api"))
    assert account.groups == {"team/backend"}
    assert account.group_named("Team/Backend") is not None
    assert account.group_named("backend") is None


def test_a_credential_that_does_not_show_groups_says_so(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Denials for groups then hold: nobody gets past one with a job or a token of fewer scopes."""
    backend.groups_wanted = WantedGroups(others_deny=False)
    alice = gitlab.user("alice")
    gitlab.group("interns", {alice.id: 10})
    job = backend.authenticate("gitlab-ci-token", gitlab.job(alice, gitlab.project("team/app")))
    assert not job.groups_known
    assert backend.authenticate("alice", gitlab.token(alice, "read_registry")).groups_known
    gitlab.associations = False
    assert not backend.authenticate("alice", gitlab.token(alice, "read_registry")).groups_known


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 250])
@pytest.mark.parametrize("scope", ["read_api", "read_registry"])
def test_every_page_of_groups_is_read(gitlab: StubGitLab, backend: GitLabBackend, count: int, scope: str) -> None:
    """Twenty is what GitLab gives without being asked for more."""
    alice = gitlab.user("alice")
    for number in range(count):
        gitlab.group(f"group-{number}", {alice.id: 30})
    account = backend.authenticate("alice", gitlab.token(alice, scope))
    assert account.groups == {f"group-{number}" for number in range(count)}


def test_who_is_in_more_groups_than_anybody_reads_has_none_that_is_known(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """Part of the groups is not the groups: a denial may be for the missing one."""
    alice = gitlab.user("alice")
    for number in range(5001):
        gitlab.group(f"group-{number}", {alice.id: 30})
    account = backend.authenticate("alice", gitlab.token(alice, "read_api"))
    assert (account.groups, account.groups_known) == (frozenset(), False)


def test_groups_are_asked_for_only_where_a_rule_names_one(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """A list that fails, or is long, is no reason to refuse anybody else."""
    alice = gitlab.user("alice")
    gitlab.group("team", {alice.id: 30})
    token = gitlab.token(alice, "api")
    backend.groups_wanted = WantedGroups(others=False, others_deny=False)
    assert backend.authenticate("alice", token).groups == frozenset()
    assert not gitlab.asked("/groups")
    backend.groups_wanted = WantedGroups()
    assert backend.authenticate("alice", token).groups == {"team"}


def test_few_groups_that_rules_name_are_asked_for_one_by_one(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """A group that is invited to another is in no list of its members' groups, and a denial may name it."""
    alice = gitlab.user("alice")
    gitlab.group("Team/Sub", {alice.id: 30})
    gitlab.group("invited", {}).invited = {alice.id: 20}
    gitlab.group("other", {})
    gitlab.group("minimal", {alice.id: 5})
    backend.groups_wanted = only(
        frozenset({"Team/sub", "invited", "other", "minimal", "none", "cn=people,dc=x", "a//b", "?x"})
    )
    account = backend.authenticate("alice", gitlab.token(alice, "read_api"))
    assert account.groups == {"team/sub", "invited"}
    assert account.groups_known
    assert gitlab.asked("/groups/") == 5
    # Lists leave invited groups out, and a path of digits would be a group's number.
    for wanted in ({f"group{number}" for number in range(21)}, {"2024"}):
        backend.groups_wanted = only(frozenset(wanted))
        account = backend.authenticate("alice", gitlab.token(alice, "read_api"))
        assert account.groups == {"team/sub"}
        assert not account.groups_known
    assert not gitlab.asked("/groups/2024")


def test_only_a_plain_no_says_that_somebody_is_no_member(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """A refusal may have any cause, and who waits for approval is none yet."""
    alice = gitlab.user("alice")
    group = gitlab.group("team", {alice.id: 30})
    backend.groups_wanted = only(frozenset({"team"}))
    group.state = "awaiting"
    account = backend.authenticate("alice", gitlab.token(alice, "read_api"))
    assert (account.groups, account.groups_known) == (frozenset(), True)
    group.is_refused = True
    account = backend.authenticate("alice", gitlab.token(alice, "read_api"))
    assert (account.groups, account.groups_known) == (frozenset(), False)


def test_a_denial_is_not_escaped_by_a_token_that_shows_less(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Such a token does not show the groups to which another group is invited."""
    alice = gitlab.user("alice")
    gitlab.group("contractors", {}).invited = {alice.id: 30}
    backend.groups_wanted = only(frozenset({"contractors"}))
    assert backend.authenticate("alice", gitlab.token(alice, "read_api")).groups == {"contractors"}
    assert not backend.authenticate("alice", gitlab.token(alice, "read_registry")).groups_known


@pytest.mark.parametrize(
    ("scopes", "grants", "is_told"),
    [
        (["read_user"], True, True),
        (["read_user", "read_repository"], True, True),
        (["read_user"], False, False),
        (["read_api"], True, False),
        (["read_registry", "read_user"], True, False),
        (["granular", "read_user"], True, False),
    ],
)
def test_who_has_a_token_without_a_scope_for_a_registry_is_told(
    gitlab: StubGitLab, scopes: list[str], grants: bool, is_told: bool
) -> None:
    """The login works, because access rules may need no scope; then each pull would be denied without a word."""
    token = gitlab.token(gitlab.user("alice"), *scopes)
    with asking(gitlab, grants=grants) as backend:
        assert ("has no scope for a registry" in backend.authenticate("alice", token).advice) is is_told


def test_questions_that_do_not_depend_on_each_other_are_asked_at_once(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """The named groups: GitLab has all three questions before it answers the first."""
    alice = gitlab.user("alice")
    token = gitlab.token(alice, "read_api")
    for path in ("a", "b", "c"):
        gitlab.group(path, {alice.id: 30})
    backend.groups_wanted = only(frozenset({"a", "b", "c"}))
    all_here = threading.Barrier(3, timeout=4)

    def together(handler: Handler) -> None:
        if "/members/" in handler.path:
            all_here.wait()
        try:
            handler.api(handler.path.removeprefix("/api/v4"), {})
        except Reply as reply:
            handler.answer(reply)

    with gitlab.broken(together):
        assert backend.authenticate("alice", token).groups == {"a", "b", "c"}


@pytest.mark.parametrize("denies", [False, True])
def test_a_pattern_takes_no_invited_group_away(gitlab: StubGitLab, backend: GitLabBackend, denies: bool) -> None:
    """Those that rules name are asked for too, and a denial for a pattern may mean one that no list has."""
    alice = gitlab.user("alice")
    token = gitlab.token(alice, "read_api")
    gitlab.group("team", {alice.id: 30})
    gitlab.group("blocked", {}).invited = {alice.id: 30}
    backend.groups_wanted = WantedGroups(frozenset({"blocked"}), others=True, others_deny=denies)
    account = backend.authenticate("alice", token)
    assert account.groups == {"team", "blocked"}
    assert account.groups_known is not denies


def test_somebody_elses_token_asks_for_no_groups(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Else every wrong name would cost GitLab twenty questions."""
    gitlab.user("bob")
    token = gitlab.token(gitlab.user("alice"), "read_api")
    backend.groups_wanted = only(frozenset(f"g{number}" for number in range(20)))
    with pytest.raises(InvalidCredentials):
        backend.authenticate("bob", token)
    assert not gitlab.asked("/groups")


def test_groups_are_asked_for_also_where_no_thread_can_start(
    gitlab: StubGitLab, backend: GitLabBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question after the other is slow, but no outage."""
    alice = gitlab.user("alice")
    token = gitlab.token(alice, "read_api")
    gitlab.group("a", {alice.id: 30})
    backend.groups_wanted = only(frozenset({"a"}))

    def refuse(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refuse)
    assert backend.authenticate("alice", token).groups == {"a"}


def test_groups_of_registry_tokens_are_none_where_gitlab_cannot_tell_them(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """Before 17.4."""
    gitlab.associations = False
    alice = gitlab.user("alice")
    gitlab.group("team", {alice.id: 30})
    assert backend.authenticate("alice", gitlab.token(alice, "read_registry")).groups == frozenset()


def test_groups_are_not_asked_for_when_switched_off(gitlab: StubGitLab) -> None:
    """One request less for each login."""
    alice = gitlab.user("alice")
    gitlab.group("team", {alice.id: 30})
    with asking(gitlab, groups=False) as backend:
        assert backend.authenticate("alice", gitlab.token(alice, "read_api")).groups == frozenset()
    assert not gitlab.asked("/groups")


def test_a_login_is_remembered_for_its_name_and_token_only(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """A push of twenty layers brings the token twenty times; nobody else profits."""
    alice = gitlab.user("alice")
    token, other = gitlab.token(alice, "read_api"), gitlab.token(alice, "read_api")
    gitlab.requests.clear()
    cached = CachedBackend("gitlab", backend)
    for _ in range(20):
        assert cached.authenticate("alice", token).name == "alice"
    assert len(gitlab.requests) == 3
    for name, password in (("bob", token), ("alice", other[:-1]), ("gitlab-ci-token", token)):
        with pytest.raises(InvalidCredentials):
            cached.authenticate(name, password)
    cached.authenticate("alice", other)
    assert len(gitlab.requests) > 6


def test_a_revoked_token_is_refused_at_once_without_a_cache(gitlab: StubGitLab) -> None:
    """The backend itself remembers no login."""
    with asking(gitlab) as backend:
        token = gitlab.token(gitlab.user("alice"), "api")
        backend.authenticate("alice", token)
        gitlab.tokens[-1].revoked = True
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", token)


def test_a_gitlab_under_a_path_is_asked_there(caplog: pytest.LogCaptureFixture) -> None:
    """Also the addresses in its answers are read with that in mind."""
    with serving("/tools/gitlab") as gitlab, asking(gitlab, grants=True) as backend:
        alice = gitlab.user("alice")
        gitlab.group("team", {alice.id: 30})
        assert backend.authenticate("alice", gitlab.token(alice, "read_registry")).groups == {"team"}
        job = backend.authenticate("gitlab-ci-token", gitlab.job(alice, gitlab.project("team/app")))
        assert getattr(job, "project", None) == "team/app"


def test_no_secret_shows_anywhere(gitlab: StubGitLab, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a log at DEBUG (urllib3's included), a `repr`, an error or a traceback with all local values."""
    caplog.set_level(logging.DEBUG)
    alice = gitlab.user("alice")
    token = gitlab.token(alice, "api")
    stale = gitlab.token(alice, "api", expired=True)
    job = gitlab.job(alice, gitlab.project("team/app"))
    seen: list[object] = []
    with asking(gitlab, timeout=1) as backend:
        for name, password in (("alice", token), ("alice", stale), ("bob", token), ("gitlab-ci-token", job)):
            seen.append(login(backend, name, password))
            for fault in (cut, cut_body, answers(502, HTML), answers(429, b"Retry later")):
                with gitlab.broken(fault):
                    seen.append(login(backend, name, password))
    text = "".join(map(show, seen)) + caplog.text
    assert "GET /api/v4/user" in text
    for secret in (token, stale, job):
        assert secret not in text


def login(backend: Backend, name: str, password: str) -> object:
    """The account, or the error as it was raised."""
    try:
        return backend.authenticate(name, password)
    except (InvalidCredentials, BackendUnavailable) as error:
        return error


def show(thing: object) -> str:
    """All that anybody could print of it."""
    if isinstance(thing, Account):
        return f"{thing!r} {thing}"
    assert isinstance(thing, InvalidCredentials | BackendUnavailable)
    # The frames of the backend's own callers hold the password by nature; those below must not.
    frames = traceback.TracebackException.from_exception(thing, capture_locals=False)
    return "".join(frames.format()) + f"{thing!r} {thing.description} {thing.reason}"
