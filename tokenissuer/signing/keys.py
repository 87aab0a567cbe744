"""The signing key, its certificate and the names that registries know it by.

Key ids: https://distribution.github.io/distribution/spec/auth/jwt/ (libtrust) and RFC 7638 (thumbprint).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.errors import ConfigurationError
from tokenissuer.files import read_file
from tokenissuer.options import option

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

#: Days before the certificate ends from which a warning is due.
EXPIRY_WARNING_DAYS: Final = 30

_CERTIFICATE_YEARS: Final = 10
_MIN_RSA_BITS: Final = 2048
# X.509's own limit of a common name (RFC 5280, appendix A: ub-common-name); the library counts bytes.
_MAX_COMMON_NAME: Final = 64
_ALGORITHMS: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
PEM_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----[ \t]*\r?\n?", re.DOTALL)


# What to do about a certificate that ends: `keys` works also when it has ended.
_NEW_KEY: Final = (
    "make the next key (tokenissuer keys add), give every registry the certificate file (rootcertbundle) and restart "
    "it, then sign with it: tokenissuer keys switch --registry URL (or --unproven)"
)


class KeyType(StrEnum):
    """The kinds of key that can be made."""

    EC = "ec"
    RSA = "rsa"


class KeyForm(StrEnum):
    """How a token's header names its key."""

    #: The certificate itself: every registry with a `rootcertbundle` accepts it.
    X5C = "x5c"
    #: Only the RFC 7638 thumbprint: for Distribution 3.x configured with `jwks`.
    THUMBPRINT = "thumbprint"
    #: Only the libtrust fingerprint: for Distribution 2.x and its descendants.
    LIBTRUST = "libtrust"


