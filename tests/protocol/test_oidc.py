"""The backend `oidc` with a provider of the tests' own: what is let in, as whom, and what is refused and why."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.support.http import basic
from tests.support.machine import wait_until
from tests.support.oidc import (
    AUDIENCE,
    DISCOVERY,
    KEYS,
    KUBERNETES_HEADER,
    Fault,
    Provider,
    asking,
    encode,
    github_claims,
    gitlab_claims,
    jwk,
    kubernetes_claims,
    private_key,
    providing,
    public_pem,
    signed,
)
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions
from tokenissuer.config import parse_config
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    TooManyAttempts,
    UnknownAccount,
)
from tokenissuer.options import decode
from tokenissuer.testing import BackendContract
from tokenissuer_backends.oidc import PRESETS, OidcOptions, keys
from tokenissuer_backends.oidc import claims as claims_module

pytestmark = pytest.mark.timeout(60)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
WRONG = "wrong user name or password"
EXPIRED = "the ID token has expired; get a new one from your platform"
DOCS = Path(__file__).parents[2] / "docs" / "oidc.md"
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    """A provider with one RSA key."""
    with providing(tmp_path) as provider:
        yield provider


class Clock(SimpleNamespace):
    """The time as the backend sees it."""

    ahead = 0.0

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return time.monotonic() + self.ahead

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The backend's clock, which tests put forward."""
    clock = Clock()
    for module in (claims_module, keys):
        monkeypatch.setattr(module, "time", clock)
    return clock


def refusal(backend: Backend, token: str, username: str = "any") -> InvalidCredentials:
    """How a token is refused; it never counts as a guess, and no text has the token."""
    with pytest.raises(InvalidCredentials) as caught:
        backend.authenticate(username, token)
    error = caught.value
    assert not isinstance(error, UnknownAccount), error.reason
    assert not error.is_guess
    for part in token.split("."):
        assert len(part) < 10 or part not in error.reason + error.description
    return error


def outage(backend: Backend, token: str) -> str:
    """Why the backend cannot tell."""
    with pytest.raises(BackendUnavailable) as caught:
        backend.authenticate("any", token)
    assert token not in caught.value.reason
    return caught.value.reason


def login(backend: Backend, token: str) -> str:
    """The account's name."""
    return backend.authenticate("any", token).name


# What is let in.


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_every_algorithm_is_good(provider: Provider, algorithm: str) -> None:
    """The key is for this algorithm, or for all of its kind."""
    provider.add_key("other", algorithm)
    provider.add_key("open", algorithm, alg=None)
    del provider.published[-1]["alg"]
    backend = asking(provider)
    for key_id in ("other", "open"):
        account = backend.authenticate("any", provider.token(key_id, exp=int(time.time()) + 77))
        assert account.name == "ci:robot"
        assert account.credential_ends is not None
        assert 70 < account.credential_ends - time.time() <= 77
        assert (account.groups, account.groups_known, account.password_version) == (frozenset(), True, "")


def test_a_tokens_header_may_be_short(provider: Provider) -> None:
    """Kubernetes has no type; a provider may have no key ids."""
    backend = asking(provider)
    for header in ({"typ": None}, {"typ": "jwt"}, {"kid": None}, {"typ": None, "kid": None}, {"kid": ""}):
        assert login(backend, provider.token(header=header)) == "ci:robot"


def test_a_token_may_be_for_others_as_well(provider: Provider) -> None:
    """RFC 7519, 4.1.3: one of the audiences."""
    backend = asking(provider)
    for audience in (AUDIENCE, [AUDIENCE], ["https://vault.example", AUDIENCE]):
        assert login(backend, provider.token(aud=audience)) == "ci:robot"


def test_clocks_may_differ_by_half_a_minute(provider: Provider) -> None:
    """At a token's beginning; its end counts to the second, because access tokens are reckoned from it."""
    backend, now = asking(provider), int(time.time())
    assert login(backend, provider.token(iat=now + 25, nbf=now + 25)) == "ci:robot"
    assert login(backend, provider.token(nbf=None)) == "ci:robot"
    assert login(backend, provider.token(exp=now + 5.5)) == "ci:robot"
    assert refusal(backend, provider.token(exp=now)).description == EXPIRED


def test_the_issuer_may_have_a_path_or_a_slash_at_its_end(tmp_path: Path) -> None:
    """The address of the document is made of it (OpenID Connect Discovery, 4)."""
    for root in ("/tenant/7", "/"):
        with providing(tmp_path, root) as provider:
            provider.root = root.rstrip("/")
            assert login(asking(provider), provider.token()) == "ci:robot"


