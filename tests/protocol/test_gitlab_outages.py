"""Robust: time, size, redirects, rate limits, connections, TLS."""

from __future__ import annotations

import email.utils
import gzip
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.support.gitlab import (
    Handler,
    StubGitLab,
    answers,
    asking,
    cut,
    cut_body,
    drip,
    self_signed,
    serving,
    signing_key,
    slow,
)
from tokenissuer.accounts.backend import Account
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.limit import Deadline
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import BackendUnavailable, ConfigurationError, InvalidCredentials
from tokenissuer.options import Secret
from tokenissuer.scope import Access
from tokenissuer_backends.gitlab import GitLabBackend
from tokenissuer_backends.gitlab.credential import ANONYMOUS

APP = Access("repository", "team/app", frozenset({"pull", "push"}))
PP = frozenset({"pull", "push"})
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab where alice is a developer of team/app."""
    with serving() as gitlab:
        alice = gitlab.user("alice")
        gitlab.token(alice, "api")
        gitlab.project("team/app", direct={alice.id: 30})
        yield gitlab


@pytest.fixture
def backend(gitlab: StubGitLab) -> Iterator[GitLabBackend]:
    """A backend that gives up after a second and remembers nothing."""
    with asking(gitlab, grants=True, timeout=1, remember=0) as backend:
        yield backend


def login(gitlab: StubGitLab, backend: GitLabBackend) -> Account:
    """Alice, logged in."""
    return backend.authenticate("alice", gitlab.tokens[0].text)


@pytest.mark.parametrize(
    "fault",
    [
        slow(3),
        drip(b"", b"H"),
        drip(OK, b"X-A: b\r\n"),
        drip(OK + b"X-Long: ", b"a"),
        drip(OK + b"Content-Length: 100000\r\n\r\n", b" "),
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        drip(OK + b"\r\n", b" "),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["late", "status", "headers", "one header", "body", "chunks", "endless", "continue"],
)
def test_an_answer_that_does_not_come_to_its_end_in_time_is_given_up(
    gitlab: StubGitLab, backend: GitLabBackend, fault: Callable[[Handler], None]
) -> None:
    """However it is drawn out: docker waits 15 seconds, and a thread waits here."""
    begin = time.monotonic()
    with gitlab.broken(fault), pytest.raises(BackendUnavailable):
        login(gitlab, backend)
    assert time.monotonic() - begin < 1.5


def test_all_requests_of_one_login_share_one_deadline(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Three slow answers are not three times the patience."""
    normal = Handler.handle_request

    def each_slow(handler: Handler) -> None:
        time.sleep(0.6)
        handler.gitlab.fault = None
        try:
            normal(handler)
        finally:
            handler.gitlab.fault = each_slow

    begin = time.monotonic()
    with gitlab.broken(each_slow), pytest.raises(BackendUnavailable):
        login(gitlab, backend)
    assert time.monotonic() - begin < 1.5


def test_nobody_listening_is_an_outage(gitlab: StubGitLab) -> None:
    """At login, for rights and for the readiness check; and it ends by itself."""
    with asking(gitlab, grants=True, url="http://127.0.0.1:1") as backend:
        for ask in (lambda: login(gitlab, backend), backend.check, lambda: backend.grants(None, APP)):
            with pytest.raises(BackendUnavailable):
                ask()


