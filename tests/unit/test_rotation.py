"""The files of the signing key, one key after another."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tokenissuer.errors import TokenIssuerError
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


def test_a_key_is_next_then_in_use_then_previous_then_removed(rotation: Rotation) -> None:
    """And all that time the file holds what registries need."""
    assert states(rotation) == [State.SIGNS]
    first = load_signing_key(rotation.key, rotation.certificate)
    rotation.add("test-issuer", KeyType.RSA, NOW)
    assert states(rotation) == [State.SIGNS, State.NEXT]
    assert load_signing_key(rotation.key, rotation.certificate).thumbprint == first.thumbprint
    rotation.switch(NOW)
    assert states(rotation) == [State.PREVIOUS, State.SIGNS]
    second = load_signing_key(rotation.key, rotation.certificate)
    assert [jwk["kid"] for jwk in second.jwk_set()["keys"]] == [second.thumbprint, first.thumbprint]
    with pytest.raises(TokenIssuerError, match="are valid until"):
        rotation.retire(900, NOW + 900)
    rotation.retire(900, NOW + 1100)
    assert states(rotation) == [State.SIGNS]
    assert not list(rotation.key.parent.glob("auth.key.*"))
