"""Rotation of the signing key: a next key, the key in use, and the previous key.

Registries read certificates and JWK Sets only when they start. So they get the next key's certificate first, tokens are
signed with the key afterwards, and the previous key stays trusted until its last token has ended.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.signing.keys import (
    KeyType,
    PrivateKey,
    PublicKey,
    SigningKey,
    generate_private_key,
    is_for,
    jwk_set,
    load_certificates,
    load_private_key,
    load_signing_key,
    private_pem,
    self_signed_certificate,
    signs_tokens,
    thumbprint,
)

#: Seconds added to a token's lifetime before its key may be removed: clock leeway, and servers that reload late.
_GRACE: Final = 120

_PEM_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----[ \t]*\r?\n?", re.DOTALL)


class State(StrEnum):
    """What a certificate in the file is for."""

    SIGNS = "signs"
    NEXT = "next"
    PREVIOUS = "previous"
    #: It signs certificates and no tokens.
    AUTHORITY = "authority"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate that registries are given.

    Args:
        state: what it is for.
        kid: its key's RFC 7638 thumbprint; empty for an authority.
        kind: its key's algorithm or type.
        until: when it ends.
    """

    state: State
    kid: str
    kind: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Rotation:
    """The key files: `auth.key` signs, `auth.key.next` will sign, `auth.key.previous` has signed before.

    Args:
        key: the private key that signs.
        certificate: the file of certificates that registries are given.
        used: the file that the service signs with: the key, or a copy that was made when the service started.
    """

    key: Path
    certificate: Path
    used: Path

    @property
    def next_key(self) -> Path:
        """The key that will sign."""
        return self.key.with_name(f"{self.key.name}.next")

    @property
    def previous_key(self) -> Path:
        """The key that has signed before."""
        return self.key.with_name(f"{self.key.name}.previous")

    @property
    def jwks(self) -> Path:
        """The JWK Set for registries, if there is one: `init` writes it beside the certificate."""
        return self.certificate.with_name("jwks.json")

    def entries(self) -> list[Entry]:
        """Return the certificates in the file.

        Raises:
            ConfigurationError: if a file cannot be used.
        """
        keys = {State.SIGNS: load_private_key(self.key)}
        for state, path in ((State.NEXT, self.next_key), (State.PREVIOUS, self.previous_key)):
            if path.exists():
                keys[state] = load_private_key(path)
        return [self._entry(certificate, keys) for certificate in load_certificates(self.certificate)]

    def add(self, name: str, key_type: KeyType, now: float) -> x509.Certificate:
        """Make the next key and add its certificate to certificate file and JWK Set. It signs nothing yet.

        Args:
            name: the issuer's name.
            key_type: the kind of key.
            now: seconds since 1970.

        Raises:
            ConfigurationError: if a file cannot be used.
            TokenIssuerError: if there is a next key already.
        """
        if self.next_key.exists():
            raise TokenIssuerError(f"{self.next_key} already exists; use it (keys switch) or remove it (keys retire)")
        load_signing_key(self.key, self.certificate)
        private = generate_private_key(key_type)
        certificate = self_signed_certificate(private, name, now)
        self._write_beside(self.next_key, private_pem(private))
        self._append(certificate)
        return certificate

    def next(self) -> SigningKey:
        """Return the next key with its certificate.

        Raises:
            ConfigurationError: if there is none, or its certificate is not in the file.
        """
        if not self.next_key.exists():
            raise ConfigurationError(f"there is no next key {self.next_key}; make one with `tokenissuer keys add`")
        return load_signing_key(self.next_key, self.certificate)

    def switch(self, now: float) -> None:
        """Sign with the next key from now on.

        Args:
            now: seconds since 1970, from which the previous key is no longer used.

        Raises:
            ConfigurationError: if there is no usable next key.
            TokenIssuerError: if an older key has not been removed yet.
        """
        self.next().expiry(now)
        if self.previous_key.exists():
            raise TokenIssuerError(f"{self.previous_key} still exists; remove it first: tokenissuer keys retire")
        self._write_beside(self.previous_key, self.key.read_bytes())
        os.replace(self.next_key, self.key)
        os.utime(self.key, (now, now))

    def retire(self, lifetime: int, now: float) -> Path:
        """Remove the previous key and its certificate; if there is none, the next key and its certificate.

        Args:
            lifetime: seconds a token is valid.
            now: seconds since 1970.

        Returns:
            The key file removed.

        Raises:
            TokenIssuerError: if there is none, or tokens signed with it may still be in use.
        """
        if self.previous_key.exists():
            gone = self.previous_key
            self._refuse_used(gone)
            end = self.last_token_ends(lifetime)
            if now < end:
                raise TokenIssuerError(f"tokens signed with {gone} are valid until {moment(end)}; retire it after that")
        elif self.next_key.exists():
            gone = self.next_key
        else:
            raise TokenIssuerError(f"neither {self.previous_key} nor {self.next_key} exists; nothing to retire")
        public = load_private_key(gone).public_key()
        self._remove(public)
        gone.unlink()
        return gone

    def last_token_ends(self, lifetime: int) -> float:
        """Return when the last token of the previous key has ended, in seconds since 1970.

        Args:
            lifetime: seconds a token is valid.
        """
        since = max(path.stat().st_mtime for path in (self.key, self.used) if path.exists())
        return since + lifetime + _GRACE

    def _refuse_used(self, key: Path) -> None:
        if self.used != self.key and self.used.exists() and self.used.read_bytes() == key.read_bytes():
            raise TokenIssuerError(
                f"the service still signs with {key}: its copy {self.used} is the old one; restart it"
            )

    def _entry(self, certificate: x509.Certificate, keys: dict[State, PrivateKey]) -> Entry:
        until = certificate.not_valid_after_utc
        found = [state for state, key in keys.items() if is_for(certificate, key.public_key())]
        if not found and not signs_tokens(certificate):
            return Entry(State.AUTHORITY, "", "certificates only", until)
        (jwk,) = jwk_set([certificate])["keys"]
        return Entry(found[0] if found else State.OTHER, jwk["kid"], jwk["alg"], until)

    def _append(self, certificate: x509.Certificate) -> None:
        old = self.certificate.read_bytes()
        if not old.endswith(b"\n"):
            old += b"\n"
        self._publish(old + certificate.public_bytes(Encoding.PEM))

    def _remove(self, key: PublicKey) -> None:
        def keep(match: re.Match[bytes]) -> bytes:
            return b"" if is_for(x509.load_pem_x509_certificate(match[0]), key) else match[0]

        self._publish(_PEM_CERTIFICATE.sub(keep, self.certificate.read_bytes()))

    def _publish(self, pem: bytes) -> None:
        _replace(self.certificate, pem, self.certificate)
        if self.jwks.exists():
            signer = load_signing_key(self.key, self.certificate)
            _replace(self.jwks, json.dumps(signer.jwk_set(), indent=2).encode() + b"\n", self.jwks)

    def _write_beside(self, path: Path, content: bytes) -> None:
        """Write a private key with the permissions of the key in use."""
        _replace(path, content, self.key)


def key_type_of(key: PrivateKey) -> KeyType:
    """Return the kind of a key."""
    return KeyType.EC if hasattr(key, "curve") else KeyType.RSA


def kid_of(certificate: x509.Certificate) -> str:
    """Return the RFC 7638 thumbprint of a certificate's key."""
    return thumbprint(cast(PublicKey, certificate.public_key()))


def moment(seconds: float) -> str:
    """Write a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _replace(path: Path, content: bytes, like: Path) -> None:
    """Replace a file atomically, with the mode and owner of another one."""
    # A link stays a link: the file it points to is replaced.
    path = path.resolve()
    status = like.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            if (os.geteuid(), os.getegid()) != (status.st_uid, status.st_gid):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
