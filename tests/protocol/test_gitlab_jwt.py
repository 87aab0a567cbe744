"""GitLab's own token endpoint as the source: every credential GitLab knows, and no word of it taken on trust."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.gitlab import StubGitLab, answers, asking, cut, self_signed, serving
from tokenissuer.accounts.backend import Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.errors import BackendUnavailable, ConfigurationError, InvalidCredentials
from tokenissuer.scope import Access
from tokenissuer.testing import BackendContract
from tokenissuer_backends.gitlab import GitLabBackend

P, PP, ALL = frozenset({"pull"}), frozenset({"pull", "push"}), frozenset({"pull", "push", "delete"})
NONE: frozenset[str] = frozenset()
JWT = {"mode": "jwt", "issuer": "gitlab-issuer", "grants": True}


def access(name: str, *actions: str) -> Access:
    """What a client asks for."""
    return Access("repository", name, frozenset(actions or ALL))


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab to fill."""
    with serving() as gitlab:
        yield gitlab


@pytest.fixture
def certificate(gitlab: StubGitLab, tmp_path: Path) -> Path:
    """The certificate of GitLab's signing key, in a file."""
    path = tmp_path / "gitlab.crt"
    path.write_bytes(gitlab.certificate())
    return path


@pytest.fixture(params=[True, False], ids=["with certificate", "without"])
def backend(request: pytest.FixtureRequest, gitlab: StubGitLab, certificate: Path) -> Iterator[GitLabBackend]:
    """A backend that verifies signatures, and one that has nothing to verify them with."""
    more = {"certificate": certificate} if request.param else {}
    with asking(gitlab, **JWT, **more, timeout=2, remember=0) as backend:
        yield backend


class TestGitLabByJwt(BackendContract):
    """What holds for every backend."""

    stub: StubGitLab
    username, password = "alice", "correct horse: battery stäple"
    others: dict[str, str] = {"Bob": "bob's own", "carol": "carol's own"}  # noqa: RUF012 (the contract declares it so)

    @pytest.fixture
    def backend(self, gitlab: StubGitLab, certificate: Path) -> Iterator[Backend]:
        """Accounts with passwords."""
        self.stub = gitlab
        for name, password in [(self.username, self.password), *self.others.items()]:
            gitlab.user(name, password=password)
        with asking(gitlab, **JWT, certificate=certificate, timeout=1) as backend:
            yield backend

    def outages(self, backend: Backend) -> Iterable[AbstractContextManager[object]]:
        """What is no answer of the token endpoint's, or none that decides."""
        yield self.stub.broken(cut)
        yield self.stub.broken(answers(502, b"<html>"))
        yield self.stub.broken(answers(200, b"{}"))
        yield self.stub.broken(answers(200, b'{"token":"x.y.z"}'))
        yield self.stub.broken(answers(200, b'{"token":5}'))
        yield self.stub.broken(answers(429, b"Retry later\n"))
        # Too many failures from our address: that is about us, not about this login.
        yield self.stub.broken(answers(403, b"Forbidden\n"))
        # The registry switched off, in each of the two ways that GitLab says so.
        yield self.stub.broken(answers(404, b""))
        yield self.stub.broken(answers(404, b'{"errors":[{"code":"UNAVAILABLE","message":"registry not enabled"}]}'))