def test_a_file_of_keys_needs_no_provider(provider: Provider, tmp_path: Path) -> None:
    """Nobody is asked, and the file is watched."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": provider.published}))
    backend = asking(provider, jwks_file=path)
    backend.check()
    assert login(backend, provider.token()) == "ci:robot"
    provider.add_key("second", "ES256")
    assert "no key of the provider has signed it" in refusal(backend, provider.token("second")).reason
    assert not provider.requests


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"keys": []}', '{"keys": 5}', '{"keys": [5, {}]}', "[" * 5000])
def test_a_file_without_keys_is_an_error(provider: Provider, tmp_path: Path, content: str) -> None:
    """It says which file."""
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"'jwks_file': .*keys\.json (has no key that can|is not JSON)"):
        asking(provider, jwks_file=path)


# What is refused.

Forge = Callable[[Provider], str]


def with_header(**header: Any) -> Forge:
    """A token with another header, signed with the right key."""
    return lambda provider: provider.token(header=header)


def with_claims(**claims: Any) -> Forge:
    """A token with other claims, signed with the right key."""
    return lambda provider: provider.token(
        **{name: value() if callable(value) else value for name, value in claims.items()}
    )


def by_key(algorithm: str, number: int = 0, **header: Any) -> Forge:
    """A token that a key signs that is not published."""

    def forge(provider: Provider) -> str:
        key = private_key("RSA" if algorithm[:2] in ("RS", "PS") else algorithm, number)
        head = {"alg": algorithm, "kid": "first", **header}
        return signed({name: value for name, value in head.items() if value}, provider.claims(), key, algorithm)

    return forge


def swapped_header(provider: Provider) -> str:
    """The signature of one header under another."""
    other = encode(json.dumps({"alg": "RS256", "kid": "first", "typ": "JWT", "x": 1}).encode())
    return ".".join([other, *provider.token().split(".")[1:]])


def swapped_claims(provider: Provider) -> str:
    """The signature of some claims under others."""
    head, _, end = provider.token().split(".")
    return f"{head}.{encode(json.dumps(provider.claims(sub='root')).encode())}.{end}"


def with_public_key_as_secret(provider: Provider) -> str:
    """The classic: HMAC with what everybody knows."""
    return signed({"alg": "HS256", "kid": "first"}, provider.claims(), public_pem(provider.keys["first"][1]))


def in_the_future(seconds: float) -> Callable[[], int]:
    """A time to come."""
    return lambda: int(time.time() + seconds)


NO_KEY, MALFORMED = "no key of the provider has signed it", "it is malformed"
REFUSED: Mapping[str, tuple[Forge, str]] = {
    "another audience": (with_claims(aud="https://vault.example"), "its 'aud' is 'https://vault.example'"),
    "other audiences": (with_claims(aud=["a", AUDIENCE.upper()]), "its 'aud' is ['a', 'REGISTRY.EXAMPLE']"),
    "an audience that begins so": (with_claims(aud=f"{AUDIENCE}.evil"), "its 'aud' is"),
    "audience in a table": (with_claims(aud={AUDIENCE: AUDIENCE}), "its 'aud' is"),
    "audiences of another type": (with_claims(aud=[AUDIENCE, 5]), "its 'aud' is"),
    "no audience": (with_claims(aud=None), "it has no 'aud'"),
    "an empty audience": (with_claims(aud=""), "it has no 'aud'"),
    "no subject": (with_claims(sub=None), "it has no 'sub'"),
    "a subject that is no text": (with_claims(sub=["robot"]), MALFORMED),
    "no end": (with_claims(exp=None), "it has no 'exp'"),
    "no beginning": (with_claims(iat=None), "it has no 'iat'"),
    "an end in words": (with_claims(exp="tomorrow"), "its 'exp' is no time"),
    "an end as text": (with_claims(exp="99999999999"), "its 'exp' is no time"),
    "an end that is true": (with_claims(exp=True), "its 'exp' is no time"),
    "an endless end": (with_claims(exp=float("inf")), "its 'exp' is no time"),
    "an end that is no number": (with_claims(exp=float("nan")), "its 'exp' is no time"),
    "an end of many digits": (with_claims(exp=10**400), "its 'exp' is no time"),
    "a list of ends": (with_claims(exp=[99999999999]), "its 'exp' is no time"),
    "a negative beginning": (with_claims(iat=-5), "its 'iat' is no time"),
    "a beginning as text": (with_claims(nbf="5"), "its 'nbf' is no time"),
    "a list of beginnings": (with_claims(nbf=[]), MALFORMED),
    "an issue in words": (with_claims(iat="now"), MALFORMED),
    "an endless issue": (with_claims(iat=float("inf")), MALFORMED),
    "issued later": (with_claims(iat=in_the_future(40)), "its 'nbf' or 'iat' is in the future"),
    "valid later": (with_claims(nbf=in_the_future(40)), "its 'nbf' or 'iat' is in the future"),
    "an id that is no text": (with_claims(jti=5), MALFORMED),
    "an access token": (with_header(typ="at+jwt"), "its header"),
    "a logout token": (with_header(typ="logout+jwt"), "its header"),
    "a type that is no text": (with_header(typ=["JWT"]), "its header"),
    "a critical header": (with_header(crit=["exp"], exp=5), "its header"),
    "an empty critical header": (with_header(crit=[]), "its header"),
    "an unencoded payload": (with_header(b64=False, crit=["b64"]), "its header"),
    "an unencoded payload in secret": (with_header(b64=False), MALFORMED),
    "a key id that is no text": (with_header(kid=5), "its header"),
    "a list of key ids": (with_header(kid=["first"]), "its header"),
    "no algorithm": (with_header(alg=None), NO_KEY),
    "a list of algorithms": (with_header(alg=["RS256"]), NO_KEY),
    "no signature": (lambda provider: signed({"alg": "none", "kid": "first"}, provider.claims(), None), NO_KEY),
    "None signature": (lambda provider: signed({"alg": "nOnE"}, provider.claims(), None), NO_KEY),
    "an empty signature": (
        lambda provider: signed({"alg": "RS256", "kid": "first"}, provider.claims(), None, "none"),
        NO_KEY,
    ),
    "the public key as a secret": (with_public_key_as_secret, NO_KEY),
    "an empty secret": (lambda provider: signed({"alg": "HS256", "kid": "first"}, provider.claims(), b""), NO_KEY),
    "somebody else's key": (by_key("RS256", 9), NO_KEY),
    "somebody else's key without an id": (by_key("RS256", 9, kid=None), NO_KEY),
    "a key in the header": (by_key("RS256", 9, jwk=jwk(private_key("RSA", 9))), NO_KEY),
    "an address in the header": (by_key("RS256", 9, jku="https://127.0.0.1:1/keys"), NO_KEY),
    "a key of another kind": (by_key("ES256", 9), NO_KEY),
    "a hash the key is not for": (with_header(alg="RS512"), NO_KEY),
    "a padding the key is not for": (with_header(alg="PS256"), NO_KEY),
    "another header": (swapped_header, NO_KEY),
    "other claims": (swapped_claims, NO_KEY),
    "a key id of nobody": (with_header(kid="../../first"), NO_KEY),
    "more behind the signature": (lambda provider: provider.token() + "AAAA", NO_KEY),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_token_is_refused_for_a_reason_that_only_the_log_has(provider: Provider, name: str) -> None:
    """And a good one is good before and after."""
    forge, reason = REFUSED[name]
    backend = asking(provider)
    assert login(backend, provider.token()) == "ci:robot"
    error = refusal(backend, forge(provider))
    assert error.reason.startswith("the ID token is refused: ")
    assert reason in error.reason
    assert error.description == WRONG
    assert login(backend, provider.token()) == "ci:robot"
    assert provider.fetches == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_key_verifies_what_it_is_not_for(provider: Provider, algorithm: str) -> None:
    """The algorithm comes from the key and its kind, never from the token."""
    provider.add_key("other", algorithm)
    backend = asking(provider)
    good = provider.token("other")
    for claimed in {*ALGORITHMS, "HS256", "HS512", "none", "ES256K", "RSA1_5", ""} - {algorithm}:
        assert NO_KEY in refusal(backend, provider.token("other", header={"alg": claimed})).reason
    assert login(backend, good) == "ci:robot"


def test_a_token_with_the_id_of_another_key_is_refused(provider: Provider) -> None:
    """Each with the signature of the other, and both are the provider's."""
    provider.add_key("second", "RS256", 1)
    backend = asking(provider)
    for key_id, other in (("first", "second"), ("second", "first")):
        assert login(backend, provider.token(key_id)) == "ci:robot"
        assert NO_KEY in refusal(backend, provider.token(key_id, header={"kid": other})).reason
    assert provider.fetches == 1


def test_only_who_would_be_let_in_reads_that_the_token_has_expired(provider: Provider) -> None:
    """All else is checked before."""
    backend = asking(provider, require={"team": "a"})
    past: dict[str, Any] = {"iat": int(time.time()) - 900, "nbf": int(time.time()) - 900, "exp": int(time.time()) - 600}
    error = refusal(backend, provider.token(team="a", **past))
    assert (error.description, error.reason) == (EXPIRED, "the ID token has expired")
    other = private_key("RSA", 9)
    for token in (
        provider.token(team="b", **past),
        provider.token(team="a", aud="others", **past),
        signed({"alg": "RS256", "kid": "first"}, provider.claims(team="a", **past), other),
    ):
        assert refusal(backend, token).description == WRONG


