"""Refresh tokens for GitLab accounts: good as long as the credential of the login is, and GitLab says whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gitlab import StubGitLab, answers, asking, cut, serving
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, LoginEnded
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
from tokenissuer.sessions.tokens import Client, RefreshOptions, RefreshTokens
from tokenissuer_backends.gitlab import GitLabBackend

CLIENT = Client("registry", "docker", "Docker-Client/28", "192.0.2.1")
MODES: dict[str, dict[str, Any]] = {"api": {}, "jwt": {"mode": "jwt", "issuer": "gitlab-issuer"}}


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab with alice, who is in one group and has one token."""
    with serving() as gitlab:
        alice = gitlab.user("Alice")
        gitlab.token(alice, "read_api", "read_registry")
        gitlab.group("team", {alice.id: 30})
        yield gitlab


@pytest.fixture(params=[*MODES.values()], ids=[*MODES])
def backend(request: pytest.FixtureRequest, gitlab: StubGitLab) -> Iterator[GitLabBackend]:
    """A backend that asks it, either way, and remembers for a while what it was told."""
    with asking(gitlab, **request.param, timeout=2) as backend:
        yield backend


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[RefreshTokens]:
    """Refresh tokens, and a store for them."""
    store = SqliteStore(SqliteOptions(tmp_path / "refresh.sqlite3"))
    yield RefreshTokens(store, RefreshOptions(10**6, 10**6))
    store.close()


def login(tokens: RefreshTokens, source: CachedBackend, username: str, password: str) -> str:
    """Log in with a password and return the refresh token; empty if none is given."""
    login = Login(source.backend.authenticate(username, password), source)
    return tokens.issue(login, password, CLIENT)


def revoke(gitlab: StubGitLab) -> None:
    """Take alice's token back."""
    gitlab.tokens[0].revoked = True


def expire(gitlab: StubGitLab) -> None:
    """Let alice's token end."""
    gitlab.tokens[0].expired = True


def block(gitlab: StubGitLab) -> None:
    """Lock alice out."""
    gitlab.users[0].state = "blocked"


def rename(gitlab: StubGitLab) -> None:
    """Give alice another name, and hers to somebody else."""
    gitlab.users[0].username = "alice2"
    gitlab.user("Alice")


def remove(gitlab: StubGitLab) -> None:
    """Remove alice and all that is hers."""
    del gitlab.tokens[0]
    del gitlab.users[0]


@pytest.mark.parametrize("happens", [revoke, expire, block, rename, remove])
def test_what_gitlab_does_not_vouch_for_any_more_has_ended(
    gitlab: StubGitLab, backend: GitLabBackend, tokens: RefreshTokens, happens: Callable[[StubGitLab], None]
) -> None:
    """At the next use, whatever is remembered, and for good."""
    source = CachedBackend("gitlab", backend)
    token = login(tokens, source, "alice", gitlab.tokens[0].text)
    assert tokens.redeem(token, Chain([source]), CLIENT).account.name == "Alice"
    happens(gitlab)
    with pytest.raises(LoginEnded):
        tokens.redeem(token, Chain([source]), CLIENT)
    (session,) = tokens.store.sessions()
    assert session.ended is not None
    assert session.sealed_password == b""


@pytest.mark.parametrize(
    "fault",
    [
        cut,
        answers(502, b"<html>"),
        answers(429, b"Retry later\n"),
        answers(403, b"Forbidden\n"),
        answers(401, b"<html>"),
    ],
    ids=["no answer", "502", "429", "our address is banned", "a proxy's login page"],
)
def test_an_outage_of_gitlab_ends_nothing(
    gitlab: StubGitLab, backend: GitLabBackend, tokens: RefreshTokens, fault: Callable[..., None]
) -> None:
    """It has not refused anybody."""
    source = CachedBackend("gitlab", backend)
    token = login(tokens, source, "alice", gitlab.tokens[0].text)
    with gitlab.broken(fault), pytest.raises(BackendUnavailable):
        tokens.redeem(token, Chain([source]), CLIENT)
    (session,) = tokens.store.sessions()
    assert session.ended is None
    backend._client._pauses._ends.clear()
    assert tokens.redeem(token, Chain([source]), CLIENT).account.name == "Alice"


def test_a_token_of_somebody_elses_looks_nobody_up(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Nor does none."""
    other = gitlab.token(gitlab.user("mallory"), "api")
    for keepsake in (other, "", "glpat-madeup", "\n"):
        with pytest.raises(InvalidCredentials):
            backend.lookup("Alice", keepsake)


def test_a_job_is_given_none(gitlab: StubGitLab, backend: GitLabBackend, tokens: RefreshTokens) -> None:
    """Its own token ends with it, and so does what it may."""
    job = gitlab.job(gitlab.users[0], gitlab.project("team/app", direct={gitlab.users[0].id: 30}))
    assert login(tokens, CachedBackend("gitlab", backend), "gitlab-ci-token", job) == ""


def test_a_deploy_token_is_given_none(gitlab: StubGitLab, tokens: RefreshTokens) -> None:
    """The name of its account is not what it logs in with."""
    deploy = gitlab.deploy_token(gitlab.project("team/app"), "read_registry")
    with asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        assert backend.authenticate(deploy.username, deploy.token).name == f"deploy-token:{deploy.id}"
        assert login(tokens, CachedBackend("gitlab", backend), deploy.username, deploy.token) == ""


def test_a_gitlab_that_no_longer_says_whose_a_token_is_has_not_refused_it(gitlab: StubGitLab) -> None:
    """Tokens with registry scopes only depend on what strangers, or our own token, are told."""
    token = gitlab.token(gitlab.users[0], "read_registry")
    with asking(gitlab) as backend:
        assert backend.lookup("Alice", token).name == "Alice"
        gitlab.anonymous_users = False
        with pytest.raises(BackendUnavailable, match="looked up by name"):
            backend.lookup("Alice", token)
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice2", token)
