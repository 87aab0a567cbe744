"""The keys of the table, and what `tokenissuer check` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gitlab import StubGitLab, answers, asking, cut, serving
from tokenissuer.accounts.backend import load_backend
from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.errors import BackendUnavailable, ConfigurationError
from tokenissuer.options import Secret, decode
from tokenissuer_backends.gitlab import GitLabBackend, GitLabOptions


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab to fill."""
    with serving() as gitlab:
        yield gitlab


def options(**table: Any) -> GitLabOptions:
    """The options a table gives."""
    return decode(GitLabOptions, table, "[[backends]] 1 (gitlab)", Path("/etc/tokenissuer"))


def test_the_entry_point_is_called_gitlab() -> None:
    """That is what `type` says."""
    assert load_backend("gitlab") is GitLabBackend


def test_the_address_alone_is_enough() -> None:
    """Everything else has a default, and each default asks for the least."""
    chosen = options(url="https://gitlab.example.com")
    assert not chosen.grants
    assert not chosen.plain_http
    assert chosen.timeout <= 6


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "'url' is missing"),
        ({"url": ""}, "'url'"),
        ({"url": "ci:planted@gitlab.example.com"}, "'url' is '***@gitlab.example.com'"),
        ({"url": "ftp://ci:pl/an ted@gitlab.example.com"}, "'url' is 'ftp://***@gitlab.example.com'"),
        ({"url": "gitlab.example.com"}, "whole address"),
        ({"url": "ftp://gitlab.example.com"}, "whole address"),
        ({"url": "https://"}, "whole address"),
        ({"url": "https://gitlab.example.com:0"}, "whole address"),
        ({"url": "https://gitlab.example.com:port"}, "whole address"),
        ({"url": "https://gitlab.example.com/a b"}, "whole address"),
        ({"url": "https://me:secret@gitlab.example.com"}, "user"),
        ({"url": "https://gitlab.example.com?x=y"}, "query"),
        ({"url": "https://gitlab.example.com/api/v4"}, "leave out /api/v4"),
        ({"url": "http://gitlab.example.com"}, "plain_http"),
        ({"url": "https://g", "mode": "rest"}, "'api', 'jwt'"),
        ({"url": "https://g", "mode": "jwt"}, "'issuer'"),
        ({"url": "https://g", "mode": "jwt", "issuer": "i", "token": "t"}, "'token' is for mode 'api'"),
        ({"url": "https://g", "token": "two words"}, "'token'"),
        ({"url": "https://g", "timeout": 0}, "'timeout' is 0"),
        ({"url": "https://g", "timeout": 7}, "use 1 to 6"),
        ({"url": "https://g", "connections": 0}, "'connections'"),
        ({"url": "https://g", "remember": 301}, "'remember'"),
        ({"url": "https://g", "grant": True}, "did you mean 'grants'"),
    ],
)
def test_a_table_that_cannot_work_is_refused_with_the_key_to_change(table: dict[str, Any], words: str) -> None:
    """At start, not at the first login."""
    with pytest.raises(ConfigurationError) as error:
        options(**table)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def findings(backend: GitLabBackend) -> dict[Severity, str]:
    """What is found, by severity."""
    found: dict[Severity, str] = {}
    for finding in backend.diagnose():
        assert isinstance(finding, Finding)
        found[finding.severity] = found.get(finding.severity, "") + f"{finding}\n"
    return found


def test_a_gitlab_that_is_well_gives_no_alarm(gitlab: StubGitLab) -> None:
    """But says what is good to know."""
    with asking(gitlab) as backend:
        backend.check()
        found = findings(backend)
    assert found.keys() == {Severity.INFO}
    assert "clock is +0 seconds" in found[Severity.INFO] or "clock is -1 seconds" in found[Severity.INFO]
    assert "looks up users by name" in found[Severity.INFO]


def test_the_version_is_told_where_a_token_is_configured(gitlab: StubGitLab) -> None:
    """GitLab tells it to users only."""
    token = gitlab.token(gitlab.user("observer"), "read_api")
    with asking(gitlab, token=Secret(token)) as backend:
        found = findings(backend)
    assert "its version is 17.11.2-ee" in found[Severity.INFO]
    assert found.keys() == {Severity.INFO}
    assert token not in str(found)


