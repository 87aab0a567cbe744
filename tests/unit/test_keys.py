"""Keys, certificates and the names registries know them by."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.keys import DAY, SAMPLE, SAMPLE_KEY, certificate_for, number, pem
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import ConfigurationError
from tokenissuer.signing.keys import (
    KeyForm,
    KeyType,
    SigningKey,
    generate_private_key,
    libtrust_id,
    load_signing_key,
    private_pem,
    self_signed_certificate,
    thumbprint,
)

OpenSSL = Callable[..., str]


# The example of RFC 7638, section 3.1.
RFC_7638_N = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
    "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
    "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
    "nqDKgw"
)


def test_the_specifications_sample_key_has_its_published_libtrust_id() -> None:
    """Distribution's own document names the fingerprint of its sample key."""
    assert libtrust_id(SAMPLE_KEY.public_key()) == "PYYO:TEWU:V7JH:26JV:AQTZ:LJC3:SXVJ:XGHA:34F2:2LAQ:ZRMK:Z7Q6"


def test_the_specifications_sample_key_has_its_thumbprint() -> None:
    """Distribution 3.1 computes this id for the sample key."""
    assert thumbprint(SAMPLE_KEY.public_key()) == "8qjioA3ZA7ti2JIE7c-U8smBFuZolQZvhSHDPU3hhB8"


def test_the_example_of_rfc_7638_has_its_published_thumbprint() -> None:
    """Section 3.1 of the RFC gives an RSA key and its thumbprint."""
    key = rsa.RSAPublicNumbers(number("AQAB"), number(RFC_7638_N)).public_key()
    assert thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_the_jwk_set_shows_the_public_key_and_nothing_of_the_private_one() -> None:
    """The members are those of RFC 7517 and 7518, as the specification writes its sample."""
    key = SigningKey(SAMPLE_KEY, certificate_for(SAMPLE_KEY))
    assert key.jwk_set() == {
        "keys": [
            {
                "kty": "EC",
                "crv": "P-256",
                "x": SAMPLE["x"],
                "y": SAMPLE["y"],
                "kid": "8qjioA3ZA7ti2JIE7c-U8smBFuZolQZvhSHDPU3hhB8",
                "use": "sig",
                "alg": "ES256",
            }
        ]
    }


def short_coordinate(curve: ec.EllipticCurve, which: str) -> ec.EllipticCurvePrivateKey:
    """The first key whose coordinate begins with a zero octet."""
    size = (curve.key_size + 7) // 8
    for secret in range(1, 20000):
        key = ec.derive_private_key(secret, curve)
        if getattr(key.public_key().public_numbers(), which).bit_length() <= 8 * (size - 1):
            return key
    raise AssertionError("no such key")


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(("curve", "length"), [(ec.SECP256R1(), 43), (ec.SECP384R1(), 64)], ids=["P-256", "P-384"])
def test_coordinates_keep_their_length(curve: ec.EllipticCurve, length: int, which: str) -> None:
    """RFC 7518, 6.2.1.2: leading zero octets stay, in the JWK and in what the thumbprint is made of."""
    private = short_coordinate(curve, which)
    key = SigningKey(private, certificate_for(private))
    (jwk,) = key.jwk_set()["keys"]
    assert (len(jwk["x"]), len(jwk["y"])) == (length, length)
    assert jwk[which].startswith("A")
    text = f'{{"crv":"{jwk["crv"]}","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    assert jwk["kid"] == digest
    assert jwt.PyJWK(jwk).key.public_numbers() == private.public_key().public_numbers()


def test_p_521_coordinates_have_66_octets() -> None:
    """521 bits do not fill their last octet, which counts all the same."""
    private = ec.generate_private_key(ec.SECP521R1())
    (jwk,) = SigningKey(private, certificate_for(private)).jwk_set()["keys"]
    assert (len(jwk["x"]), len(jwk["y"]), jwk["alg"]) == (88, 88, "ES512")


@pytest.mark.parametrize("form", list(KeyForm))
def test_a_header_names_the_key_in_the_form_asked_for(form: KeyForm) -> None:
    """x5c carries the leaf and the thumbprint; the other forms a key id alone."""
    key = SigningKey(SAMPLE_KEY, certificate_for(SAMPLE_KEY))
    header = key.header(form)
    assert set(header) == ({"typ", "alg", "kid", "x5c"} if form is KeyForm.X5C else {"typ", "alg", "kid"})
    assert header["kid"] == (key.libtrust_id if form is KeyForm.LIBTRUST else key.thumbprint)
    if form is KeyForm.X5C:
        (leaf,) = header["x5c"]
        assert x509.load_der_x509_certificate(base64.b64decode(leaf, validate=True)) == key.certificate


