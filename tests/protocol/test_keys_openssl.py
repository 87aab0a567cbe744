"""Keys and certificates made by the openssl program."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tokenissuer.errors import ConfigurationError
from tokenissuer.signing.keys import (
    KeyForm,
    PrivateKey,
    libtrust_id,
    load_signing_key,
    private_pem,
)

OpenSSL = Callable[..., str]


DAY = 86400


def number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


# The sample key of https://distribution.github.io/distribution/spec/auth/jwt/
SAMPLE = {
    "d": "R7OnbfMaD5J2jl7GeE8ESo7CnHSBm_1N2k9IXYFrKJA",
    "x": "m7zUpx3b-zmVE5cymSs64POG9QcyEpJaYCD82-549_Q",
    "y": "dU3biz8sZ_8GPB-odm8Wxz3lNDr1xcAQQPQaOcr1fmc",
}


SAMPLE_KEY = ec.derive_private_key(number(SAMPLE["d"]), ec.SECP256R1())


def certificate_for(private: PrivateKey, *, begin: float = -DAY, end: float = DAY) -> x509.Certificate:
    """A certificate good from `begin` to `end`, in seconds from now."""
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
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The sample key in a file."""
    path = tmp_path / "auth.key"
    path.write_bytes(private_pem(SAMPLE_KEY))
    return path


@pytest.fixture
def certificate_file(tmp_path: Path) -> Path:
    """A certificate for the sample key in a file."""
    path = tmp_path / "auth.crt"
    path.write_bytes(pem(certificate_for(SAMPLE_KEY)))
    return path


@pytest.mark.parametrize(
    ("arguments", "algorithm"),
    [
        pytest.param(["-newkey", "rsa:2048", "-nodes"], "RS256", id="rsa"),
        pytest.param(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"], "ES256", id="p-256"),
        pytest.param(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"], "ES384", id="p-384"),
        pytest.param(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521", "-nodes"], "ES512", id="p-521"),
    ],
)
def test_a_pair_made_by_openssl_drops_in(
    openssl: OpenSSL, tmp_path: Path, arguments: list[str], algorithm: str
) -> None:
    """`openssl req -x509` makes what is needed, and its tokens are verified from the certificate."""
    openssl("req", "-new", *arguments, "-x509", "-subj", "/CN=gitlab-issuer", "-keyout", "a.key", "-out", "a.crt")
    key = load_signing_key(tmp_path / "a.key", tmp_path / "a.crt")
    header = key.header(KeyForm.X5C)
    token = jwt.encode({"sub": "alice"}, key.private, algorithm=key.algorithm, headers=header)
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    assert jwt.decode(token, key.private.public_key(), algorithms=[algorithm]) == {"sub": "alice"}
    # libtrust, once more, by another program.
    der = base64.b64decode("".join(openssl("pkey", "-in", "a.key", "-pubout").splitlines()[1:-1]))
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    assert key.libtrust_id == ":".join(re.findall("....", text))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["ecparam", "-name", "prime256v1", "-genkey"], id="sec1-after-parameters"),
        pytest.param(["genrsa", "-traditional", "2048"], id="pkcs1"),
    ],
)
def test_traditional_key_files_are_read(openssl: OpenSSL, tmp_path: Path, arguments: list[str]) -> None:
    """Older commands write other PEM blocks."""
    (tmp_path / "a.key").write_text(openssl(*arguments))
    openssl("req", "-new", "-x509", "-key", "a.key", "-subj", "/CN=x", "-out", "a.crt")
    assert load_signing_key(tmp_path / "a.key", tmp_path / "a.crt").thumbprint


def refused(key: Path, certificate: Path) -> str:
    """The one line in which the pair is refused."""
    with pytest.raises(ConfigurationError) as caught:
        load_signing_key(key, certificate)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_certificate_of_an_unknown_kind_is_no_traceback(
    openssl: OpenSSL, tmp_path: Path, key_file: Path, certificate_file: Path
) -> None:
    """A curve the library does not know belongs to another key, and that is what is said."""
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2", "-out", "sm2.key")
    openssl("req", "-new", "-x509", "-key", "sm2.key", "-subj", "/CN=x", "-out", "sm2.crt")
    strange = (tmp_path / "sm2.crt").read_bytes()
    certificate_file.write_bytes(strange)
    assert "no certificate in it belongs to the key" in refused(key_file, certificate_file)
    certificate_file.write_bytes(strange + pem(certificate_for(SAMPLE_KEY)))
    assert load_signing_key(key_file, certificate_file).libtrust_id == libtrust_id(SAMPLE_KEY.public_key())