@pytest.mark.parametrize("scopes", [["api"], ["read_api", "write_registry"], ["read_user"]])
def test_a_configured_token_with_other_scopes_is_a_warning(gitlab: StubGitLab, scopes: list[str]) -> None:
    """It lies in a file, and needs to do one thing."""
    token = gitlab.token(gitlab.user("observer"), *scopes)
    with asking(gitlab, token=Secret(token)) as backend:
        assert "read_api" in findings(backend)[Severity.WARNING]


def test_a_configured_token_that_is_no_good_is_an_error(gitlab: StubGitLab) -> None:
    """Found before anybody misses an image."""
    token = gitlab.token(gitlab.user("observer"), "read_api", expired=True)
    with asking(gitlab, token=Secret(token)) as backend:
        assert "refuses the configured token" in findings(backend)[Severity.ERROR]
        with pytest.raises(BackendUnavailable):
            backend.check()


def test_a_gitlab_that_does_not_let_users_be_looked_up_is_a_warning(gitlab: StubGitLab) -> None:
    """Some tokens will not do then, and the remedies are said."""
    gitlab.anonymous_users = False
    with asking(gitlab) as backend:
        found = findings(backend)[Severity.WARNING]
    assert "only registry scopes" in found
    assert "read_user" in found


@pytest.mark.parametrize("seconds", [-3600, 120])
def test_clocks_that_differ_are_a_warning(gitlab: StubGitLab, seconds: int) -> None:
    """Tokens would end at the wrong time."""
    gitlab.clock_ahead = seconds
    with asking(gitlab) as backend:
        assert "clock" in findings(backend)[Severity.WARNING]


@pytest.mark.parametrize("mode", [{}, {"mode": "jwt", "issuer": "gitlab-issuer"}], ids=["api", "jwt"])
def test_a_gitlab_that_cannot_be_asked_is_an_error(gitlab: StubGitLab, mode: dict[str, Any]) -> None:
    """With the reason."""
    with asking(gitlab, **mode) as backend:
        for fault in (cut, answers(502, b"<html>"), answers(404, b"<html>"), answers(200, b"<html>")):
            with gitlab.broken(fault):
                assert "does not answer" in findings(backend)[Severity.ERROR]


def test_signatures_that_are_not_verified_are_a_warning(gitlab: StubGitLab, tmp_path: Path) -> None:
    """And with the certificate there is none."""
    path = tmp_path / "gitlab.crt"
    path.write_bytes(gitlab.certificate())
    with asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        assert "certificate" in findings(backend)[Severity.WARNING]
    with asking(gitlab, mode="jwt", issuer="gitlab-issuer", certificate=path) as backend:
        assert Severity.WARNING not in findings(backend)
        backend.check()


def test_a_gitlab_whose_registry_is_switched_off_is_an_error_in_mode_jwt(gitlab: StubGitLab) -> None:
    """There is nothing to replay to."""
    gitlab.registry_enabled = False
    with asking(gitlab, mode="jwt", issuer="gitlab-issuer") as backend:
        assert "switched on" in findings(backend)[Severity.ERROR]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open/app", "belongs to the project open/app (number 5000"),
        ("open/app/image/part", "belongs to the project open/app (number 5000"),
        ("closed/app/image", "the anonymous caller sees none of them"),
        ("Open/App", "not a name of a GitLab project's image"),
        ("app", "not a name of a GitLab project's image"),
    ],
)
def test_it_is_said_which_project_a_repository_belongs_to(gitlab: StubGitLab, name: str, words: str) -> None:
    """As far as the caller can see."""
    gitlab.project("Open/App", "public")
    gitlab.project("closed/app")
    with asking(gitlab) as backend:
        (finding,) = backend.diagnose(repository=name)
    assert words in finding.fact
    assert finding.severity is Severity.INFO


def test_the_configured_token_tells_visibility_and_registry_level_of_a_repository(gitlab: StubGitLab) -> None:
    """Which the anonymous caller is not told."""
    gitlab.project("open/app", "public", "private")
    token = gitlab.token(gitlab.user("observer"), "read_api")
    with asking(gitlab, token=Secret(token)) as backend:
        (finding,) = backend.diagnose(repository="open/app")
    assert "visibility public, container_registry_access_level private" in finding.fact


def test_an_outage_while_a_repository_is_looked_up_is_an_error(gitlab: StubGitLab) -> None:
    """Not "no such project"."""
    with asking(gitlab) as backend, gitlab.broken(answers(502, b"<html>")):
        (finding,) = backend.diagnose(repository="open/app")
    assert finding.severity is Severity.ERROR