def refused(key: Path, certificate: Path) -> str:
    """The one line in which the pair is refused."""
    with pytest.raises(ConfigurationError) as caught:
        load_signing_key(key, certificate)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "not a PEM private key", id="empty"),
        pytest.param(b"\x30\x82\x00\x00\xff", "not a PEM private key", id="noise"),
        pytest.param(
            SAMPLE_KEY.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "not a PEM private key",
            id="der",
        ),
        pytest.param(
            SAMPLE_KEY.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
            "not a PEM private key",
            id="public-key",
        ),
        pytest.param(
            SAMPLE_KEY.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"planted"),
            ),
            "encrypted",
            id="encrypted",
        ),
        pytest.param(
            SAMPLE_KEY.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.BestAvailableEncryption(b"planted"),
            ),
            "encrypted",
            id="encrypted-traditional",
        ),
        pytest.param(
            SAMPLE_KEY.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
            "not a PEM private key",
            id="openssh",
        ),
        pytest.param(
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "registries accept RSA keys",
            id="ed25519",
        ),
        pytest.param(private_pem(ec.generate_private_key(ec.SECP256K1())), "accept RSA keys", id="secp256k1"),
        pytest.param(private_pem(rsa.generate_private_key(65537, 1024)), "1024 bits, at least 2048", id="short-rsa"),
    ],
)
def test_a_key_no_registry_takes_is_refused(key_file: Path, certificate_file: Path, content: bytes, says: str) -> None:
    """One line names the file and says what it should be."""
    key_file.write_bytes(content)
    text = refused(key_file, certificate_file)
    assert text.startswith(f"{key_file}: ")
    assert says in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "no PEM certificate", id="empty"),
        pytest.param(
            certificate_for(SAMPLE_KEY).public_bytes(serialization.Encoding.DER), "no PEM certificate", id="der"
        ),
        pytest.param(
            pem(certificate_for(SAMPLE_KEY)).replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"),
            "no PEM certificate",
            id="trusted-certificate",
        ),
        pytest.param(private_pem(SAMPLE_KEY), "no PEM certificate", id="a-key"),
        pytest.param(
            pem(certificate_for(SAMPLE_KEY)).replace(b"-----END CERTIFICATE-----", b""),
            "no PEM certificate",
            id="no-end",
        ),
        pytest.param(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1", id="damaged"),
        pytest.param(
            pem(certificate_for(SAMPLE_KEY)) + b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            "certificate 2",
            id="second-damaged",
        ),
        pytest.param(pem(certificate_for(ec.generate_private_key(ec.SECP256R1()))), "no certificate", id="of-another"),
    ],
)
def test_a_certificate_no_registry_reads_is_refused(
    key_file: Path, certificate_file: Path, content: bytes, says: str
) -> None:
    """What would stop the registry stops the issuer first, and says which file."""
    certificate_file.write_bytes(content)
    text = refused(key_file, certificate_file)
    assert text.startswith(f"{certificate_file}: ")
    assert says in text


@pytest.mark.parametrize("which", ["key", "certificate"])
@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named(key_file: Path, certificate_file: Path, which: str, kind: str) -> None:
    """A missing file is one line, not a traceback."""
    path = {"key": key_file, "certificate": certificate_file}[which]
    path.unlink()
    if kind == "folder":
        path.mkdir()
    assert f"{which} {path}: " in refused(key_file, certificate_file)


def test_of_several_certificates_the_keys_own_is_used(key_file: Path, certificate_file: Path) -> None:
    """A bundle may hold others before and after, and words between."""
    others = [pem(certificate_for(ec.generate_private_key(ec.SECP256R1()))) for _ in range(2)]
    own = certificate_for(SAMPLE_KEY)
    certificate_file.write_bytes(b"a note\n" + others[0] + b"another\r\n" + pem(own) + others[1])
    assert load_signing_key(key_file, certificate_file).certificate == own