@pytest.mark.parametrize(
    "password",
    [
        "a password",
        "x",
        "a.b.c",
        "...",
        "..",
        "1.2.3",
        "e30.e30",
        "e30.e30.e30",
        "e30.e30.e30.e30.e30",
        "eyJhbGciOiJub25lIn0.W10.",
        "bnVsbA.bnVsbA.",
        "glpat-xxxxxxxxxxxxxxxxxxxx",
        "é.é.é",
        ".".join([encode(b"[" * 1500), encode(b"{}"), ""]),
        ".".join([encode(b'{"a":' * 300), encode(b"{}"), ""]),
        ".".join([encode(b"{}"), encode(b'{"iss":' + b"9" * 3000 + b"}"), ""]),
        ".".join([encode(b"\xff\xfe"), encode(b"\xff\xfe"), ""]),
    ],
)
def test_what_is_no_id_token_is_passed_on_at_once(provider: Provider, password: str) -> None:
    """Nobody is asked about somebody's password."""
    with pytest.raises(UnknownAccount) as caught:
        asking(provider).authenticate("any", password)
    assert password not in caught.value.reason
    assert not provider.requests


def test_a_token_of_another_issuer_is_passed_on_whatever_it_is(provider: Provider) -> None:
    """Another backend may be for it, also for types that this one does not take."""
    backend = asking(provider)
    for issuer in (
        "https://gitlab.com",
        f"{provider.issuer}/",
        provider.issuer.upper(),
        "",
        None,
        [provider.issuer],
        5,
    ):
        for header in ({}, {"typ": "at+jwt"}, {"crit": ["x"]}, {"kid": 5}):
            with pytest.raises(UnknownAccount, match="of another issuer"):
                backend.authenticate("any", provider.token(header=header, iss=issuer))
    encrypted = f"{provider.token()}.{encode(b'x' * 16)}.{encode(b'x' * 16)}"
    with pytest.raises(UnknownAccount, match="no ID token"):
        backend.authenticate("any", encrypted)
    assert not provider.requests


def test_a_user_name_may_be_required(provider: Provider) -> None:
    """Others are not this backend's."""
    backend = asking(provider, username="ci")
    assert backend.authenticate("ci", provider.token()).name == "ci:robot"
    with pytest.raises(UnknownAccount):
        backend.authenticate("CI", provider.token())


def test_any_change_of_a_single_letter_is_refused(provider: Provider) -> None:
    """Wherever it is; base64 has letters of which only a part counts."""
    provider.add_key("second", "ES256")
    backend, token = asking(provider), provider.token("second")
    assert login(backend, token) == "ci:robot"
    for place in range(0, len(token), 7):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        with pytest.raises(InvalidCredentials):
            backend.authenticate("any", changed)


# The provider's keys.


def test_keys_are_fetched_once_for_many_logins(provider: Provider) -> None:
    """Also if all come at the same moment."""
    backend, provider.delay = asking(provider), 0.2
    tokens = [provider.token() for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(lambda token: login(backend, token), tokens)) == {"ci:robot"}
    assert provider.requests == [DISCOVERY, KEYS]


def test_a_new_key_is_found_when_a_token_names_it(provider: Provider, clock: Clock) -> None:
    """At most once a minute; the old key is gone with the new list."""
    backend, old = asking(provider), provider.token()
    assert login(backend, old) == "ci:robot"
    provider.published.clear()
    provider.add_key("second", "ES256")
    clock.ahead += 61
    assert login(backend, provider.token("second")) == "ci:robot"
    assert provider.fetches == 2
    assert NO_KEY in refusal(backend, old).reason
    assert provider.fetches == 2


def test_a_new_key_without_an_id_is_found_too(provider: Provider, clock: Clock) -> None:
    """No id says that it is new, only that no signature is right."""
    provider.published[:] = [jwk(private_key("RSA"))]
    backend = asking(provider)
    assert login(backend, provider.token(header={"kid": None})) == "ci:robot"
    assert login(backend, provider.token(header={"kid": "whatever"})) == "ci:robot"
    provider.add_key("second", "ES256")
    provider.published[:] = [jwk(private_key("ES256"))]
    assert NO_KEY in refusal(backend, provider.token("second")).reason
    clock.ahead += 61
    assert login(backend, provider.token("second")) == "ci:robot"
    assert provider.fetches == 2


def test_many_unknown_key_ids_cost_one_fetch_a_minute(provider: Provider, clock: Clock) -> None:
    """Anybody can make up tokens of this issuer."""
    backend = asking(provider)
    forged = [by_key("RS256", 9, kid=f"random-{number}")(provider) for number in range(40)]
    for token in forged:
        assert NO_KEY in refusal(backend, token).reason
    assert provider.fetches == 1
    for minute in range(1, 4):
        clock.ahead = 61 * minute
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda token: refusal(backend, token), forged))
        assert provider.fetches == 1 + minute


def test_keys_are_fetched_again_every_hour(provider: Provider, clock: Clock) -> None:
    """A key that was taken back is not believed for ever."""
    backend = asking(provider)
    assert login(backend, provider.token()) == "ci:robot"
    provider.published.clear()
    provider.add_key("second", "ES256")
    token = provider.token(exp=int(time.time()) + 9000)
    clock.ahead = keys.KEYS_FRESH - 5
    assert login(backend, token) == "ci:robot"
    clock.ahead = keys.KEYS_FRESH + 5
    assert NO_KEY in refusal(backend, token).reason


