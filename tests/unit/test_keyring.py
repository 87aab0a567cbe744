"""The files of the signing key, one key after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.keyring import Keyring, State
from tokenissuer.keys import KeyType, generate_private_key, load_signing_key, private_pem

NOW = time.time()


@pytest.fixture
def keyring(set_up: Path) -> Keyring:
    """A set-up with one key."""
    return Keyring(set_up / "auth.key", set_up / "auth.crt", set_up / "auth.key")


def states(keyring: Keyring) -> list[State]:
    """What is in the certificate file."""
    return [entry.state for entry in keyring.entries()]


def test_a_key_goes_from_next_to_in_use_to_before_to_gone(keyring: Keyring) -> None:
    """And all that time the file holds what registries need."""
    assert states(keyring) == [State.SIGNS]
    first = load_signing_key(keyring.key, keyring.certificate)
    keyring.add("test-issuer", KeyType.RSA, None, NOW)
    assert states(keyring) == [State.SIGNS, State.NEXT]
    assert load_signing_key(keyring.key, keyring.certificate).thumbprint == first.thumbprint
    keyring.switch(NOW)
    assert states(keyring) == [State.BEFORE, State.SIGNS]
    second = load_signing_key(keyring.key, keyring.certificate)
    assert [jwk["kid"] for jwk in second.jwk_set()["keys"]] == [second.thumbprint, first.thumbprint]
    with pytest.raises(TokenIssuerError, match="are good until"):
        keyring.retire(900, NOW + 900)
    keyring.retire(900, NOW + 1100)
    assert states(keyring) == [State.SIGNS]
    assert not list(keyring.key.parent.glob("auth.key.*"))


def test_certificates_of_others_stay_as_they_are(keyring: Keyring, openssl: Callable[..., str]) -> None:
    """A registry may be made to trust a second issuer by the same file."""
    request = ("req", "-new", "-newkey", "rsa:2048", "-subj", "/CN=other", "-nodes", "-x509", "-days", "9")
    text = openssl(*request, "-keyout", "other.key")
    theirs = text[text.index("-----BEGIN CERT") :]
    keyring.certificate.write_text(f"{keyring.certificate.read_text()}# theirs\n{theirs}")
    keyring.add("test-issuer", KeyType.EC, None, NOW)
    keyring.retire(900, NOW)
    assert keyring.certificate.read_text().endswith(f"# theirs\n{theirs}")
    assert states(keyring) == [State.SIGNS, State.OTHER]


def test_an_authority_of_somebody_else_is_none_of_ours(keyring: Keyring, openssl: Callable[..., str]) -> None:
    """Its certificate may stand in the file, and our own authority beside it."""
    usage = ("-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE")
    text = openssl("req", "-newkey", "rsa:2048", "-subj", "/CN=theirs", "-nodes", "-x509", *usage, "-keyout", "ca.key")
    keyring.certificate.write_text(keyring.certificate.read_text() + text[text.index("-----BEGIN CERT") :])
    assert states(keyring) == [State.SIGNS, State.AUTHORITY]
    assert not keyring.has_authority("test-issuer")
    keyring.add_authority("test-issuer", NOW)
    assert keyring.has_authority("test-issuer")
    with pytest.raises(TokenIssuerError, match="already"):
        keyring.add_authority("test-issuer", NOW)


def test_what_an_authority_signs_does_not_outlive_it(keyring: Keyring) -> None:
    """An expired certificate stops every registry, wherever it stands in the chain."""
    authority = keyring.add_authority("test-issuer", NOW)
    leaf = keyring.add("test-issuer", KeyType.EC, keyring.authority_key, NOW + 15 * 365 * 24 * 3600)
    assert leaf.not_valid_after_utc == authority.not_valid_after_utc
    leaf.verify_directly_issued_by(authority)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_a_key_that_does_not_belong_to_the_authority_signs_nothing(keyring: Keyring) -> None:
    """Registries would refuse what it signs; no file is changed."""
    before = keyring.certificate.read_bytes()
    other = keyring.key.with_name("other.key")
    other.write_bytes(private_pem(generate_private_key(KeyType.EC)))
    with pytest.raises(ConfigurationError, match="keys authority"):
        keyring.add("test-issuer", KeyType.EC, other, NOW)
    assert keyring.certificate.read_bytes() == before
    assert not keyring.next_key.exists()


def test_a_certificate_only_for_certificates_still_names_the_key_that_signs(
    keyring: Keyring, openssl: Callable[..., str]
) -> None:
    """Some pairs are made so; registries do not look."""
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    text = openssl("req", "-x509", "-key", str(keyring.key), "-subj", "/CN=test-issuer", "-days", "9", *usage)
    keyring.certificate.write_text(text)
    assert states(keyring) == [State.SIGNS]
    key = load_signing_key(keyring.key, keyring.certificate)
    assert [jwk["kid"] for jwk in key.jwk_set()["keys"]] == [key.thumbprint]
