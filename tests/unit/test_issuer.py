"""Claims and signatures."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from tokenissuer.errors import InvalidCredentials
from tokenissuer.scope import Access
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import KeyForm, SigningKey

NOW = 1_800_000_000.987


def issuer(key: SigningKey, lifetime: int = 900, **forms: KeyForm) -> Issuer:
    return Issuer("test-issuer", key, lifetime, forms, clock=lambda: NOW)


def parts(token: str) -> list[dict[str, Any]]:
    """Header and claims, as they stand in the token."""
    found = []
    for part in token.split(".")[:2]:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        # No white space and no padding: the specification says so.
        assert b" " not in raw
        assert "=" not in part
        found.append(json.loads(raw))
    return found


def test_the_claims_are_exactly_these(key: SigningKey) -> None:
    """Whole numbers, one audience, explicit actions; `nbf` and `iat` a little in the past for slow clocks."""
    granted = (Access("repository", "a/b", frozenset({"push", "pull"})), Access("registry", "catalog", frozenset("*")))
    token = issuer(key).issue("alice", "registry.example", granted)
    header, claims = parts(token.text)
    assert header == key.header(KeyForm.X5C)
    assert claims == {
        "iss": "test-issuer",
        "sub": "alice",
        "aud": "registry.example",
        "exp": 1_800_000_900,
        "nbf": 1_799_999_970,
        "iat": 1_799_999_970,
        "jti": token.jti,
        "access": [
            {"type": "repository", "name": "a/b", "actions": ["pull", "push"]},
            {"type": "registry", "name": "catalog", "actions": ["*"]},
        ],
    }
    assert (token.issued_at, token.expires_in) == (NOW, 900)
    assert jwt.PyJWS().decode(token.text, key.private.public_key(), algorithms=["ES256"])


@pytest.mark.parametrize(
    "subject", ["", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", '"', "{account}", "\N{SNOWMAN}" * 99]
)
def test_a_subject_is_a_string_whatever_it_is(key: SigningKey, subject: str) -> None:
    """Empty for nobody; and access is a list even when it is empty."""
    _, claims = parts(issuer(key).issue(subject, "registry.example", ()).text)
    assert (claims["sub"], claims["access"]) == (subject, [])


@pytest.mark.parametrize("form", list(KeyForm))
def test_each_service_has_its_own_form_of_key(key: SigningKey, form: KeyForm) -> None:
    """And any other the certificate."""
    one = issuer(key, special=form)
    assert parts(one.issue("x", "special", ()).text)[0] == key.header(form)
    assert "x5c" in parts(one.issue("x", "other", ()).text)[0]


def test_a_token_shows_in_no_repr(key: SigningKey) -> None:
    """Only its id may be logged."""
    token = issuer(key).issue("alice", "registry.example", ())
    assert token.text not in repr(token)
    assert token.jti in repr(token)


def test_ids_are_random(key: SigningKey) -> None:
    """At least 128 bits, and none twice."""
    ids = {issuer(key).issue("", "x", ()).jti for _ in range(100)}
    assert len(ids) == 100
    assert min(map(len, ids)) >= 22


def test_no_token_outlives_what_the_source_vouches_for(key: SigningKey) -> None:
    """It ends with it, and is refused where that is so soon that clients would not notice."""
    token = issuer(key).issue("alice", "registry.example", (), valid_until=NOW + 300)
    assert parts(token.text)[1]["exp"] == int(NOW + 300)
    assert token.expires_in == 300
    assert issuer(key).issue("alice", "registry.example", (), valid_until=NOW + 9999).expires_in == 900
    for left in (59, 0, -1000):
        with pytest.raises(InvalidCredentials):
            issuer(key).issue("alice", "registry.example", (), valid_until=int(NOW) + left)


@pytest.mark.parametrize("max_size", [4096, 8000])
@pytest.mark.parametrize("length", [20, 120, 255])
def test_a_token_is_never_larger_than_a_header_may_be(key: SigningKey, max_size: int, length: int) -> None:
    """What is requested last is left out; and what fits is not."""
    one = Issuer("test-issuer", key, max_size=max_size)
    wanted = tuple(
        Access("repository", f"team/{number:02d}".ljust(length, "x"), frozenset({"pull", "push"}))
        for number in range(40)
    )
    fitting = one.fitting("alice", "registry.example", wanted)
    assert fitting == wanted[: len(fitting)]
    assert len(one.issue("alice", "registry.example", fitting).text) <= max_size
    if len(fitting) < 40:
        more = wanted[: len(fitting) + 1]
        assert len(one.issue("alice", "registry.example", more).text) > max_size - 60


def moving(key: SigningKey, **options: Any) -> tuple[Issuer, list[float]]:
    """An issuer, and the time by its clock."""
    now = [NOW]
    return Issuer("test-issuer", key, 900, clock=lambda: now[0], **options), now


PULL = (Access("repository", "a/b", frozenset({"pull"})),)


def test_an_equal_request_gets_the_same_token_while_half_of_its_life_remains(key: SigningKey) -> None:
    """And is told how long that is."""
    one, now = moving(key)
    first = one.issue("alice", "x", PULL, backend="ldap")
    now[0] += 449
    again = one.issue("alice", "x", PULL, backend="ldap")
    assert (again.text, again.jti) == (first.text, first.jti)
    assert again.issued_at == now[0]
    assert int(again.issued_at) + again.expires_in == parts(first.text)[1]["exp"]
    now[0] += 2
    assert one.issue("alice", "x", PULL, backend="ldap").jti != first.jti


@pytest.mark.parametrize(
    "other",
    [
        ("bob", "x", PULL, "ldap"),
        ("", "x", PULL, ""),
        ("alice", "y", PULL, "ldap"),
        ("alice", "x", (), "ldap"),
        ("alice", "x", (Access("repository", "a/b", frozenset({"pull", "push"})),), "ldap"),
        ("alice", "x", PULL, "gitlab"),
    ],
    ids=["account", "nobody", "service", "nothing", "more", "backend"],
)
def test_no_token_is_used_for_another_request(key: SigningKey, other: tuple[str, str, tuple[Access, ...], str]) -> None:
    """Neither another account's, nor another service's, nor other access."""
    one, _ = moving(key)
    first = one.issue("alice", "x", PULL, backend="ldap")
    subject, service, granted, backend = other
    assert one.issue(subject, service, granted, backend=backend).jti != first.jti


def test_tokens_that_end_with_a_login_are_not_used_again(key: SigningKey) -> None:
    """Nor with the key `reuse = false`, nor where half of a life is less than clients believe."""
    one, _ = moving(key)
    assert one.issue("a", "x", PULL, valid_until=NOW + 500).jti != one.issue("a", "x", PULL).jti
    never, _ = moving(key, reuse=False)
    assert never.issue("a", "x", PULL).jti != never.issue("a", "x", PULL).jti
    short = Issuer("test-issuer", key, 60, clock=lambda: NOW)
    assert short.issue("a", "x", PULL).expires_in == short.issue("a", "x", PULL).expires_in == 60


def test_the_tokens_kept_are_bounded(key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is dropped first."""
    monkeypatch.setattr("tokenissuer.signing.issuer.MAX_TOKENS", 3)
    one, _ = moving(key)
    tokens = [one.issue(f"user-{number}", "x", PULL) for number in range(10)]
    assert len(one._tokens) == 3
    assert one.issue("user-9", "x", PULL).jti == tokens[9].jti
    assert one.issue("user-0", "x", PULL).jti != tokens[0].jti