def test_keys_are_used_on_while_the_provider_is_down(
    provider: Provider, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """For a day. The log says so once, and once that it is over."""
    backend = asking(provider)
    provider.add_key("unpublished", "ES256")
    del provider.published[-1]
    far = int(time.time()) + 10 * keys.KEYS_LAST
    good, unknown = provider.token(exp=far), provider.token("unpublished", exp=far)
    assert login(backend, good) == "ci:robot"
    with provider.broken(Fault(503)):
        for hours in range(2, 24, 2):
            clock.ahead = hours * 3600
            assert login(backend, good) == "ci:robot"
            backend.check()
            # Nobody knows whether it is one of its keys by now: that is no refusal.
            assert "answered 503" in outage(backend, unknown)
            # Of a known key this is certain.
            assert NO_KEY in refusal(backend, by_key("RS256", 9)(provider)).reason
        clock.ahead = keys.KEYS_LAST + 60
        assert "answered 503" in outage(backend, good)
        with pytest.raises(BackendUnavailable):
            backend.check()
    clock.ahead += keys.RETRY + 1
    assert login(backend, good) == "ci:robot"
    assert NO_KEY in refusal(backend, unknown).reason
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "answered 503" in warnings[0]
    assert "can be fetched again" in warnings[1]


def test_a_provider_that_is_down_at_the_start_is_asked_again_soon(provider: Provider, clock: Clock) -> None:
    """Not by every login, which may be many."""
    backend, token = asking(provider), provider.token()
    with provider.broken(Fault(cut=True)):
        for _ in range(5):
            outage(backend, token)
        assert len(provider.requests) == 1
        clock.ahead += keys.RETRY + 1
        outage(backend, token)
        assert len(provider.requests) == 2
    clock.ahead += keys.RETRY + 1
    assert login(backend, token) == "ci:robot"


def test_a_slow_provider_keeps_nobody_waiting_whose_key_is_known(provider: Provider, clock: Clock) -> None:
    """One login fetches; the others go on."""
    backend, token = asking(provider), provider.token(exp=int(time.time()) + 9000)
    login(backend, token)
    clock.ahead, provider.delay = keys.KEYS_FRESH + 5, 1.5
    first = threading.Thread(target=login, args=(backend, token))
    first.start()
    time.sleep(0.3)
    started = time.monotonic()
    for _ in range(20):
        login(backend, token)
    assert time.monotonic() - started < 1
    first.join()
    assert wait_until(lambda: provider.fetches == 2)


def test_made_up_keys_keep_nobody_out_while_the_provider_hangs(provider: Provider, clock: Clock) -> None:
    """Anybody can write any key id into a token."""
    cached = CachedBackend("ci", asking(provider))
    cached.authenticate("any", provider.token())
    clock.ahead, provider.delay = keys.REFETCH + 1, keys.TIMEOUT
    forged = [by_key("RS256", 9, kid=f"random-{number}")(provider) for number in range(40)]

    def stranger(token: str) -> str:
        with pytest.raises(BackendUnavailable) as caught:
            cached.authenticate("any", token)
        return caught.value.reason

    with ThreadPoolExecutor(40) as threads:
        strangers = [threads.submit(stranger, token) for token in forged]
        time.sleep(0.3)
        jobs = [cached.authenticate("any", provider.token(jti=str(number))).name for number in range(5)]
    assert jobs == ["ci:robot"] * 5
    assert "the provider's keys are still being fetched" in {each.result() for each in strangers}


def test_a_fetch_that_cannot_begin_or_was_another_process_does_not_stop_all_others(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread may be started now, or this process was forked while one fetched."""
    backend = asking(provider)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no more threads")))
        assert "no thread can be started" in outage(backend, provider.token())
    assert login(backend, provider.token()) == "ci:robot"
    backend = asking(provider)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda self: None)
        patched.setattr(keys, "TIMEOUT", 0.1)
        assert "still being fetched" in outage(backend, provider.token())
    clock.ahead += 4 * keys.TIMEOUT + 1
    assert login(backend, provider.token()) == "ci:robot"


def test_whoever_waits_in_vain_is_told_of_an_outage(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a refusal."""
    monkeypatch.setattr(keys, "TIMEOUT", 0.5)
    backend, provider.delay = asking(provider), 0.4
    tokens = [provider.token() for _ in range(6)]
    started = time.monotonic()
    with provider.broken(Fault(drip=True)), ThreadPoolExecutor(6) as threads:
        reasons = list(threads.map(lambda token: outage(backend, token), tokens))
    assert len(reasons) == 6
    assert time.monotonic() - started < 5


LARGE = b'{"issuer": "' + b"x" * (keys.MAX_ANSWER + 10) + b'"}'
FAULTS: Mapping[str, tuple[str, Fault, str]] = {
    "absent": (DISCOVERY, Fault(404), "answered 404"),
    "forbidden": (DISCOVERY, Fault(403), "answered 403"),
    "down": (DISCOVERY, Fault(503), "answered 503"),
    "empty": (DISCOVERY, Fault(204, b""), "answered 204"),
    "cut": (DISCOVERY, Fault(cut=True), "RemoteDisconnected"),
    "a page": (DISCOVERY, Fault(body=b"<html>log in</html>"), "not a JSON object"),
    "a list": (DISCOVERY, Fault(body=b"[]"), "not a JSON object"),
    "not text": (DISCOVERY, Fault(body=b"\xff\xfe\x00"), "not a JSON object"),
    "nested": (DISCOVERY, Fault(body=b"[" * 100_000), "not a JSON object"),
    "large": (DISCOVERY, Fault(body=LARGE), "more than"),
    "large without an end": (DISCOVERY, Fault(body=LARGE, drip=True), "more than"),
    "drip": (DISCOVERY, Fault(body=b"{", drip=True), "no answer in time"),
    "packed": (DISCOVERY, Fault(body=b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"}), "not a JSON object"),
    "an empty object": (DISCOVERY, Fault(), "calls itself None"),
    "no keys": (KEYS, Fault(body=b'{"keys": []}'), "no key that can be used"),
    "keys of another form": (KEYS, Fault(body=b'{"keys": {"kty": "RSA"}}'), "no key that can be used"),
    "keys absent": (KEYS, Fault(404), "answered 404"),
    "large keys": (KEYS, Fault(body=LARGE), "more than"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_provider_is_an_outage(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, clock: Clock, name: str
) -> None:
    """The log says which address and what; the next try may be right."""
    monkeypatch.setattr(keys, "TIMEOUT", 1)
    backend, (path, fault, words) = asking(provider), FAULTS[name]
    with provider.broken(fault, path):
        assert words in outage(backend, provider.token())
    clock.ahead += keys.RETRY + 1
    assert login(backend, provider.token()) == "ci:robot"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
def test_no_redirect_is_followed(provider: Provider, tmp_path: Path, status: int, path: str) -> None:
    """Not to another host, and not to the same one either."""
    (tmp_path / "other").mkdir()
    with providing(tmp_path / "other") as other:
        for target in (other.address + path, path):
            requests = len(provider.requests)
            with provider.broken(Fault(status, headers={"Location": target}), path):
                assert f"answered {status}" in outage(asking(provider), provider.token())
            assert len(provider.requests) - requests == (1 if path == DISCOVERY else 2)
        assert not other.requests


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"issuer": ["x"]},
        {"jwks_uri": "http://127.0.0.1:1/keys"},
        {"jwks_uri": "HTTP://127.0.0.1:1/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "/keys"},
        {"jwks_uri": "https://"},
        {"jwks_uri": "https://[::1/keys"},
        {"jwks_uri": "https://127.0.0.1:99999/keys"},
        {"jwks_uri": None},
        {"jwks_uri": {"a": 1}},
    ],
)
def test_a_discovery_document_that_is_not_this_issuers_is_an_outage(
    provider: Provider, change: Mapping[str, Any]
) -> None:
    """And so is one that leads elsewhere than to https."""
    provider.more.update(change)
    words = "calls itself" if "issuer" in change else "no https jwks_uri"
    assert words in outage(asking(provider), provider.token())
    assert provider.requests == [DISCOVERY]


def test_keys_may_be_on_another_host_with_a_certificate(provider: Provider, tmp_path: Path) -> None:
    """As at Google; without a certificate that is trusted there are none."""
    (tmp_path / "other").mkdir()
    with providing(tmp_path / "other") as other:
        provider.more["jwks_uri"] = other.address + KEYS
        assert "CERTIFICATE_VERIFY_FAILED" in outage(asking(provider), provider.token())
        both = tmp_path / "both.pem"
        both.write_bytes(provider.ca_file.read_bytes() + other.ca_file.read_bytes())
        backend = asking(provider, ca_file=both)
        assert login(backend, provider.token()) == "ci:robot"
        assert (provider.fetches, other.fetches) == (0, 1)
    assert "refused" in outage(asking(provider, ca_file=both), provider.token())


def test_a_certificate_that_is_not_trusted_is_an_outage(provider: Provider) -> None:
    """By the system's certificates, or for another name."""
    assert "CERTIFICATE_VERIFY_FAILED" in outage(asking(provider, ca_file=None), provider.token())
    elsewhere = provider.issuer.replace("127.0.0.1", "localhost")
    provider.more["issuer"] = elsewhere
    backend = asking(provider, issuer=elsewhere)
    assert "CERTIFICATE_VERIFY_FAILED" in outage(backend, provider.token(iss=elsewhere))
    assert not provider.requests


RSA = private_key("RSA")
UNUSABLE_KEYS: Mapping[str, Mapping[str, Any]] = {
    "for encryption": jwk(RSA, kid="first", use="enc"),
    "for another use": jwk(RSA, kid="first", use=["sig"]),
    "for another operation": jwk(RSA, kid="first", key_ops=["sign", "encrypt"]),
    "for operations of another type": jwk(RSA, kid="first", key_ops=5),
    "for another algorithm": jwk(RSA, kid="first", alg="RSA-OAEP-256"),
    "for HMAC": jwk(RSA, kid="first", alg="HS256"),
    "for no signature": jwk(RSA, kid="first", alg="none"),
    "too short": jwk(private_key("1024"), kid="first"),
    "symmetric": {"kty": "oct", "kid": "first", "k": encode(b"x" * 32), "alg": "HS256"},
    "without a kind": {"kid": "first"},
    "of an unknown kind": {"kty": "AKP", "kid": "first", "alg": "ML-DSA-65", "pub": "AA"},
    "on an unknown curve": {**jwk(private_key("ES256"), kid="first"), "crv": "secp256k1"},
    "not on its curve": {**jwk(private_key("ES256"), kid="first"), "x": encode(b"\1" * 32)},
    "without its numbers": {"kty": "RSA", "kid": "first"},
    "with numbers as numbers": {"kty": "RSA", "kid": "first", "n": 5, "e": 3},
    "with empty numbers": {"kty": "RSA", "kid": "first", "n": "", "e": ""},
    "with numbers as lists": {"kty": "EC", "crv": "P-256", "kid": "first", "x": [], "y": {}},
    "an Ed25519 key of no length": {"kty": "OKP", "crv": "Ed25519", "kid": "first", "x": ""},
    "a curve for encryption": {"kty": "OKP", "crv": "X25519", "kid": "first", "x": encode(b"\1" * 32)},
}


@pytest.mark.parametrize("name", UNUSABLE_KEYS)
def test_a_key_that_is_not_for_signatures_is_passed_over(provider: Provider, name: str) -> None:
    """RFC 7517, 5: the others count."""
    provider.add_key("second", "ES256")
    provider.published[:] = [5, None, UNUSABLE_KEYS[name], provider.published[1]]
    backend = asking(provider)
    assert login(backend, provider.token("second")) == "ci:robot"
    assert NO_KEY in refusal(backend, provider.token()).reason


def test_a_key_set_with_private_keys_verifies_all_the_same(provider: Provider, tmp_path: Path) -> None:
    """Somebody may have saved the wrong file."""
    path = tmp_path / "keys.json"
    path.write_text(
        json.dumps({"keys": [{**provider.published[0], "d": "AQAB", "p": "AQAB", "x5c": ["x"], "kid": None}]})
    )
    assert login(asking(provider, jwks_file=path), provider.token()) == "ci:robot"


# Names, groups and what is required.


def account(provider: Provider, claims: Mapping[str, Any], **options: Any) -> Account:
    """Who the backend says it is."""
    return asking(provider, **options).authenticate("any", provider.token(**claims))


def test_groups_are_made_of_claims(provider: Provider) -> None:
    """Of each value of a list; a claim that is missing or empty leaves its group out."""
    claims = {
        "team": ["a", "b"],
        "level": 3,
        "prod": True,
        "dev": False,
        "nothing": None,
        "empty": "",
        "blank": [],
        "table": {"a": {"b": "deep"}, "c": 5},
        "https://example.org/roles": ["Pusher"],
        "mixed": ["x", 7, None, {"a": 1}, ["y"], 1.5],
    }
    templates = (
        "team:{team}",
        "level:{level}",
        "flag-{prod}-{dev}:{team}",
        "x:{nothing}",
        "x:{empty}",
        "x:{blank}",
        "x:{absent}",
        "x:{table}",
        "deep:{table/a/b}",
        "deep:{table/absent/b}",
        "deep:{table/c/b}",
        "role:{https://example.org/roles}",
        "mixed:{mixed}",
        "constant",
    )
    found = account(provider, claims, groups=templates)
    assert found.groups == {
        *("team:a", "team:b", "level:3", "flag-true-false:a", "flag-true-false:b"),
        *("deep:deep", "role:pusher", "mixed:x", "mixed:7", "constant"),
    }
    # A table and a number with a fraction were among the values: nobody knows what they mean.
    assert not found.groups_known
    assert account(provider, claims, groups=("team:{team}", "x:{absent}", "x:{blank}")).groups_known


@pytest.mark.parametrize("value", [None, "", [], {}, {"a": 1}, ["a", "b"], 1.5, "a\nb", "\0", "x" * 600, "\u202eevil"])
def test_an_account_has_one_printable_name_or_none(provider: Provider, value: object) -> None:
    """Otherwise nobody is logged in."""
    error = refusal(asking(provider, account="ci:{team}"), provider.token(team=value))
    assert "a claim that 'account' names is missing, or cannot be in a name" in error.reason


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("kubernetes:system:serviceaccount:ci:root", "ci:kubernetes:system:serviceaccount:ci:root"),
        ("alice", "ci:alice"),
        ("", None),
        ("{account}", "ci:{account}"),
        ("{iss}", "ci:{iss}"),
        ("*", "ci:*"),
        ("../../etc", "ci:../../etc"),
        ("ci:robot", "ci:ci:robot"),
        ("é" * 100, "ci:" + "é" * 100),
        ("x\r\nlevel=info", None),
    ],
)
def test_a_hostile_subject_is_nobody_else(provider: Provider, subject: str, name: str | None) -> None:
    """It stays behind the word that begins the name, and is not read as a template."""
    backend = asking(provider)
    if name is None:
        refusal(backend, provider.token(sub=subject))
    else:
        assert login(backend, provider.token(sub=subject)) == name


def test_no_two_sets_of_claims_have_one_name(provider: Provider) -> None:
    """A claim cannot hold what separates it from the next."""
    backend = asking(provider, account="ci:{project}:{branch}")
    assert login(backend, provider.token(project="a", branch="b:c")) == "ci:a:b:c"
    refusal(backend, provider.token(project="a:b", branch="c"))


def test_what_a_job_chooses_cannot_move_the_path_behind_the_colon(provider: Provider) -> None:
    """`{group}` in a rule is what is behind the last one; and a denial for groups holds for such a job."""
    templates = ("env-{environment}:{project}", "job:{project}", "tier:{environment}")
    for environment in ("x:other/secret", "x\ny", "é\u200b", "x" * 600):
        found = account(provider, {"project": "a/b", "environment": environment}, groups=templates)
        assert found.groups == {"job:a/b"}
        assert not found.groups_known
    found = account(provider, {"project": "a/b", "environment": "prod"}, groups=templates)
    assert found.groups == {"env-prod:a/b", "job:a/b", "tier:prod"}
    assert found.groups_known


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        ("main", ["main", ["x", "main"]], ["Main", "main2", "xmain", "main\n", "", None, [], ["x"], {"main": 1}, True]),
        ("release/*", ["release/1", "release/", "release/a/b"], ["release", "xrelease/1", "release\n/1"]),
        ("*-ok", ["-ok", "a-ok", "-ok-ok"], ["-ok-", "ok", ""]),
        ("a*b*c", ["abc", "aXbXc", "abbc", "abcbc"], ["ab", "ac", "acb", "xabc"]),
        ("*", ["x", 0, False, "é"], [None, "", []]),
        ("a.c", ["a.c"], ["abc"]),
        ("[ab]", ["[ab]"], ["a"]),
        ("x?", ["x?"], ["xy", "x"]),
        ("7", [7, "7"], [7.0, 77]),
        ("true", [True, "true"], [False, 1, "True"]),
        (("a", "b*"), ["a", "bx", ["z", "b"]], ["z", "ab"]),
    ],
)
def test_required_claims_match_patterns(provider: Provider, wanted: Any, good: list[Any], bad: list[Any]) -> None:
    """One value of the token, one pattern of the configuration."""
    backend = asking(provider, require={"branch": wanted})
    for value in good:
        assert login(backend, provider.token(branch=value)) == "ci:robot", value
    for value in bad:
        assert "its 'branch' is" in refusal(backend, provider.token(branch=value)).reason


