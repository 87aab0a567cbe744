"""Rotation beside certificates that the openssl program has made."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenissuer.signing.keys import KeyType, load_signing_key
from tokenissuer.signing.rotation import Rotation, State

NOW = time.time()


@pytest.fixture
def rotation(set_up: Path) -> Rotation:
    """A set-up with one key."""
    return Rotation(set_up / "auth.key", set_up / "auth.crt", set_up / "auth.key")


def states(rotation: Rotation) -> list[State]:
    """What is in the certificate file."""
    return [entry.state for entry in rotation.entries()]


def test_certificates_of_others_stay_as_they_are(rotation: Rotation, openssl: Callable[..., str]) -> None:
    """A registry may be made to trust a second issuer by the same file."""
    request = ("req", "-new", "-newkey", "rsa:2048", "-subj", "/CN=other", "-nodes", "-x509", "-days", "9")
    text = openssl(*request, "-keyout", "other.key")
    theirs = text[text.index("-----BEGIN CERT") :]
    rotation.certificate.write_text(f"{rotation.certificate.read_text()}# theirs\n{theirs}")
    rotation.add("test-issuer", KeyType.EC, NOW)
    rotation.drop_next()
    assert rotation.certificate.read_text().endswith(f"# theirs\n{theirs}")
    assert states(rotation) == [State.SIGNS, State.OTHER]


def test_an_authority_signs_no_tokens(rotation: Rotation, openssl: Callable[..., str]) -> None:
    """Its certificate may be in the file."""
    usage = ("-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE")
    text = openssl("req", "-newkey", "rsa:2048", "-subj", "/CN=theirs", "-nodes", "-x509", *usage, "-keyout", "ca.key")
    rotation.certificate.write_text(rotation.certificate.read_text() + text[text.index("-----BEGIN CERT") :])
    assert states(rotation) == [State.SIGNS, State.AUTHORITY]


def test_a_certificate_only_for_certificates_still_names_the_key_that_signs(
    rotation: Rotation, openssl: Callable[..., str]
) -> None:
    """Some pairs are made so; registries do not look."""
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    text = openssl("req", "-x509", "-key", str(rotation.key), "-subj", "/CN=test-issuer", "-days", "9", *usage)
    rotation.certificate.write_text(text)
    assert states(rotation) == [State.SIGNS]
    key = load_signing_key(rotation.key, rotation.certificate)
    assert [jwk["kid"] for jwk in key.jwk_set()["keys"]] == [key.thumbprint]
