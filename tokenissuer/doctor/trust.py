"""Which registries accept a token: its header against a bundle of certificates and a JWK Set, as each version looks.

Distribution 2.x takes `x5c`, then a libtrust key id. 3.x takes `x5c`, then an RFC 7638 thumbprint, which 3.0 gets wrong
for every EC key and 3.1 for those with a leading zero octet; and the key ids that a JWK Set says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import InvalidKeyError
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tokenissuer.errors import ConfigurationError
from tokenissuer.files import read_file
from tokenissuer.signing.keys import PublicKey, is_for, libtrust_id, load_certificates, thumbprint

# Both numbers of a point need all their octets for 3.1 to give the key its right id.
_OCTET: Final = 8


class Version(StrEnum):
    """The versions of Distribution that verify differently."""

    V2 = "2.x"
    V30 = "3.0"
    V31 = "3.1"


@dataclass(frozen=True, slots=True)
class Trust:
    """What a registry is given to verify tokens.

    Args:
        bundle: the certificates of `rootcertbundle`.
        jwks: the keys of `jwks`, by their ids.
        algorithms: those that a registry 3.x accepts; empty for all.
    """

    bundle: Sequence[x509.Certificate] = ()
    jwks: Mapping[str, PublicKey] | None = None
    algorithms: Sequence[str] = ()

    @property
    def versions(self) -> tuple[Version, ...]:
        """The versions that start with it: 2.x knows no `jwks`."""
        return (Version.V2, Version.V30, Version.V31) if self.bundle else (Version.V30, Version.V31)

    def refusals(self, header: Mapping[str, Any], key: PublicKey, now: float) -> Mapping[Version, str]:
        """Return the versions that refuse a token, with the reason.

        Args:
            header: the token's header.
            key: the key that has signed it.
            now: seconds since 1970.
        """
        found = {version: self._refusal(version, header, key, now) for version in self.versions}
        return {version: reason for version, reason in found.items() if reason}

    def _refusal(self, version: Version, header: Mapping[str, Any], key: PublicKey, now: float) -> str:
        if version is not Version.V2 and self.algorithms and header["alg"] not in self.algorithms:
            return f"auth.token.signingalgorithms has no {header['alg']}"
        if version is Version.V2 and any(_is_ed25519(certificate) for certificate in self.bundle):
            return "a registry 2.x does not start with an Ed25519 certificate in its bundle"
        if header.get("x5c"):
            leaf = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0]))
            return self._chain_refusal(leaf, now)
        known = self._key_ids(version)
        if known.get(header.get("kid", "")) == key:
            return ""
        if key in known.values() or not self._has_wrong_id(version, key):
            return f"no key there has the id {header.get('kid')}{_listed(known)}"
        return f"{version} gives this EC key a wrong id, by which nobody names it"

    def _chain_refusal(self, leaf: x509.Certificate, now: float) -> str:
        if not self.bundle:
            return "the token carries a certificate (x5c), which is held against a rootcertbundle only"
        if not _is_valid(leaf, now):
            return f"the certificate in the token is not valid: it ended on {leaf.not_valid_after_utc:%Y-%m-%d}"
        if leaf in self.bundle:
            return ""
        for root in self.bundle:
            if _has_signed(root, leaf):
                return "" if _is_valid(root, now) else f"the authority in the bundle ended on {_end(root)}"
        return "the certificate in the token is neither in the bundle nor signed by one that is"

    def _has_wrong_id(self, version: Version, key: PublicKey) -> bool:
        """Whether the key is in the bundle, and this version does not find it by its right id."""
        is_there = any(is_for(certificate, key) for certificate in self.bundle)
        return is_there and version is not Version.V2 and not _has_right_thumbprint(key, version)

    def _key_ids(self, version: Version) -> Mapping[str, PublicKey]:
        found: dict[str, PublicKey] = {}
        for certificate in self.bundle:
            key = certificate.public_key()
            if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
                continue
            if version is Version.V2:
                found[libtrust_id(key)] = key
            elif _has_right_thumbprint(key, version):
                found[thumbprint(key)] = key
        return found if version is Version.V2 else {**found, **(self.jwks or {})}


def load_bundle(path: Path) -> list[x509.Certificate]:
    """Read a `rootcertbundle` as registries do.

    Raises:
        ConfigurationError: if no registry starts with it; the text says what the file is.
    """
    content = read_file(path, "bundle")
    if not content.strip():
        raise ConfigurationError(f"{path} is empty; copy the file of [signing] certificate there")
    if b"-----BEGIN" not in content:
        try:
            x509.load_der_x509_certificate(content)
        except ValueError:
            raise ConfigurationError(
                f"{path} has no certificate in it; copy the file of [signing] certificate there"
            ) from None
        raise ConfigurationError(
            f"{path} is a DER certificate; convert it: openssl x509 -inform DER -in {path} -out auth.crt"
        )
    if b"-----BEGIN CERTIFICATE-----" not in content:
        kind = content.partition(b"-----BEGIN ")[2].partition(b"-----")[0].decode("ascii", "replace").lower()
        raise ConfigurationError(
            f"{path} has a {kind} and no certificate; copy the file of [signing] certificate there"
        )
    return load_certificates(path)


def load_jwks(path: Path) -> Mapping[str, PublicKey]:
    """Read a JWK Set as registries 3.x do.

    Raises:
        ConfigurationError: if it is none, or has no usable key.
    """
    advice = "copy jwks.json of tokenissuer there (served at /.well-known/jwks.json)"
    content = read_file(path, "JWK Set")
    try:
        document = json.loads(content)
    except ValueError:
        what = "is PEM" if content.startswith(b"-----BEGIN") else "is not JSON" if content.strip() else "is empty"
        raise ConfigurationError(f"{path} {what} and no JWK Set; {advice}") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ConfigurationError(f"{path} is no JWK Set: it has no list 'keys'; {advice}")
    if any(isinstance(jwk, dict) and "d" in jwk for jwk in keys):
        raise ConfigurationError(f"{path} has a private key in it, with which anybody can sign tokens; {advice}")
    found = {}
    for jwk in keys:
        try:
            read = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk}[jwk["kty"]]
            found[str(jwk.get("kid", ""))] = cast(PublicKey, read(jwk))
        except (KeyError, TypeError, ValueError, InvalidKeyError):
            continue
    if not found:
        raise ConfigurationError(f"{path} has no usable key; {advice}")
    return found


def describe(certificate: x509.Certificate) -> str:
    """Name a certificate: its subject, its end and its key's thumbprint."""
    subject = certificate.subject.rfc4514_string() or "without a name"
    return f"{subject}, until {_end(certificate)}"


def _listed(known: Mapping[str, PublicKey]) -> str:
    return f" (there: {', '.join(sorted(known))})" if known else " (it can name no key there)"


def _has_right_thumbprint(key: PublicKey, version: Version) -> bool:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return True
    # 3.0 takes the curve's generator in place of the key. 3.1 leaves leading zero octets out.
    numbers = key.public_numbers()
    octets = (key.key_size + _OCTET - 1) // _OCTET
    return version is Version.V31 and all(
        (number.bit_length() + _OCTET - 1) // _OCTET == octets for number in (numbers.x, numbers.y)
    )


def _has_signed(root: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        if not root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        leaf.verify_directly_issued_by(root)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError):
        return False
    return True


def _is_ed25519(certificate: x509.Certificate) -> bool:
    return isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)


def _is_valid(certificate: x509.Certificate, now: float) -> bool:
    moment = datetime.fromtimestamp(now, UTC)
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _end(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