def test_every_required_claim_counts(provider: Provider) -> None:
    """Also one in a table; and none of them is in the client's answer."""
    backend = asking(provider, require={"team": "a", "kubernetes.io/namespace": ["ci", "cd"]})
    table: dict[str, Any] = {"kubernetes.io": {"namespace": "cd"}}
    assert login(backend, provider.token(team="a", **table)) == "ci:robot"
    for claims in ({"team": "a"}, {"team": "b", **table}, table):
        error = refusal(backend, provider.token(**claims))
        assert error.description == WRONG
        assert "as 'require' wants it" in error.reason


def test_a_pattern_of_many_stars_takes_no_time(provider: Provider) -> None:
    """A long claim must not keep a processor busy."""
    backend = asking(provider, require={"branch": "*a*a*a*a*a*a*a*a*b"})
    token = provider.token(branch="a" * 2000)
    backend.check()
    started = time.monotonic()
    refusal(backend, token)
    assert time.monotonic() - started < 0.5


# The platforms.


def test_a_job_of_github_is_its_repository_and_branch(provider: Provider) -> None:
    """Whatever form its subject has."""
    backend = asking(provider, preset="github", require={"repository_owner": "Example"})
    token = provider.token(**github_claims("Example/App"))
    found = backend.authenticate("any", token)
    assert found.name == "github:Example/App:refs/heads/main"
    assert found.groups == {"github:example/app", "github-owner:example", "github-protected-false:example/app"}
    assert found.groups_known
    claims = github_claims(
        "Example/App", "refs/tags/v1", ref_protected="true", environment="Production", sub="repository_owner:Example"
    )
    found = backend.authenticate("any", provider.token(**claims))
    assert found.name == "github:Example/App:refs/tags/v1"
    assert found.groups == {
        *("github:example/app", "github-owner:example"),
        *("github-protected-true:example/app", "github-environment-production:example/app"),
    }
    error = refusal(backend, provider.token(**github_claims("evil/app")))
    assert "its 'repository_owner' is ['evil'], not as 'require' wants it" in error.reason


