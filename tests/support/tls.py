"""A certificate authority for servers of the tests, and single certificates."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from tokenissuer.signing.keys import KeyType, PrivateKey, generate_private_key, private_pem

if TYPE_CHECKING:
    from tests.integration.conftest import Client


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and what it has signed for a server."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self.folder / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """The server's."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """Its key."""
        return self.folder / "server.key"

    def trust(self, client: Client) -> None:
        """Let a person's machine trust it."""
        client.env["SSL_CERT_FILE"] = str(self.certificate)


def new_key() -> PrivateKey:
    """A key that every registry knows."""
    return generate_private_key(KeyType.EC)


def pem(*certificates: x509.Certificate) -> bytes:
    """Write certificates."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def certificate(
    key: PrivateKey,
    signer: PrivateKey | None = None,
    *,
    days: float = 400,
    names: Sequence[str] = (),
) -> x509.Certificate:
    """A certificate: an authority's, or one that the authority has signed."""
    texts = ("test authority" if signer is None else "test", "test authority")
    subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in texts)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(issuer_name=issuer, subject_name=subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    if names:
        listed = [
            x509.IPAddress(ipaddress.ip_address(each)) if each[0].isdigit() else x509.DNSName(each) for each in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(listed), critical=False)
    return builder.sign(signer or key, hashes.SHA256())


def make_authority(folder: Path, *names: str, days: float = 400) -> Authority:
    """A new authority with one server certificate."""
    folder.mkdir()
    authority, ca_key, key = Authority(folder), new_key(), new_key()
    authority.certificate.write_bytes(pem(certificate(ca_key)))
    leaf = certificate(key, ca_key, days=days, names=names or ("127.0.0.1", "localhost"))
    authority.server_certificate.write_bytes(pem(leaf))
    authority.server_key.write_bytes(private_pem(key))
    return authority