def test_a_connection_that_gitlab_closed_meanwhile_is_replaced(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """An idle connection dies unnoticed: nobody is refused for that."""
    login(gitlab, backend)
    gitlab.hang_up()
    login(gitlab, backend)
    once = iter([cut])

    def cut_once(handler: Handler) -> None:
        next(once)(handler)
        handler.gitlab.fault = None

    gitlab.fault = cut_once
    login(gitlab, backend)


@pytest.mark.parametrize("fault", [cut, cut_body], ids=["at once", "within the body"])
def test_a_connection_cut_again_and_again_is_an_outage(
    gitlab: StubGitLab, backend: GitLabBackend, fault: Callable[[Handler], None]
) -> None:
    """Tried twice, not for ever."""
    gitlab.requests.clear()
    with gitlab.broken(fault), pytest.raises(BackendUnavailable):
        login(gitlab, backend)
    assert len(gitlab.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [
        answers(200, b" " * 2_000_000),
        answers(200, b"[" * 500_000),
        answers(200, gzip.compress(b" " * 50_000_000), Content_Encoding="gzip"),
        answers(200, b"\xff\xfe{}"),
        answers(200, json.dumps({"scopes": "api", "active": True, "revoked": False, "user_id": 1}).encode()),
        answers(200, json.dumps({"scopes": ["api"], "active": True, "revoked": False, "user_id": "1"}).encode()),
        answers(204, b""),
        answers(418, b"{}"),
        answers(401, b"{}"),
    ],
    ids=["long", "deep", "bomb", "bytes", "scopes", "number", "empty", "teapot", "shapeless refusal"],
)
def test_an_answer_in_no_shape_of_gitlabs_is_an_outage(
    gitlab: StubGitLab, backend: GitLabBackend, fault: Callable[[Handler], None]
) -> None:
    """It proves nothing, neither for the caller nor against him."""
    with gitlab.broken(fault), pytest.raises(BackendUnavailable):
        login(gitlab, backend)


def test_no_more_is_read_than_an_answer_can_have(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """Memory is not GitLab's to fill."""
    with gitlab.broken(answers(200, b" " * 2_000_000)), pytest.raises(BackendUnavailable, match="more than 1048576"):
        login(gitlab, backend)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("own_host", [True, False])
def test_no_redirect_takes_the_token_anywhere(
    gitlab: StubGitLab, backend: GitLabBackend, status: int, own_host: bool
) -> None:
    """Neither to another host nor to another place on the same; the message names the host, for the administrator."""
    with serving() as elsewhere:
        target = f"{(gitlab if own_host else elsewhere).url}/api/v4/user"
        gitlab.requests.clear()
        fault = answers(status, b"", Location=target)
        with gitlab.broken(fault), pytest.raises(BackendUnavailable, match=r"redirected .* url"):
            login(gitlab, backend)
        assert len(gitlab.requests) == 1
        assert not elsewhere.requests


def test_a_redirect_to_another_host_is_no_renamed_project(gitlab: StubGitLab, backend: GitLabBackend) -> None:
    """What was asked by number is asked by number there as well."""
    route = "/api/v4/projects/5/members/all/7"
    fault = answers(301, b"", Location=f"https://elsewhere.example{route}")
    with gitlab.broken(fault), pytest.raises(BackendUnavailable, match=r"https://elsewhere\.example"):
        backend._client.get(route, ANONYMOUS, Deadline.after(5))


@pytest.mark.parametrize("location", ["", "//evil.example/api/v4/projects/1", "http://[bad", "\x01", "/"])
def test_a_redirect_to_nowhere_is_no_accident(gitlab: StubGitLab, backend: GitLabBackend, location: str) -> None:
    """Whatever the header holds."""
    with gitlab.broken(answers(302, b"", Location=location)), pytest.raises(BackendUnavailable):
        login(gitlab, backend)


@pytest.mark.parametrize("status", [429, 503])
def test_gitlabs_wish_to_be_left_alone_is_passed_on_and_respected(
    gitlab: StubGitLab, backend: GitLabBackend, status: int
) -> None:
    """No request goes out for that caller until the time is over; others are not made to wait."""
    bob = gitlab.user("bob")
    other = gitlab.token(bob, "api")
    gitlab.requests.clear()
    fault = answers(status, b"Retry later\n", Content_Type="text/plain", Retry_After="2")
    with gitlab.broken(fault), pytest.raises(BackendUnavailable) as outage:
        login(gitlab, backend)
    assert outage.value.retry_after == 2
    for _ in range(3):
        with pytest.raises(BackendUnavailable) as outage:
            login(gitlab, backend)
        assert 1 <= outage.value.retry_after <= 2
    assert len(gitlab.requests) == 1
    assert backend.authenticate("bob", other).name == "bob"
    time.sleep(2.1)
    assert login(gitlab, backend).name == "alice"


def test_a_throttled_anonymous_caller_does_not_stop_those_with_tokens(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """All anonymous requests share one limit, which anybody can use up."""
    with gitlab.broken(answers(429, b"Retry later\n", Retry_After="60")), pytest.raises(BackendUnavailable):
        backend.grants(None, APP)
    assert backend.grants(login(gitlab, backend), APP) == PP


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"Retry_After": "7"}, 7, 7),
        ({"Retry_After": "0"}, 1, 1),
        ({"Retry_After": "-5"}, 1, 3600),
        ({"Retry_After": "99999999999999999999"}, 3600, 3600),
        ({"Retry_After": lambda now: email.utils.formatdate(now + 300, usegmt=True)}, 200, 300),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1, 1),
        ({"Retry_After": "soon"}, 1, 3600),
        ({"RateLimit_Reset": lambda now: str(int(now) + 300)}, 200, 300),
        ({}, 1, 60),
    ],
)
def test_every_way_of_saying_when_to_come_back_is_understood(
    gitlab: StubGitLab,
    backend: GitLabBackend,
    headers: dict[str, str | Callable[[float], str]],
    low: int,
    high: int,
) -> None:
    """Seconds, a date, GitLab's own header, nothing."""
    said = {name: value if isinstance(value, str) else value(time.time()) for name, value in headers.items()}
    with gitlab.broken(answers(429, b"Retry later\n", **said)), pytest.raises(BackendUnavailable) as outage:
        login(gitlab, backend)
    assert low <= outage.value.retry_after <= high