def test_a_branch_in_capitals_is_not_the_branch_in_small_letters(provider: Provider) -> None:
    """Git tells them apart, and groups do not: so no group has a branch in it."""
    for preset, claims in (("github", github_claims), ("gitlab", gitlab_claims)):
        found = [
            account(provider, claims("example/app", ref, ref_protected="false"), preset=preset)
            for ref in ("main", "Main")
        ]
        assert found[0].groups == found[1].groups
        assert found[0].name != found[1].name


def test_a_job_of_gitlab_is_its_project_and_branch(provider: Provider) -> None:
    """A project may be in groups of groups."""
    found = account(provider, gitlab_claims("Tools/ci/App", "v1", ref_path="refs/tags/v1"), preset="gitlab")
    assert found.name == "gitlab-ci:Tools/ci/App:refs/tags/v1"
    assert found.groups == {
        "gitlab-ci:tools/ci/app",
        "gitlab-ci-namespace:tools/ci",
        "gitlab-ci-protected-true:tools/ci/app",
    }
    assert found.groups_known


def test_a_service_account_of_kubernetes_has_its_namespace(provider: Provider) -> None:
    """The name is the one that Kubernetes itself uses."""
    backend = asking(provider, preset="kubernetes")
    token = provider.token(header=KUBERNETES_HEADER, jti=None, **kubernetes_claims("build", "builder"))
    found = backend.authenticate("any", token)
    assert found.name == "kubernetes:system:serviceaccount:build:builder"
    assert found.groups == {"kubernetes:build"}


def test_a_preset_can_be_changed_in_part(provider: Provider) -> None:
    """Two clusters need two words."""
    claims = kubernetes_claims("build", "builder")
    found = account(provider, claims, preset="kubernetes", account="prod:{sub}", groups=())
    assert (found.name, found.groups) == ("prod:system:serviceaccount:build:builder", frozenset())


def decoded(**table: Any) -> OidcOptions:
    """Options as they are read from a file."""
    return decode(OidcOptions, table, "[[backends]] 1 (oidc)", Path("/etc"))


GITHUB = {"audience": "r", "preset": "github"}
GITLAB_COM = {"audience": "r", "preset": "gitlab", "issuer": "https://gitlab.com"}
OWN = {"audience": "r", "issuer": "https://id.example", "account": "ci:{sub}"}


