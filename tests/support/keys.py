"""Keys and certificates for tests."""

from __future__ import annotations

import base64
import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tokenissuer.signing.keys import PrivateKey

DAY = 86400


def number(text: str) -> int:
    """Read a number of a JWK."""
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


# The sample key of https://distribution.github.io/distribution/spec/auth/jwt/
SAMPLE = {
    "d": "R7OnbfMaD5J2jl7GeE8ESo7CnHSBm_1N2k9IXYFrKJA",
    "x": "m7zUpx3b-zmVE5cymSs64POG9QcyEpJaYCD82-549_Q",
    "y": "dU3biz8sZ_8GPB-odm8Wxz3lNDr1xcAQQPQaOcr1fmc",
}
SAMPLE_KEY = ec.derive_private_key(number(SAMPLE["d"]), ec.SECP256R1())


def certificate_for(private: PrivateKey, *, begin: float = -DAY, end: float = DAY) -> x509.Certificate:
    """A certificate valid from `begin` to `end`, in seconds from now."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(seconds=begin))
        .not_valid_after(now + datetime.timedelta(seconds=end))
        .sign(private, hashes.SHA256())
    )


def pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate as it stands in a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)
