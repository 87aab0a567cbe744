"""The files of the signing key and how one key follows another: next first, then in use, then before, then gone.

Registries read certificates and JWK Sets only when they start. So the next key's certificate goes to them first, tokens
are signed with it afterwards, and the one before stays trusted until its last token has ended.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.keys import (
    KeyType,
    PrivateKey,
    PublicKey,
    SigningKey,
    authority_certificate,
    certificate_under,
    generate_private_key,
    is_authority,
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

#: Seconds added to a token's lifetime before its key may go: registries' leeway, and servers that follow late.
_GRACE: Final = 120

_PEM_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----[ \t]*\r?\n?", re.DOTALL)


class State(StrEnum):
    """What a certificate in the file is there for."""

    SIGNS = "signs"
    NEXT = "next"
    BEFORE = "before"
    AUTHORITY = "authority"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate that registries are given.

    Args:
        state: what it is there for.
        kid: its key's RFC 7638 thumbprint; empty for an authority.
        kind: its key's algorithm or type.
        until: when it ends.
    """

    state: State
    kid: str
    kind: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Keyring:
    """The files beside each other: `auth.key` signs, `auth.key.next` will, `auth.key.previous` did.

    Args:
        key: the private key that signs.
        certificate: the certificates that registries are given, as one file.
        used: what the service signs with: the key itself, or a copy of it made when the service started.
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
        """The key that signed before."""
        return self.key.with_name(f"{self.key.name}.previous")

    @property
    def jwks(self) -> Path:
        """The JWK Set for registries, where there is one: `init` puts it beside the certificate."""
        return self.certificate.with_name("jwks.json")

    @property
    def authority_key(self) -> Path:
        """The authority's key, where it is kept on this machine."""
        return self.certificate.with_name("authority.key")

    def entries(self) -> list[Entry]:
        """Return what is in the certificate file.

        Raises:
            ConfigurationError: if a file cannot be used.
        """
        keys = {State.SIGNS: load_private_key(self.key)}
        for state, path in ((State.NEXT, self.next_key), (State.BEFORE, self.previous_key)):
            if path.exists():
                keys[state] = load_private_key(path)
        return [self._entry(certificate, keys) for certificate in load_certificates(self.certificate)]

    def add(self, name: str, key_type: KeyType, authority_key: Path | None, now: float) -> x509.Certificate:
        """Make the next key and put its certificate into certificate file and JWK Set. Nothing is signed with it.

        Args:
            name: the issuer's name.
            key_type: the kind of key.
            authority_key: signs the certificate; None for a certificate that signs itself.
            now: seconds since 1970.

        Raises:
            ConfigurationError: if a file cannot be used.
            TokenIssuerError: if there is a next key already.
        """
        if self.next_key.exists():
            raise TokenIssuerError(f"{self.next_key} is there already; use it (keys switch) or remove it (keys retire)")
        load_signing_key(self.key, self.certificate)
        private = generate_private_key(key_type)
        if authority_key is None:
            certificate = self_signed_certificate(private, name, now)
        else:
            certificate = self._under(authority_key, private, name, now)
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
            now: seconds since 1970, from which the one before is no longer used.

        Raises:
            ConfigurationError: if there is no next key that could be used.
            TokenIssuerError: if the one before that is still there.
        """
        self.next().expiry(now)
        if self.previous_key.exists():
            raise TokenIssuerError(f"{self.previous_key} is still there; take it out first: tokenissuer keys retire")
        self._write_beside(self.previous_key, self.key.read_bytes())
        # From here to the end of the line both are whole.
        os.replace(self.next_key, self.key)
        os.utime(self.key, (now, now))

    def retire(self, lifetime: int, now: float) -> Sequence[Path]:
        """Take the key before, with its certificate, out; without one, the next key that is not wanted after all.

        Args:
            lifetime: seconds for which a token is good.
            now: seconds since 1970.

        Returns:
            The key files that are gone.

        Raises:
            TokenIssuerError: if there is none, or tokens signed with it may still be in use.
        """
        if self.previous_key.exists():
            gone = self.previous_key
            self._refuse_used(gone)
            end = self.last_token_ends(lifetime)
            if now < end:
                raise TokenIssuerError(f"tokens signed with {gone} are good until {moment(end)}; retire it after that")
        elif self.next_key.exists():
            gone = self.next_key
        else:
            raise TokenIssuerError(f"there is neither {self.previous_key} nor {self.next_key}; nothing to retire")
        public = load_private_key(gone).public_key()
        self._remove(public)
        gone.unlink()
        return (gone,)

    def last_token_ends(self, lifetime: int) -> float:
        """Return when the last token of the key before has ended, in seconds since 1970.

        Args:
            lifetime: seconds for which a token is good.
        """
        since = max(path.stat().st_mtime for path in (self.key, self.used) if path.exists())
        return since + lifetime + _GRACE

    def add_authority(self, name: str, now: float) -> x509.Certificate:
        """Make an authority and put its certificate into the certificate file.

        Args:
            name: the issuer's name.
            now: seconds since 1970.

        Raises:
            ConfigurationError: if a file cannot be used.
            TokenIssuerError: if there is one already.
        """
        if self.authority_key.exists() or self.has_authority(name):
            raise TokenIssuerError(f"there is an authority already, in {self.authority_key} or {self.certificate}")
        private = generate_private_key(KeyType.EC)
        certificate = authority_certificate(private, name, now)
        self._write_beside(self.authority_key, private_pem(private))
        self._append(certificate)
        return certificate

    def has_authority(self, name: str) -> bool:
        """Whether registries are given the certificate of the issuer's own authority.

        Args:
            name: the issuer's name.
        """
        return any(is_authority(certificate, name) for certificate in load_certificates(self.certificate))

    def _refuse_used(self, key: Path) -> None:
        if self.used != self.key and self.used.exists() and self.used.read_bytes() == key.read_bytes():
            raise TokenIssuerError(
                f"the service still signs with {key}: its copy {self.used} is the old one; restart it"
            )

    def _under(self, authority_key: Path, private: PrivateKey, name: str, now: float) -> x509.Certificate:
        key = load_private_key(authority_key)
        for candidate in load_certificates(self.certificate):
            if is_for(candidate, key.public_key()):
                return certificate_under(private.public_key(), name, candidate, key, now)
        raise ConfigurationError(
            f"{self.certificate}: no certificate in it belongs to the authority's key {authority_key}; "
            "make an authority with `tokenissuer keys authority`"
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
        """Write a private key that the same people may read as the one in use."""
        _replace(path, content, self.key)


def key_type_of(key: PrivateKey) -> KeyType:
    """Return the kind of a key."""
    return KeyType.EC if hasattr(key, "curve") else KeyType.RSA


def kid_of(certificate: x509.Certificate) -> str:
    """Return the RFC 7638 thumbprint of a certificate's key."""
    return thumbprint(cast(PublicKey, certificate.public_key()))


def moment(seconds: float) -> str:
    """Write a time so that anybody can compare it with their clock."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _replace(path: Path, content: bytes, like: Path) -> None:
    """Put a new file in its place, on disk before it counts, with another one's mode and owner."""
    # A link stays a link: what it points to is replaced.
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