def test_every_kind_of_credential_that_gitlab_knows_logs_in(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Passwords, tokens of each kind, jobs and deploy tokens."""
    alice = gitlab.user("Alice", password="pass phrase")
    project = gitlab.project("team/app", direct={alice.id: 30})
    deploy = gitlab.deploy_token(project, "read_registry")
    logins = [
        ("alice", "pass phrase", "Alice"),
        ("ALICE", gitlab.token(alice, "api"), "Alice"),
        ("alice", gitlab.token(alice, "read_registry"), "Alice"),
        ("alice", gitlab.token(alice, "api", oauth=True), "Alice"),
        ("gitlab-ci-token", gitlab.job(alice, project), "Alice"),
        (deploy.username, deploy.token, f"deploy-token:{deploy.id}"),
    ]
    for username, password, name in logins:
        assert backend.authenticate(username, password).name == name, username


def test_a_token_under_another_name_than_its_owners_is_refused(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """GitLab ignores the name; the rules here would not."""
    alice, mallory = gitlab.user("alice"), gitlab.user("mallory")
    project = gitlab.project("team/app")
    for name, token in (
        ("alice", gitlab.token(mallory, "api")),
        ("gitlab-ci-token", gitlab.token(mallory, "api")),
        ("", gitlab.token(mallory, "api")),
        ("al\N{KELVIN SIGN}ce", gitlab.token(alice, "api")),
        ("ali:ce", gitlab.token(alice, "api")),
    ):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, token)
    job = gitlab.job(alice, project)
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", job)


def test_a_deploy_token_called_like_a_user_is_not_that_user(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Whoever makes one chooses its user name."""
    gitlab.user("admin")
    deploy = gitlab.deploy_token(gitlab.project("mallory/app"), "read_registry", username="admin")
    assert backend.authenticate("admin", deploy.token).name == f"deploy-token:{deploy.id}"


def test_refusals_all_say_the_same(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Wrong password, two factors, blocked, no registry scope, unknown name."""
    gitlab.user("alice", password="right")
    gitlab.user("bob", password="right", two_factors=True)
    carol = gitlab.user("carol", state="blocked")
    sentences = set()
    for name, password in (
        ("alice", "wrong"),
        ("bob", "right"),
        ("carol", gitlab.token(carol, "api")),
        ("alice", gitlab.token(gitlab.users[0], "read_user")),
        ("alice", gitlab.token(gitlab.users[0], "api", expired=True)),
        ("nobody", "wrong"),
    ):
        with pytest.raises(InvalidCredentials) as refusal:
            backend.authenticate(name, password)
        sentences.add(refusal.value.description)
    assert len(sentences) == 1


def test_no_login_is_the_anonymous_one(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """If something on the way drops the header, GitLab greets a stranger; he is not the one named."""
    stranger = gitlab.sign({"access": [], "aud": "container_registry", "auth_type": "none"})
    with gitlab.broken(answers(200, json.dumps({"token": stranger}).encode())), pytest.raises(InvalidCredentials):
        backend.authenticate("alice", "password")


def test_a_login_is_good_no_longer_than_gitlabs_own_token(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Nothing re-issued outlives what it was issued for."""
    gitlab.user("alice", password="right")
    gitlab.token_lifetime = 120
    account = backend.authenticate("alice", "right")
    assert account.valid_until is not None
    assert 100 < account.valid_until - time.time() <= 121


def test_a_login_is_remembered_for_its_name_and_password_only(gitlab: StubGitLab) -> None:
    """For nobody else."""
    gitlab.user("alice", password="right")
    with asking(gitlab, **JWT) as uncached:
        backend = CachedBackend("gitlab", uncached)
        for _ in range(20):
            assert backend.authenticate("alice", "right").name == "alice"
        assert len(gitlab.requests) == 1
        for name, password in (("alice", "wrong"), ("bob", "right"), ("Alice", "righ")):
            with pytest.raises(InvalidCredentials):
                backend.authenticate(name, password)


def test_a_jobs_login_is_marked_as_a_job(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """It is not its user in person."""
    alice = gitlab.user("alice", password="right")
    job = gitlab.job(alice, gitlab.project("team/app"))
    assert backend.authenticate("gitlab-ci-token", job).delegated
    assert not backend.authenticate("alice", "right").delegated


@pytest.mark.parametrize(
    ("asked", "rights"),
    [(ALL, ALL), (P, P), (frozenset({"*"}), ALL), (frozenset({"pull", "foo"}), P), (frozenset({"foo"}), NONE)],
)
def test_what_gitlab_grants_of_what_is_asked_is_granted(
    gitlab: StubGitLab, backend: GitLabBackend, asked: frozenset[str], rights: frozenset[str]
) -> None:
    """Nothing else is asked of GitLab: it keeps note of every push it grants."""
    alice = gitlab.user("alice", password="right")
    gitlab.project("Team/App", direct={alice.id: 40})
    account = backend.authenticate("alice", "right")
    assert backend.grants(account, Access("repository", "team/app/image", asked)) == rights
    assert bool(gitlab.recorded_repositories) == ("push" in rights)


def test_rights_by_role_are_those_of_gitlab(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """An empty grant is no refusal."""
    for role, rights in ((0, NONE), (10, NONE), (20, P), (30, PP), (40, ALL)):
        user = gitlab.user(f"user{role}", password="right")
        gitlab.project(f"team/app{role}", direct={user.id: role})
        account = backend.authenticate(user.username, "right")
        assert backend.grants(account, access(f"team/app{role}")) == rights


def test_deploy_tokens_and_jobs_have_the_rights_of_their_project(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """And none elsewhere."""
    alice = gitlab.user("alice")
    own, other = gitlab.project("team/own", direct={alice.id: 30}), gitlab.project("team/other")
    deploy = gitlab.deploy_token(own, "read_registry", "write_registry")
    by_deploy = backend.authenticate(deploy.username, deploy.token)
    by_job = backend.authenticate("gitlab-ci-token", gitlab.job(alice, own))
    assert backend.grants(by_deploy, access("team/own")) == PP
    assert backend.grants(by_job, access("team/own")) == ALL
    for account in (by_deploy, by_job):
        assert backend.grants(account, access(other.path)) == NONE


def test_everyone_may_pull_what_gitlab_lets_everyone_pull(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """The 403 of the anonymous caller is no outage."""
    gitlab.project("open/app", "public")
    gitlab.project("closed/app")
    assert backend.grants(None, access("open/app")) == P
    assert backend.grants(None, access("closed/app")) == NONE
    assert backend.grants(None, access("open/app", "push")) == NONE
    assert all("authorization" not in request.headers for request in gitlab.requests)


def test_a_protected_repository_is_refused_whole(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """As GitLab itself answers the whole request with 403."""
    alice = gitlab.user("alice", password="right")
    gitlab.project("team/app", direct={alice.id: 30}, protected_repository=True)
    account = backend.authenticate("alice", "right")
    assert backend.grants(account, access("team/app", "pull", "push")) == NONE
    assert backend.grants(account, access("team/app", "pull")) == P


def test_a_push_that_is_good_for_some_tags_only_is_withheld(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Only GitLab's registry, with GitLab's token, keeps protected tags from being overwritten."""
    alice, bob = gitlab.user("alice", password="right"), gitlab.user("bob", password="right")
    gitlab.project("team/app", direct={alice.id: 30, bob.id: 40}, protected_tags=["v.*"])
    assert backend.grants(backend.authenticate("alice", "right"), access("team/app")) == P
    assert backend.grants(backend.authenticate("bob", "right"), access("team/app")) == ALL


def test_clients_choose_neither_service_nor_scope_beyond_the_repository(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """GitLab is asked for its registry and for one well-formed name."""
    gitlab.user("alice", password="right")
    account = backend.authenticate("alice", "right")
    gitlab.requests.clear()
    for name in ("team/app:pull repository:other/app", "a b/c", "Team/App", "team/../x", "host:5000/team/app", "team"):
        assert backend.grants(account, access(name)) == NONE
    assert backend.grants(account, Access("registry", "catalog", frozenset({"*"}))) == NONE
    assert not gitlab.requests
    backend.grants(account, access("team/app", "pull"))
    (request,) = gitlab.requests
    assert request.query == {"service": ["container_registry"], "scope": ["repository:team/app:pull"]}


def replaced(**more: Any) -> Callable[[dict[str, Any]], None]:
    """Say something else in each token; None takes a claim away."""

    def forge(claims: dict[str, Any]) -> None:
        if "access" in claims:
            claims.update(more)
            for name in [name for name, value in more.items() if value is None]:
                del claims[name]

    return forge


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "somebody-else"},
        {"iss": None},
        {"aud": "dependency_proxy"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": 9_999_999_999},
        {"sub": 5},
        {"auth_type": 5},
        {"access": "all"},
        {"access": None},
    ],
    ids=str,
)
def test_a_token_that_is_not_gitlabs_for_its_registry_and_now_proves_nothing(
    gitlab: StubGitLab, backend: GitLabBackend, claims: dict[str, Any]
) -> None:
    """It is no refusal either: something is set up wrong."""
    gitlab.user("alice", password="right")
    account = backend.authenticate("alice", "right")
    gitlab.project("team/app", "public")
    # `access` must be there for the forger to know its token; it goes last.
    gitlab.forge = replaced(**claims)
    with pytest.raises(BackendUnavailable):
        backend.authenticate("alice", "right")
    with pytest.raises(BackendUnavailable):
        backend.grants(account, access("team/app"))


def test_tokens_of_any_other_make_are_worthless(gitlab: StubGitLab, certificate: Path) -> None:
    """`none`, a shared secret, another key, a key in the header."""
    gitlab.user("alice", password="right")
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = gitlab.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(other.public_key()))

    def with_secret(claims: dict[str, Any]) -> str:
        return hs256(claims, public)

    forgers: dict[str, Callable[[dict[str, Any]], str]] = {
        "none": lambda claims: jwt.encode(claims, "", algorithm="none"),
        "secret": with_secret,
        "other key": lambda claims: jwt.encode(claims, other, algorithm="RS256"),
        "other key in the header": lambda claims: jwt.encode(claims, other, algorithm="RS256", headers={"jwk": jwk}),
        "other RSA": lambda claims: jwt.encode(claims, gitlab.key, algorithm="RS512"),
        "rubbish": lambda _claims: "a.b.c",
        "nothing": lambda _claims: "",
    }
    with asking(gitlab, **JWT, certificate=certificate) as backend:
        for name, forger in forgers.items():
            gitlab.forge = forger
            with pytest.raises(BackendUnavailable):
                backend.authenticate("alice", "right")
            assert name
    with asking(gitlab, **JWT) as unverified:
        for name in ("none", "secret", "other RSA", "rubbish", "nothing"):
            gitlab.forge = forgers[name]
            with pytest.raises(BackendUnavailable):
                unverified.authenticate("alice", "right")


def hs256(claims: dict[str, Any], secret: bytes) -> str:
    """A token signed with a public key as if it were a shared secret; PyJWT itself refuses to make one."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.digest(secret, signed, hashlib.sha256))).decode()


@pytest.mark.parametrize(
    "entries",
    [
        [{"type": "repository", "name": "team/other", "actions": ["pull"]}],
        [{"type": "repository", "name": "Team/app", "actions": ["pull"]}],
        [{"type": "registry", "name": "team/app", "actions": ["pull"]}],
        [{"type": "repository", "name": "team/app", "actions": ["push", "delete", "*", 5, None]}],
        [{"type": "repository", "name": "team/app", "actions": "pull"}],
        [{"type": "repository", "name": ["team/app"], "actions": ["pull"]}],
        ["repository:team/app:pull"],
        [None],
        [],
    ],
    ids=str,
)
def test_only_what_was_asked_is_taken_from_gitlabs_token(
    gitlab: StubGitLab, backend: GitLabBackend, entries: list[Any]
) -> None:
    """Same type, same name, no other action."""
    gitlab.user("alice", password="right")
    account = backend.authenticate("alice", "right")
    gitlab.forge = replaced(access=entries)
    assert backend.grants(account, access("team/app", "pull")) == NONE


def test_no_secret_shows_in_log_or_error(
    gitlab: StubGitLab, backend: GitLabBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the password nor its Basic form nor GitLab's token, at DEBUG."""
    caplog.set_level(logging.DEBUG)
    alice = gitlab.user("alice", password="planted-secret")
    gitlab.project("team/app", direct={alice.id: 30})
    account = backend.authenticate("alice", "planted-secret")
    backend.grants(account, access("team/app"))
    said = [caplog.text, repr(account)]
    for fault in (cut, answers(502, b"<html>"), answers(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}')):
        with gitlab.broken(fault), pytest.raises((BackendUnavailable, InvalidCredentials)) as error:
            backend.authenticate("alice", "planted-secret")
        said += [repr(error.value), error.value.reason, error.value.description]
    text = "".join([*said, caplog.text])
    for secret in ("planted-secret", base64.b64encode(b"alice:planted-secret").decode(), "eyJ"):
        assert secret not in text


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_certificate_that_cannot_be_used_stops_the_start(
    gitlab: StubGitLab, tmp_path: Path, content: bytes | None
) -> None:
    """The message names key and file."""
    path = tmp_path / "gitlab.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"'certificate'.*gitlab\.crt"):
        asking(gitlab, **JWT, certificate=path).__enter__()


def test_a_certificate_of_another_kind_of_key_stops_the_start(gitlab: StubGitLab, tmp_path: Path) -> None:
    """GitLab signs with RSA only."""
    path = tmp_path / "ec.crt"
    path.write_bytes(self_signed(ec.generate_private_key(ec.SECP256R1()), "x"))
    with pytest.raises(ConfigurationError, match="RS256"):
        asking(gitlab, **JWT, certificate=path).__enter__()