@pytest.mark.parametrize(
    "fault", [answers(502, b"<html>"), answers(429, b"Retry later"), cut], ids=["502", "429", "cut"]
)
def test_an_outage_while_rights_are_asked_for_is_no_lack_of_rights(
    gitlab: StubGitLab, backend: GitLabBackend, fault: Callable[[Handler], None]
) -> None:
    """And it is forgotten when it is over."""
    account = login(gitlab, backend)
    with gitlab.broken(fault), pytest.raises(BackendUnavailable):
        backend.grants(account, APP)


def test_an_outage_is_not_remembered(gitlab: StubGitLab) -> None:
    """The next one asks anew."""
    with asking(gitlab, grants=True, remember=300) as backend:
        account = login(gitlab, backend)
        with gitlab.broken(answers(500, b"{}")), pytest.raises(BackendUnavailable):
            backend.grants(account, APP)
        assert backend.grants(account, APP) == PP


def test_connections_are_kept_and_never_more_than_configured(gitlab: StubGitLab) -> None:
    """A burst waits for a connection; it opens no others."""
    with asking(gitlab, connections=3, remember=0) as backend, ThreadPoolExecutor(12) as threads:
        names = list(threads.map(lambda _: login(gitlab, backend).name, range(60)))
    assert set(names) == {"alice"}
    assert gitlab.connections <= 3


def test_who_gets_no_connection_is_not_kept_waiting_for_the_whole_time(
    gitlab: StubGitLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GitLab that hangs holds as many threads as there are connections, and others only briefly."""
    monkeypatch.setattr("tokenissuer_backends.gitlab.client.POOL_TIMEOUT", 0.2)
    other = gitlab.token(gitlab.user("bob"), "api")
    with asking(gitlab, connections=1, timeout=2) as backend, gitlab.broken(slow(3)), ThreadPoolExecutor(1) as thread:
        first = thread.submit(login, gitlab, backend)
        time.sleep(0.2)
        begin = time.monotonic()
        with pytest.raises(BackendUnavailable):
            backend.authenticate("bob", other)
        assert time.monotonic() - begin < 1
        with pytest.raises(BackendUnavailable):
            first.result()


def test_no_outage_uses_a_connection_up(gitlab: StubGitLab) -> None:
    """The only one there is works again after every kind of trouble."""
    faults = (
        cut,
        cut_body,
        slow(0.5),
        drip(OK, b"X-A: b\r\n"),
        answers(502, b"<html>"),
        answers(200, b" " * 2_000_000),
    )
    with asking(gitlab, connections=1, timeout=1, remember=0) as backend:
        for fault in faults:
            with gitlab.broken(fault), pytest.raises(BackendUnavailable):
                login(gitlab, backend)
            assert login(gitlab, backend).name == "alice"


def pem_file(folder: Path) -> Path:
    """Key and certificate of a TLS server on 127.0.0.1."""
    path = folder / "server.pem"
    key = signing_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(key + self_signed(signing_key(), "127.0.0.1"))
    return path


def test_tls_is_verified_against_the_system_or_the_named_certificates(tmp_path: Path) -> None:
    """There is no switch to turn that off; a GitLab that cannot prove itself sees no token."""
    server = pem_file(tmp_path)
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(certificate_in(server))
    with serving(certificate=server) as gitlab:
        alice = gitlab.user("alice")
        gitlab.token(alice, "api")
        with asking(gitlab, plain_http=False) as backend, pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
            login(gitlab, backend)
        assert not gitlab.requests
        with asking(gitlab, plain_http=False, ca_file=trusted) as backend:
            assert login(gitlab, backend).name == "alice"
        wrong_name = f"https://localhost:{gitlab.port}"
        misnamed = asking(gitlab, plain_http=False, ca_file=trusted, url=wrong_name)
        with misnamed as backend, pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
            login(gitlab, backend)


def certificate_in(server: Path) -> bytes:
    """The certificate part of a PEM file."""
    return server.read_bytes()[server.read_bytes().index(b"-----BEGIN CERTIFICATE") :]


@pytest.mark.parametrize("content", [None, b"", b"nothing to see"])
def test_a_file_of_certificates_that_cannot_be_used_stops_the_start(
    gitlab: StubGitLab, tmp_path: Path, content: bytes | None
) -> None:
    """The message names key and file."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with (
        pytest.raises(ConfigurationError, match=r"'ca_file'.*ca\.pem"),
        asking(gitlab, url="https://127.0.0.1", ca_file=path),
    ):
        pass