@dataclass(frozen=True, slots=True)
class SigningOptions:
    """The `[signing]` table."""

    key: Path = option("the private key, PEM")
    certificate: Path = option("its certificate, PEM: the registry's rootcertbundle")
    key_forms: Mapping[str, Literal["x5c", "thumbprint", "libtrust"]] = option(
        "for each service, how a token names its key (default: 'x5c'); "
        "'thumbprint' for a registry 3.x that has only `jwks`",
        default_factory=dict,
    )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the certificate that registries trust it by.

    Args:
        private: the key.
        certificate: its certificate.
        others: further certificates that registries are given: of the next key, of the previous one, of an authority.
    """

    private: PrivateKey = field(repr=False)
    certificate: x509.Certificate
    others: tuple[x509.Certificate, ...] = ()

    @property
    def algorithm(self) -> str:
        """The JWS algorithm: Distribution 2.x takes no other for this key."""
        return _algorithm(self.private.public_key())

    @property
    def thumbprint(self) -> str:
        """The RFC 7638 thumbprint."""
        return thumbprint(self.private.public_key())

    @property
    def libtrust_id(self) -> str:
        """The libtrust fingerprint."""
        return libtrust_id(self.private.public_key())

    def header(self, form: KeyForm) -> dict[str, Any]:
        """Return the token header for this key."""
        header = {"typ": "JWT", "alg": self.algorithm}
        if form is KeyForm.LIBTRUST:
            return {**header, "kid": self.libtrust_id}
        if form is KeyForm.THUMBPRINT:
            return {**header, "kid": self.thumbprint}
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        # Only the leaf: proxies take headers up to 8 KiB, and a registry knows the rest of the chain.
        return {**header, "kid": self.thumbprint, "x5c": [base64.b64encode(der).decode("ascii")]}

    def derive(self, purpose: str) -> bytes:
        """Return a secret of 32 bytes that only holders of this key can compute.

        Args:
            purpose: a different one gives a different secret.
        """
        secret = self.private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return HKDF(hashes.SHA256(), 32, salt=None, info=purpose.encode("utf-8")).derive(secret)

    def jwk_set(self) -> dict[str, Any]:
        """Return the JWK Set (RFC 7517): this key first, then those of the other certificates."""
        return jwk_set([self.certificate, *filter(signs_tokens, self.others)])

    def expiry(self, now: float) -> datetime.timedelta:
        """Return how long the certificate is still valid.

        Args:
            now: seconds since 1970.

        Raises:
            ConfigurationError: if it has ended or has not begun: in `x5c` such a certificate stops every registry.
        """
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        if moment >= self.certificate.not_valid_after_utc:
            raise ConfigurationError(
                f"the certificate ended on {self.certificate.not_valid_after_utc:%Y-%m-%d} and no registry accepts its "
                f"tokens; {_NEW_KEY}"
            )
        if moment < self.certificate.not_valid_before_utc:
            raise ConfigurationError(
                f"the certificate begins only on {self.certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC; "
                "check this machine's clock"
            )
        return self.certificate.not_valid_after_utc - moment

    def findings(self, subject: str, now: float) -> Findings:
        """Report on the certificate.

        Args:
            subject: the certificate file's name.
            now: seconds since 1970.
        """
        try:
            left = self.expiry(now)
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, subject, str(error))
            return
        if left < datetime.timedelta(days=EXPIRY_WARNING_DAYS):
            yield Finding(
                Severity.WARNING,
                subject,
                f"the certificate ends in {left.days} days, on {self.certificate.not_valid_after_utc:%Y-%m-%d}",
                _NEW_KEY,
            )


def load_signing_key(key: Path, certificate: Path) -> SigningKey:
    """Read a key and its certificate, as `openssl req -x509` writes them.

    Args:
        key: PEM of the private key, not encrypted.
        certificate: PEM read as registries read it: every block called CERTIFICATE counts. If there are several, the
            one made for the key is used.

    Raises:
        ConfigurationError: if a file cannot be read, no registry accepts its kind, or the two do not belong together.
    """
    private = load_private_key(key)
    certificates = load_certificates(certificate)
    own = [candidate for candidate in certificates if is_for(candidate, private.public_key())]
    if not own:
        raise ConfigurationError(
            f"{certificate}: no certificate in it belongs to the key {key}; "
            "the two must come from the same `tokenissuer init` or `openssl req`"
        )
    # Of several for one key, the newest.
    chosen = max(own, key=lambda candidate: candidate.not_valid_before_utc)
    return SigningKey(private, chosen, tuple(other for other in certificates if other not in own))


def generate_private_key(type_: KeyType) -> PrivateKey:
    """Make a new private key: P-256, or RSA with 4096 bits."""
    if type_ is KeyType.RSA:
        return rsa.generate_private_key(public_exponent=65537, key_size=4096)
    while True:
        key = ec.generate_private_key(ec.SECP256R1())
        numbers = key.public_key().public_numbers()
        # Distribution 3.x drops leading zero octets and so gives about one key in 128 a wrong id.
        if min(numbers.x, numbers.y).bit_length() > 248:
            return key


def self_signed_certificate(private: PrivateKey, issuer: str, now: float) -> x509.Certificate:
    """Make the certificate that a registry trusts, valid for ten years.

    Args:
        private: the key.
        issuer: the common name.
        now: seconds since 1970.

    Raises:
        ConfigurationError: if the name does not fit into a certificate.
    """
    length = len(issuer.encode("utf-8"))
    if not 1 <= length <= _MAX_COMMON_NAME:
        raise ConfigurationError(f"the issuer name must have 1 to {_MAX_COMMON_NAME} bytes, found {length}")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
    start = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        # An hour back: the registry's clock may be behind ours.
        .not_valid_before(start - datetime.timedelta(hours=1))
        .not_valid_after(start + datetime.timedelta(days=_CERTIFICATE_YEARS * 365.25 + 1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )


def is_for(certificate: x509.Certificate, key: PublicKey) -> bool:
    """Whether the certificate belongs to this key."""
    try:
        return certificate.public_key() == key
    except (UnsupportedAlgorithm, ValueError):
        # The library does not know this kind of key, so it is not ours.
        return False


def signs_tokens(certificate: x509.Certificate) -> bool:
    """Whether the key may sign tokens: not if it only signs certificates, or no registry knows its kind."""
    try:
        key = certificate.public_key()
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    except (UnsupportedAlgorithm, ValueError):
        return False
    known = isinstance(key, rsa.RSAPublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _ALGORITHMS
    )
    return known and (usage is None or usage.digital_signature)


def jwk_set(certificates: Iterable[x509.Certificate]) -> dict[str, Any]:
    """Return the JWK Set (RFC 7517) of keys that sign tokens, each once.

    Args:
        certificates: theirs, in this order.
    """
    keys = {}
    for certificate in certificates:
        key = typing.cast(PublicKey, certificate.public_key())
        keys[thumbprint(key)] = {**_jwk(key), "kid": thumbprint(key), "use": "sig", "alg": _algorithm(key)}
    return {"keys": list(keys.values())}


def private_pem(private: PrivateKey) -> bytes:
    """Write the private key as PKCS #8 PEM."""
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def thumbprint(key: PublicKey) -> str:
    """Return the RFC 7638 thumbprint with SHA-256."""
    # RFC 7638, 3.3: the required members in lexicographic order, without white space.
    text = json.dumps(_jwk(key), sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode("ascii")).digest()).rstrip(b"=").decode("ascii")