@pytest.mark.parametrize(
    "table",
    [
        {**GITHUB, "require": {"repository_owner": "example"}},
        {**GITHUB, "require": {"repository_owner_id": "5", "ref": "refs/heads/*"}},
        {**GITHUB, "require": {"repository": ["example/*", "other/app"]}},
        {**GITHUB, "require": {"sub": "repo:example/*"}},
        {**GITHUB, "issuer": "https://github.example.com/_services/token"},
        {**GITHUB, "issuer": "https://token.actions.githubusercontent.com/example-inc"},
        {**GITLAB_COM, "require": {"namespace_path": ["example", "example/*"]}},
        {**GITLAB_COM, "require": {"project_id": "44"}},
        {**GITLAB_COM, "issuer": "https://gitlab.example.org"},
        {"audience": "r", "preset": "kubernetes", "issuer": "https://kubernetes.default.svc.cluster.local"},
        OWN,
        {**OWN, "groups": ["x:{a}", "plain"], "jwks_file": "keys.json", "ca_file": "ca.pem", "username": "ci"},
    ],
)
def test_these_tables_are_good(table: dict[str, Any]) -> None:
    """A few lines are enough."""
    options = decoded(**table)
    assert options.provider.startswith("https://")
    assert ":" in options.name_template


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"preset": "github"}, "the key 'audience' is missing"),
        ({**OWN, "audience": ""}, "'audience' is empty"),
        (GITHUB, 'anybody can get tokens from https://token.* require = { repository_owner = "example" }'),
        ({**GITHUB, "require": {"ref": "refs/heads/main"}}, "anybody can get tokens"),
        ({**GITHUB, "require": {"repository_owner": "*"}}, "anybody can get tokens"),
        ({**GITHUB, "require": {"repository_owner": "example*"}}, "anybody can get tokens"),
        ({**GITHUB, "require": {"repository_owner": ["example", "ex*"]}}, "anybody can get tokens"),
        ({**GITHUB, "require": {"repository": "*/app"}}, "anybody can get tokens"),
        ({**GITHUB, "require": {"job_workflow_ref": "example/ci/*"}}, "anybody can get tokens"),
        (GITLAB_COM, 'anybody can get tokens from https://gitlab.com; .* namespace_path = "example"'),
        ({**GITLAB_COM, "issuer": "https://gitlab.com/"}, "anybody can get tokens"),
        ({**GITLAB_COM, "issuer": ""}, "'issuer' is ''; use the provider's https URL"),
        ({**OWN, "issuer": "http://id.example"}, "use the provider's https URL"),
        ({**OWN, "issuer": "id.example"}, "use the provider's https URL"),
        ({**OWN, "issuer": "https://"}, "use the provider's https URL"),
        ({**OWN, "issuer": "https://[::1"}, "use the provider's https URL"),
        ({**OWN, "issuer": "https://id.example:http"}, "use the provider's https URL"),
        ({**OWN, "issuer": "https://id.example/?x=1"}, "use the provider's https URL"),
        ({**OWN, "issuer": "https://id.example/#x"}, "use the provider's https URL"),
        ({**OWN, "issuer": "https://me:word@id.example"}, "use the provider's https URL"),
        ({**OWN, "account": ""}, "'account' is ''; begin it with a word and a colon"),
        ({**OWN, "account": "{sub}"}, "begin it with a word and a colon"),
        ({**OWN, "account": ":{sub}"}, "begin it with a word and a colon"),
        ({**OWN, "account": "{iss}:{sub}"}, "begin it with a word and a colon"),
        ({**OWN, "account": "robot"}, "begin it with a word and a colon"),
        ({**OWN, "account": "ci:robot"}, "begin it with a word and a colon"),
        ({**OWN, "account": "ci:{}"}, "has no form such as"),
        ({**OWN, "account": "ci:{sub"}, "has no form such as"),
        ({**OWN, "account": "ci:{{sub}}"}, "has no form such as"),
        ({**OWN, "account": "ci:{a}{b}"}, "has no form such as"),
        ({**OWN, "groups": ["x:{a}}"]}, "has no form such as"),
        ({**OWN, "groups": "x:{a}"}, "expected a list"),
        ({**OWN, "preset": "circleci"}, "expected one of 'github'"),
        ({**OWN, "require": {"a": []}}, "'require' does not say what 'a' must be"),
        ({**OWN, "require": {"a": ""}}, "'require' does not say what 'a' must be"),
        ({**OWN, "require": {"a": ["b", ""]}}, "'require' does not say what 'a' must be"),
        ({**OWN, "require": {"a": True}}, "expected a string"),
        ({**OWN, "require": "a"}, "expected a table"),
        ({**OWN, "audiences": ["r"]}, "did you mean 'audience'"),
    ],
)
def test_a_wrong_table_is_told_with_what_to_change(table: dict[str, Any], words: str) -> None:
    """One line that names the table."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        decoded(**table)
    assert str(caught.value).startswith("[[backends]] 1 (oidc): ")


def test_check_says_what_the_provider_has(provider: Provider) -> None:
    """Or why its keys cannot be had; and that everybody who gets a token is let in."""
    findings = list(asking(provider).diagnose())
    assert [finding.severity for finding in findings] == [Severity.INFO, Severity.WARNING]
    assert "it has 1 keys" in findings[0].fact
    assert "there is no 'require'" in findings[1].fact
    (finding,) = asking(provider, require={"sub": "*"}).diagnose()
    assert finding.severity is Severity.INFO
    with provider.broken(Fault(404)):
        (finding,) = asking(provider).diagnose()
    assert finding.severity is Severity.ERROR
    assert "answered 404" in finding.fact
    (finding,) = asking(provider).diagnose(account="ci:robot")
    assert finding.severity is Severity.INFO
    assert "only while their platform's ID token is valid" in finding.fact


# In a chain, behind a cache, under a limit.


class TestContract(BackendContract):
    """What holds for every backend."""

    username = "ci"
    name = "ci:robot"

    @pytest.fixture
    def backend(self, provider: Provider) -> Backend:
        """One that wants a user name: others are hostile names here."""
        provider.add_key("second", "ES256")
        self.provider = provider
        # A change of capitals must not hit upon letters that have none.
        type(self).password = provider.token("second")
        return asking(provider, username="ci")

    def outages(self, backend: Backend) -> Iterator[AbstractContextManager[object]]:
        """Before there are keys."""
        for fault in (Fault(503), Fault(cut=True)):
            backend._keys = asking(self.provider)._keys  # type: ignore[attr-defined]
            yield self.provider.broken(fault)


class People(Backend):
    """A backend that must see no token of a machine."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[str] = []

    def authenticate(self, username: str, password: str) -> Account:
        """Everybody has one password."""
        self.seen.append(password)
        if password != "right":
            raise InvalidCredentials(reason="wrong")
        return Account(username)


def test_in_a_chain_each_password_goes_to_its_backend(provider: Provider) -> None:
    """A token never goes to the directory, right or wrong, and a password never to the provider."""
    people = People()
    chain = Chain(
        [CachedBackend(name, each, CacheOptions(0, 0)) for name, each in (("ci", asking(provider)), ("people", people))]
    )
    assert chain.authenticate("alice", "right").account.name == "alice"
    assert not provider.requests
    assert chain.authenticate("alice", provider.token()).account.name == "ci:robot"
    with pytest.raises(InvalidCredentials):
        chain.authenticate("alice", provider.token(aud="others"))
    with provider.broken(Fault(503)), pytest.raises(BackendUnavailable):
        Chain([CachedBackend("ci", asking(provider)), CachedBackend("people", people)]).authenticate(
            "alice", provider.token()
        )
    assert people.seen == ["right"]


def test_a_login_is_not_remembered_beyond_its_token(provider: Provider) -> None:
    """However long the cache would."""
    chain = Chain([CachedBackend("ci", asking(provider), CacheOptions(60, 0))])
    token = provider.token(exp=int(time.time()) + 3)
    assert chain.authenticate("any", token).account.name == "ci:robot"
    assert chain.authenticate("any", token).account.name == "ci:robot"
    time.sleep(3)
    with pytest.raises(InvalidCredentials, match="has expired"):
        chain.authenticate("any", token)


def test_wrong_tokens_stop_nobody_below_the_limit_of_the_address(provider: Provider) -> None:
    """All jobs of a runner use one name, and their tokens are no guesses at a password."""
    chain, token = Chain([CachedBackend("ci", asking(provider), CacheOptions(0, 0))]), provider.token()
    limit = Throttle(ThrottleOptions(account=10, address=100, window=60), b"k" * 32)
    address = ip_address("192.0.2.1")

    def attempt(password: str) -> str:
        try:
            found = limit.run("ci", password, address, lambda turn: chain.authenticate("ci", password, turn))
        except (InvalidCredentials, TooManyAttempts) as error:
            return type(error).__name__
        return found.account.name

    assert {attempt(provider.token(aud=f"other-{number}")) for number in range(50)} == {"InvalidCredentials"}
    assert attempt(token) == "ci:robot"