def test_a_trusted_certificate_beside_the_real_one_does_not_count(key_file: Path, certificate_file: Path) -> None:
    """Registries pass over blocks of other names, whatever is in them."""
    own = certificate_for(SAMPLE_KEY)
    certificate_file.write_bytes(
        b"-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n" + pem(own)
    )
    assert load_signing_key(key_file, certificate_file).certificate == own


def test_key_and_certificate_in_one_file_are_found(key_file: Path) -> None:
    """Some tools write both into one."""
    key_file.write_bytes(pem(certificate_for(SAMPLE_KEY)) + private_pem(SAMPLE_KEY))
    assert load_signing_key(key_file, key_file).thumbprint == thumbprint(SAMPLE_KEY.public_key())


@pytest.mark.parametrize(
    ("begin", "end", "says"),
    [
        pytest.param(-2 * DAY, -1, "the certificate ended on", id="expired"),
        pytest.param(DAY, 2 * DAY, "the certificate begins only on", id="not-yet-valid"),
    ],
)
def test_a_certificate_out_of_its_time_is_an_error(begin: float, end: float, says: str) -> None:
    """In `x5c` it stops every registry."""
    key = SigningKey(SAMPLE_KEY, certificate_for(SAMPLE_KEY, begin=begin, end=end))
    with pytest.raises(ConfigurationError, match=says):
        key.expiry(time.time())
    (finding,) = key.findings("auth.crt", time.time())
    assert finding.severity is Severity.ERROR
    assert finding.subject == "auth.crt"


@pytest.mark.parametrize(("days", "warns"), [(29.5, True), (1, True), (30.5, False), (3650, False)])
def test_a_warning_is_due_thirty_days_before_the_end(days: float, warns: bool) -> None:
    """Time to make a new certificate and carry it to the registry."""
    key = SigningKey(SAMPLE_KEY, certificate_for(SAMPLE_KEY, end=days * DAY))
    findings = list(key.findings("auth.crt", time.time()))
    assert [finding.severity for finding in findings] == [Severity.WARNING] * warns


def test_new_ec_keys_have_no_leading_zero_octets() -> None:
    """Distribution 3.x gives keys with such coordinates an id of its own."""
    for _ in range(20):
        private = generate_private_key(KeyType.EC)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        numbers = private.public_key().public_numbers()
        assert isinstance(private.curve, ec.SECP256R1)
        assert min(numbers.x, numbers.y) >= 1 << 248


def test_a_new_certificate_is_good_for_ten_years_from_an_hour_ago() -> None:
    """The common name is the issuer, and the key its own."""
    now = time.time()
    certificate = self_signed_certificate(SAMPLE_KEY, "gitlab-issuer", now)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=gitlab-issuer"
    assert certificate.public_key() == SAMPLE_KEY.public_key()
    begin = certificate.not_valid_before_utc.timestamp()
    years = (certificate.not_valid_after_utc.timestamp() - now) / (365.25 * DAY)
    assert now - 3700 < begin < now - 3500
    assert 10 <= years < 10.01


@pytest.mark.parametrize(
    ("name", "good"),
    [
        pytest.param("x", True, id="one"),
        pytest.param("x" * 64, True, id="64"),
        pytest.param("\N{LATIN SMALL LETTER E WITH ACUTE}" * 32, True, id="64-octets"),
        pytest.param("", False, id="empty"),
        pytest.param("x" * 65, False, id="65"),
        pytest.param("\N{LATIN SMALL LETTER E WITH ACUTE}" * 33, False, id="66-octets"),
    ],
)
def test_an_issuer_name_must_fit_into_a_certificate(name: str, good: bool) -> None:
    """The library counts octets; a name that does not fit is one line, not its exception."""
    if good:
        certificate = self_signed_certificate(SAMPLE_KEY, name, time.time())
        assert certificate.subject.rfc4514_string() == f"CN={name}"
    else:
        with pytest.raises(ConfigurationError, match="1 to 64"):
            self_signed_certificate(SAMPLE_KEY, name, time.time())


def test_a_key_shows_nothing_private() -> None:
    """A `repr` may end up in a log."""
    key = SigningKey(SAMPLE_KEY, certificate_for(SAMPLE_KEY))
    assert "rivate" not in repr(key)
    assert SAMPLE["d"] not in json.dumps([key.jwk_set(), key.header(KeyForm.X5C)])