def libtrust_id(key: PublicKey) -> str:
    """Return the libtrust fingerprint: 30 bytes of SHA-256 over the DER public key, in base32, in groups of four."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode("ascii")
    return ":".join(text[start : start + 4] for start in range(0, len(text), 4))


def load_private_key(path: Path) -> PrivateKey:
    """Read a private key, PEM and not encrypted.

    Raises:
        ConfigurationError: if it cannot be read or no registry accepts its kind.
    """
    data = read_file(path, "private key")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise ConfigurationError(
            f"{path}: the private key is encrypted; decrypt it with: openssl pkey -in {path} -out auth.key"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{path}: not a PEM private key (-----BEGIN PRIVATE KEY-----)") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _MIN_RSA_BITS:
            raise ConfigurationError(
                f"{path}: the RSA key has {key.key_size} bits, at least {_MIN_RSA_BITS} are needed; make a new pair"
            )
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _ALGORITHMS:
        return key
    raise ConfigurationError(
        f"{path}: registries accept RSA keys and EC keys on P-256, P-384 or P-521; make a new pair"
    )


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Read every block called CERTIFICATE.

    Raises:
        ConfigurationError: if there is none, or one is damaged.
    """
    data = read_file(path, "certificate")
    blocks = [match for match in PEM_BLOCK.finditer(data) if match[1] == b"CERTIFICATE"]
    if not blocks:
        raise ConfigurationError(
            f"{path}: no PEM certificate in it (-----BEGIN CERTIFICATE-----), and no registry would start with it; "
            "convert DER with: openssl x509 -inform DER -in FILE -out auth.crt"
        )
    certificates = []
    for number, block in enumerate(blocks, 1):
        try:
            certificates.append(x509.load_pem_x509_certificate(block[0]))
        except ValueError:
            raise ConfigurationError(
                f"{path}: certificate {number} in it is damaged, and no registry would start with it"
            ) from None
    return certificates


def _algorithm(key: PublicKey) -> str:
    return "RS256" if isinstance(key, rsa.RSAPublicKey) else _ALGORITHMS[key.curve.name]


def _jwk(key: PublicKey) -> dict[str, str]:
    """Return the members of the JWK that make the key (RFC 7518, 6.2.1 and 6.3.1)."""
    if isinstance(key, rsa.RSAPublicKey):
        jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
        return {name: jwk[name] for name in ("kty", "n", "e")}
    return ECAlgorithm.to_jwk(key, as_dict=True)