CONFIGURATION = """\
[issuer]
name = "test-issuer"
services = ["registry.example"]
realm = "https://auth.example.com/token"
lifetime = 120

[signing]
key = "auth.key"
certificate = "auth.crt"

[refresh]
[refresh.store]
type = "sqlite"
path = "refresh.sqlite3"

[[backends]]
type = "oidc"
audience = "{audience}"
preset = "github"
issuer = "{issuer}"
ca_file = "{ca_file}"
require = {{ repository_owner = "example" }}

[[backends]]
type = "htpasswd"
path = "users.htpasswd"

[[access]]
groups = ["github:*"]
repositories = ["{{group}}", "{{group}}/**"]
actions = ["pull", "push"]

[[access]]
authenticated = true
repositories = ["public/**"]
actions = ["pull"]
"""


@pytest.fixture
def client(provider: Provider, build: Callable[[str], Any], client: Any) -> Any:
    """A client of a whole application."""
    text = CONFIGURATION.format(audience=AUDIENCE, issuer=provider.issuer, ca_file=provider.ca_file)
    return type(client)(build(text))


def ask(client: Any, token: str, scope: str = "", **query: str) -> Any:
    """Ask for an access token with an ID token as the password."""
    asked = {"service": "registry.example", **({"scope": scope} if scope else {}), **query}
    return client.ask(f"/token?{urlencode(asked)}", HTTP_AUTHORIZATION=basic("anything", token))


def test_each_project_gets_what_is_below_its_own_path(client: Any, provider: Provider) -> None:
    """With one rule for all."""
    token = provider.token(**github_claims("example/App"))
    for name, granted in {
        "example/app": ["pull", "push"],
        "example/app/web": ["pull", "push"],
        "example/app/web/arm": ["pull", "push"],
        "example/app2": None,
        "example/other/x": None,
        "example/x": None,
        "other/app/x": None,
        "public/x": ["pull"],
    }.items():
        access = ask(client, token, f"repository:{name}:pull,push").access
        assert {each: sorted(actions) for each, actions in access.items()} == (
            {f"repository:{name}": granted} if granted else {}
        )
    answer = ask(client, token)
    assert answer.claims["sub"] == "github:example/App:refs/heads/main"


def test_no_machine_gets_a_refresh_token(client: Any, provider: Provider) -> None:
    """Its platform gives it new ID tokens; a person gets one from the same server."""
    token = provider.token(**github_claims("example/app"))
    assert "refresh_token" not in ask(client, token, offline_token="true").json()
    form = {"grant_type": "password", "username": "x", "password": token, "service": "registry.example"}
    answer = client.post({**form, "client_id": "docker", "access_type": "offline"})
    assert answer.status == 200
    assert "refresh_token" not in answer.json()
    assert client.ask(
        "/token?service=registry.example&offline_token=true", HTTP_AUTHORIZATION=basic("bob", "pw")
    ).json()["refresh_token"]


def test_an_access_token_outlives_the_id_token_by_its_lifetime_at_most(client: Any, provider: Provider) -> None:
    """Also when the login was remembered."""
    end = int(time.time()) + 3
    token = provider.token(**github_claims("example/app", exp=end))
    while time.time() < end - 1:
        answer = ask(client, token, "repository:example/app/x:push")
        assert answer.claims["exp"] <= end + 120
        time.sleep(0.3)
    time.sleep(max(0, end - time.time()) + 0.05)
    answer = ask(client, token, "repository:example/app/x:push")
    assert answer.status == 401
    assert answer.json()["errors"][0]["message"] == EXPIRED


def test_an_outage_is_503(client: Any, provider: Provider) -> None:
    """With the time to come back; people's passwords still work."""
    token = provider.token(**github_claims("example/app"))
    with provider.broken(Fault(500)):
        answer = ask(client, token)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.ask("/token?service=registry.example", HTTP_AUTHORIZATION=basic("bob", "pw")).status == 200


def test_no_token_is_in_any_log_answer_or_error(
    client: Any, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """At the most talkative level, whatever is wrong with it."""
    caplog.set_level(logging.DEBUG)
    provider.add_key("unpublished", "ES256")
    del provider.published[-1]
    good = github_claims("example/app")
    tokens = [
        provider.token(**good),
        provider.token("unpublished", **good),
        provider.token(**github_claims("evil/app")),
        *(forge(provider) for forge, _ in REFUSED.values()),
        provider.token(iss="https://elsewhere.example"),
    ]
    with provider.broken(Fault(500)):
        said = [ask(client, tokens[0]).body.decode()]
    said += [ask(client, token).body.decode() for token in tokens[1:]]
    backend = asking(provider)
    for token in tokens:
        try:
            backend.authenticate("any", token)
        except InvalidCredentials as error:
            said.append("".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)))
    said += [caplog.text, repr(vars(backend)), repr(backend._keys.current())]
    everything = "\n".join(said)
    assert "the ID token is refused" in everything
    for token in tokens:
        for part in token.split(".")[1:]:
            assert len(part) < 20 or part not in everything
        assert base64.b64encode(f"anything:{token}".encode()).decode() not in everything


# The manual and the examples.


def blocks(language: str) -> list[str]:
    """The examples of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)


FRAME = '[issuer]\nname = "x"\nservices = ["registry.example.com"]\nrealm = "https://auth.example.com/token"\n'
FRAME += '[signing]\nkey = "auth.key"\ncertificate = "auth.crt"\n'


def test_every_table_of_the_page_is_read_as_it_is(tmp_path: Path) -> None:
    """Backends and rules."""
    found = blocks("toml")
    assert len(found) >= 5
    kinds = set()
    for text in found:
        config = FRAME + text
        if "[[backends]]" not in text:
            config += '[[backends]]\ntype = "htpasswd"\npath = "x"\n'
        for backend in parse_config(tomllib.loads(config), tmp_path).backends:
            if isinstance(backend.options, OidcOptions):
                kinds.add(backend.options.preset)
    assert kinds == {"github", "gitlab", "kubernetes", ""}


def test_the_page_names_every_key() -> None:
    """In the table of keys."""
    named = {
        key
        for row in re.findall(r"^\| (`.*?) \|", DOCS.read_text(), re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    }
    assert set(OidcOptions.__dataclass_fields__) <= named


def test_the_page_names_the_groups_of_the_presets() -> None:
    """And their account names, as templates."""
    text = DOCS.read_text()
    for preset in PRESETS.values():
        for template in (preset.account, *preset.groups):
            assert f"`{template}`" in text


def test_the_examples_for_the_platforms_are_yaml_and_ask_for_one_audience() -> None:
    """The audience of the tables."""
    documents = [each for text in blocks("yaml") for each in yaml.safe_load_all(text)]
    assert len(documents) >= 6
    audiences = set(re.findall(r"(?:audience|aud|Audience)[\"']?\s?[:=] ?\"?([\w.]+)", DOCS.read_text()))
    assert audiences == {"registry.example.com"}
    config = yaml.safe_load((CONF / "kubernetes-credential-provider.yaml").read_text())
    assert config in documents
    assert config["kind"] == "CredentialProviderConfig"
    (plugin,) = config["providers"]
    assert (CONF / plugin["name"]).stat().st_mode & 0o111
    assert plugin["tokenAttributes"]["cacheType"] == "Token"