def test_a_proxy_in_the_environment_does_not_get_the_token(gitlab: StubGitLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What some shell of the administrator says is no configuration."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with asking(gitlab) as backend:
        assert login(gitlab, backend).name == "alice"


def test_a_server_that_is_no_gitlab_is_an_outage_not_a_refusal() -> None:
    """Somebody else's 404 is none of GitLab's."""
    with serving("/gitlab") as gitlab, asking(gitlab, url=gitlab.url.removesuffix("/gitlab")) as backend:
        gitlab.token(gitlab.user("alice"), "api")
        with pytest.raises(BackendUnavailable):
            login(gitlab, backend)
        with pytest.raises(BackendUnavailable):
            backend.check()


def test_a_gitlab_too_old_to_describe_tokens_is_an_outage_that_says_so(
    gitlab: StubGitLab, backend: GitLabBackend
) -> None:
    """Nobody's token is wrong for that."""
    body = b'{"error":"404 Not Found"}'
    with gitlab.broken(answers(404, body)), pytest.raises(BackendUnavailable, match=r"15\.5"):
        login(gitlab, backend)


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":"401 Unauthorized"}',
        b'{"error":"invalid_token","error_description":"Token is expired."}',
        b'{"message":{"base":["no"]}}',
        b'{"error":"dpop_error"}',
    ],
)
def test_both_shapes_of_gitlabs_refusals_are_understood(
    gitlab: StubGitLab, backend: GitLabBackend, body: bytes
) -> None:
    """Its words go to the log, on one line."""
    with gitlab.broken(answers(401, body)), pytest.raises(InvalidCredentials) as refusal:
        login(gitlab, backend)
    assert "401" in refusal.value.reason
    assert refusal.value.reason.isprintable()


def test_anonymous_callers_use_up_their_own_requests_and_no_logins(gitlab: StubGitLab) -> None:
    """Invented names cost GitLab a bounded number of requests; whose token it is can still be looked up."""
    token = gitlab.token(gitlab.users[0], "read_registry", "write_registry")
    with asking(gitlab, grants=True, anonymous_requests=10) as backend:
        invented = [Access("repository", f"invented{number}/app", frozenset({"pull"})) for number in range(11)]
        for each in invented[:10]:
            assert backend.grants(None, each) == frozenset()
        with pytest.raises(BackendUnavailable, match="'anonymous_requests'") as outage:
            backend.grants(None, invented[10])
        assert gitlab.asked("registry/repositories") == 10
        assert outage.value.retry_after == 6
        account = backend.authenticate("alice", token)
        assert backend.grants(account, APP) == PP


def test_a_rate_limit_for_anonymous_callers_is_theirs(gitlab: StubGitLab) -> None:
    """GitLab's 429 to them makes nobody wait who logs in."""
    token = gitlab.token(gitlab.users[0], "read_registry")
    with asking(gitlab, grants=True) as backend:
        with gitlab.broken(answers(429, b"Retry later\n", Retry_After="60")), pytest.raises(BackendUnavailable):
            backend.grants(None, APP)
        assert backend.authenticate("alice", token).name == "alice"
        with pytest.raises(BackendUnavailable, match="rate limit"):
            backend.grants(None, APP)


def test_a_gitlab_that_is_too_old_is_named(gitlab: StubGitLab) -> None:
    """To wait is no use: the client is told, and the administrator by `check`."""
    gitlab.describes_tokens = False
    own = Secret(gitlab.token(gitlab.user("observer"), "read_api"))
    with asking(gitlab, token=own) as backend:
        cached = CachedBackend("gitlab", backend)
        with pytest.raises(BackendUnavailable, match=r"15\.5") as outage:
            cached.authenticate("alice", gitlab.tokens[0].text)
        assert "too old" in outage.value.description
        assert outage.value.retry_after == 3600
        (finding,) = [each for each in backend.diagnose() if each.severity is Severity.ERROR]
        assert "15.5" in finding.remedy
