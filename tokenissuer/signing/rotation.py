"""Rotation of the signing key: a next key, the key in use, and the previous key.

Registries read certificates and JWK Sets only when they start. So they get the next key's certificate first, tokens are
signed with the key afterwards, and the previous key stays trusted until its last token has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.files import locked_folder, replace_file
from tokenissuer.signing.keys import (
    PEM_BLOCK,
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


class State(StrEnum):
    """What a certificate in the file is for."""

    SIGNS = "signs"
    NEXT = "next"
    PREVIOUS = "previous"
    #: It signs certificates and no tokens.
    AUTHORITY = "authority"
    OTHER = "other"


class Change(StrEnum):
    """A command that changes several files, as it is called on the command line."""

    ADD = "keys add"
    SWITCH = "keys switch"
    RETIRE = "keys retire"
    DROP_NEXT = "keys retire --next"


@dataclass(frozen=True, slots=True)
class Progress:
    """What is written down beside the key while a rotation lasts.

    Args:
        doing: the command that is at work; empty if none is.
        switched: when the key in use began to sign, in seconds since 1970; 0 if that is not known.
        taken: when the service's copy of the key was first seen to be that of the key in use; 0 if it was not.
    """

    doing: str = ""
    switched: float = 0.0
    taken: float = 0.0


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

    A change of several files can be cut short at any point. What was begun stands in `auth.key.rotation`, and the next
    command first finishes or undoes it. Two commands at once take turns.

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
        with self._turn():
            if self.next_key.exists():
                raise TokenIssuerError(
                    f"{self.next_key} already exists; use it (keys switch) or remove it (keys retire --next)"
                )
            load_signing_key(self.key, self.certificate)
            private = generate_private_key(key_type)
            certificate = self_signed_certificate(private, name, now)
            with self._change(Change.ADD):
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
        with self._turn():
            self.next().expiry(now)
            if self.previous_key.exists():
                raise TokenIssuerError(f"{self.previous_key} still exists; remove it first: tokenissuer keys retire")
            with self._change(Change.SWITCH, Progress(switched=now)):
                self._write_beside(self.previous_key, self.key.read_bytes())
                os.replace(self.next_key, self.key)

    def retire(self, lifetime: int, now: float, *, at_once: bool = False) -> Path:
        """Remove the previous key and its certificate.

        Args:
            lifetime: seconds a token is valid.
            now: seconds since 1970.
            at_once: although its tokens are valid still: somebody else may have the key.

        Returns:
            The key file removed.

        Raises:
            TokenIssuerError: if there is none, or tokens signed with it may still be in use.
        """
        with self._turn():
            if not self.previous_key.exists():
                more = "; the next key is removed by keys retire --next" if self.next_key.exists() else ""
                raise TokenIssuerError(f"there is no previous key {self.previous_key}{more}")
            self._refuse_used(self.previous_key)
            end = self.last_token_ends(lifetime)
            if now < end and not at_once:
                raise TokenIssuerError(
                    f"tokens signed with {self.previous_key} are valid until {moment(end)}; retire it after that, or "
                    "at once if it was stolen: keys retire --now"
                )
            with self._change(Change.RETIRE):
                self._take_out(self.previous_key)
            return self.previous_key

    def drop_next(self) -> Path:
        """Remove the next key, which has signed nothing, and its certificate.

        Returns:
            The key file removed.

        Raises:
            TokenIssuerError: if there is none.
        """
        with self._turn():
            if not self.next_key.exists():
                raise TokenIssuerError(f"there is no next key {self.next_key}")
            with self._change(Change.DROP_NEXT):
                self._take_out(self.next_key)
            return self.next_key

    def last_token_ends(self, lifetime: int) -> float:
        """Return when the last token of the previous key has ended, in seconds since 1970.

        Args:
            lifetime: seconds a token is valid.
        """
        progress = self._progress()
        return max(progress.switched or self.key.stat().st_mtime, progress.taken) + lifetime + _GRACE

    def mend(self) -> None:
        """Finish or undo what a command began that was killed.

        Raises:
            TokenIssuerError: if a file cannot be written.
        """
        with self._turn():
            pass

    @property
    def unfinished(self) -> str:
        """The command that was killed before its end, or is at work; empty if there is none."""
        return self._progress().doing

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one command at a time change the files, and first put in order what an earlier one left."""
        with locked_folder(self.key.parent):
            self._put_in_order()
            yield

    @contextlib.contextmanager
    def _change(self, change: Change, then: Progress | None = None) -> Iterator[None]:
        """Note what is begun before the first file is touched, and `then` when all are done."""
        self._note(replace(then or self._progress(), doing=change))
        try:
            yield
        except Exception:
            self._put_in_order()
            raise
        # Only a previous key has a past that counts.
        self._note(replace(self._progress(), doing="") if self.previous_key.exists() else Progress())

    def _put_in_order(self) -> None:
        progress = self._progress()
        if self.previous_key.exists() and _same_key(self.previous_key, self.key):
            # `switch` was killed before the new key was in its place. The certificate is that of the key in use.
            self.previous_key.unlink()
            progress = Progress()
        elif progress.doing == Change.RETIRE:
            self._take_out(self.previous_key)
        elif progress.doing in (Change.ADD, Change.DROP_NEXT):
            # Nobody was told of the key, or somebody wanted it gone.
            self._take_out(self.next_key)
        if not self.previous_key.exists():
            progress = Progress()
        elif self.used != self.key and not progress.taken and self.used.exists() and _same_key(self.used, self.key):
            # The copy is made anew at each start of the service; the first one counts.
            progress = replace(progress, taken=self.used.stat().st_mtime)
        self._note(replace(progress, doing=""))

    def _take_out(self, key: Path) -> None:
        """Remove a key file, after its certificate."""
        if not key.exists():
            return
        if not _same_key(key, self.key):
            self._remove(load_private_key(key).public_key())
        key.unlink()

    @property
    def _progress_file(self) -> Path:
        return self.key.with_name(f"{self.key.name}.rotation")

    def _progress(self) -> Progress:
        try:
            return Progress(**json.loads(self._progress_file.read_bytes()))
        except FileNotFoundError:
            return Progress()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self._progress_file} cannot be read ({type(error).__name__}); it tells how far `tokenissuer keys` "
                "came: remove it if the keys are in order"
            ) from None

    def _note(self, progress: Progress) -> None:
        if progress == self._progress():
            return
        if progress == Progress():
            self._progress_file.unlink()
        else:
            self._write_beside(self._progress_file, json.dumps(asdict(progress)).encode() + b"\n")

    def _refuse_used(self, key: Path) -> None:
        if self.used != self.key and self.used.exists() and _same_key(self.used, key):
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
            is_gone = match[1] == b"CERTIFICATE" and is_for(x509.load_pem_x509_certificate(match[0]), key)
            return b"" if is_gone else match[0]

        self._publish(PEM_BLOCK.sub(keep, self.certificate.read_bytes()))

    def _publish(self, pem: bytes) -> None:
        replace_file(self.certificate, pem, self.certificate)
        if self.jwks.exists():
            signer = load_signing_key(self.key, self.certificate)
            replace_file(self.jwks, json.dumps(signer.jwk_set(), indent=2).encode() + b"\n", self.jwks)

    def _write_beside(self, path: Path, content: bytes) -> None:
        """Write a private key with the permissions of the key in use."""
        replace_file(path, content, self.key)


def _same_key(one: Path, other: Path) -> bool:
    return load_private_key(one).public_key() == load_private_key(other).public_key()


def key_type_of(key: PrivateKey) -> KeyType:
    """Return the kind of a key."""
    return KeyType.EC if hasattr(key, "curve") else KeyType.RSA


def kid_of(certificate: x509.Certificate) -> str:
    """Return the RFC 7638 thumbprint of a certificate's key."""
    return thumbprint(cast(PublicKey, certificate.public_key()))


def moment(seconds: float) -> str:
    """Write a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
