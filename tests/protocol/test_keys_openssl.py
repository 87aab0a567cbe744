"""Keys and certificates made by the openssl program."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from tests.support.keys import SAMPLE_KEY, certificate_for, pem
from tokenissuer.errors import ConfigurationError
from tokenissuer.signing.keys import (
    KeyForm,
    libtrust_id,
    load_signing_key,
)

OpenSSL = Callable[..., str]


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
