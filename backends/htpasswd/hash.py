"""Password hashes: which can be used, which are weak, and holding a password against one."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import argon2
import bcrypt
from passlib.hash import apr_md5_crypt, ldap_sha1, sha256_crypt, sha512_crypt

#: Bytes that bcrypt compares; it ignores the rest of a longer password.
BCRYPT_BYTES: Final = 72
#: Bytes that any other hash compares: longer passwords are refused.
_MAX_BYTES: Final = 256
#: Cost of new hashes: about a quarter of a second.
BCRYPT_COST: Final = 12
_WEAK_BCRYPT_COST: Final = 10
_SLOW_BCRYPT_COST: Final = 15
_SLOW_ROUNDS: Final = 400_000
#: KiB of memory that one argon2id hash may take. Each processor works on one.
MAX_ARGON2_MEMORY: Final = 262_144
_MAX_ARGON2_ROUNDS: Final = 20
_MAX_ARGON2_THREADS: Final = 16

_B64: Final = "[./A-Za-z0-9]"
# Cost and rounds only as high as a login can wait. The last letter of bcrypt's salt holds two bits: the library refuses
# any other than these four.
_USABLE: Final = re.compile(
    rf"\$2[aby]\$(?:0[4-9]|1[0-7])\${_B64}{{21}}[.Oeu]{_B64}{{31}}"
    rf"|\$5\$(?:rounds=[1-9][0-9]{{3,5}}\$)?{_B64}{{0,16}}\${_B64}{{43}}"
    rf"|\$6\$(?:rounds=[1-9][0-9]{{3,5}}\$)?{_B64}{{0,16}}\${_B64}{{86}}"
    rf"|\$apr1\${_B64}{{0,8}}\${_B64}{{22}}"
    r"|\{SHA\}[A-Za-z0-9+/]{27}="
    r"|\$argon2id\$v=19\$m=[1-9][0-9]{0,5},t=[1-9][0-9]?,p=[1-9][0-9]?"
    r"\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
    # libxcrypt's costs 1 to 9: https://manpages.debian.org/crypt.5
    rf"|\$y\$j[5-9A-D][5T]\${_B64}{{0,86}}\${_B64}{{43}}"
)
_ROUNDS: Final = re.compile(r"\$rounds=([0-9]+)\$")
_ARGON2: Final = re.compile(r"\$m=([0-9]+),t=([0-9]+),p=([0-9]+)\$")
_USED: Final = ("$2a$", "$2b$", "$2y$", "$5$", "$6$", "$apr1$", "{SHA}", "$argon2id$", "$y$")
_TOO_LONG: Final = "is damaged, or takes longer than a login can wait"

#: What a hash looks like that is not used here, and its name.
_OTHERS: Final = (
    (re.compile(r"\$1\$.*"), "MD5-crypt, which is fast to guess"),
    (re.compile(r"\$(?:argon2i|argon2d)\$.*"), "argon2 in another form than argon2id"),
    (re.compile(r"\$(?:7|scrypt)\$.*"), "scrypt"),
    (re.compile(r"\$gy\$.*"), "gost-yescrypt"),
    (re.compile(r"\{[A-Za-z0-9-]+\}.*"), "a kind for LDAP servers"),
    (re.compile(r"[0-9a-f]{32}"), "MD5 without salt, which is fast to guess"),
    (re.compile(r"[./0-9A-Za-z]{13}"), "DES, which is guessed at once, or a short password in plain text"),
    (re.compile(r"_[./0-9A-Za-z]{19}"), "DES in BSD's form, which is fast to guess"),
    (re.compile(r"\$[A-Za-z0-9-]+\$.*"), "a kind that is not known here"),
)


def problem(hash_: str) -> str:
    """Say why no password can be held against a hash; empty if one can. It never quotes the hash.

    Args:
        hash_: the text in the place of a hash; it may be a password in plain text.
    """
    if hash_.startswith("$y$") and _crypt() is None:
        return "its hash is yescrypt, and this system has no libcrypt that knows it"
    if _USABLE.fullmatch(hash_) and _is_quick(hash_):
        return ""
    if hash_.startswith(_USED):
        return f"its hash {_TOO_LONG}"
    for pattern, kind in _OTHERS:
        if pattern.fullmatch(hash_):
            return f"its hash is {kind}"
    return "its password is not a hash"


def verify(password: str, hash_: str) -> bool:
    """Whether a password belongs to a hash for which there is no `problem`."""
    secret = password.encode("utf-8")
    longest = BCRYPT_BYTES if hash_.startswith("$2") else _MAX_BYTES
    # The beginning of too long a password is compared too, to take the same time, and then refused: bcrypt ignores its
    # end, and SHA-crypt takes time for each byte in each round.
    right = _VERIFIERS[hash_[:3]](secret[:longest], hash_)
    return right and len(secret) <= longest


def weakness(hash_: str) -> str:
    """Say what is wrong with a hash that can be used; empty if nothing."""
    if hash_.startswith("{SHA}"):
        return "an unsalted SHA-1 hash, which is guessed at once"
    if hash_.startswith("$apr1$"):
        return "an APR1-MD5 hash, which is fast to guess"
    if hash_.startswith("$2"):
        cost = int(hash_[4:6])
        if cost < _WEAK_BCRYPT_COST:
            return f"a bcrypt hash of cost {cost}, which is fast to guess"
        if cost >= _SLOW_BCRYPT_COST:
            return f"a bcrypt hash of cost {cost}, for which a login takes seconds"
    rounds = _ROUNDS.search(hash_)
    if rounds is not None and int(rounds[1]) >= _SLOW_ROUNDS:
        return f"a hash of {rounds[1]} rounds, for which a login takes seconds"
    return ""


def _is_quick(hash_: str) -> bool:
    cost = _ARGON2.search(hash_)
    if cost is None:
        return True
    memory, rounds, threads = map(int, cost.groups())
    # RFC 9106, 3.1: at least 8 KiB for each thread.
    return (
        8 * threads <= memory <= MAX_ARGON2_MEMORY and rounds <= _MAX_ARGON2_ROUNDS and threads <= _MAX_ARGON2_THREADS
    )


def _verify_bcrypt(secret: bytes, hash_: str) -> bool:
    return bcrypt.checkpw(secret, hash_.encode("ascii"))


def _verify_argon2(secret: bytes, hash_: str) -> bool:
    try:
        return argon2.PasswordHasher().verify(hash_, secret)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def _verify_yescrypt(secret: bytes, hash_: str) -> bool:
    crypt = _crypt()
    assert crypt is not None
    return crypt(secret, hash_.encode("ascii"))


def _by_passlib(handler: Any) -> Callable[[bytes, str], bool]:
    def verify_with(secret: bytes, hash_: str) -> bool:
        return bool(handler.verify(secret, hash_))

    return verify_with


_VERIFIERS: Final[Mapping[str, Callable[[bytes, str], bool]]] = {
    **dict.fromkeys(("$2a", "$2b", "$2y"), _verify_bcrypt),
    "$5$": _by_passlib(sha256_crypt),
    "$6$": _by_passlib(sha512_crypt),
    "$ap": _by_passlib(apr_md5_crypt),
    "{SH": _by_passlib(ldap_sha1),
    "$ar": _verify_argon2,
    "$y$": _verify_yescrypt,
}


@cache
def _crypt() -> Callable[[bytes, bytes], bool] | None:
    """Return a comparison by the system's libcrypt; None if it does not know yescrypt.

    Python's own module `crypt` is deprecated, and gone since 3.13.
    """
    name = ctypes.util.find_library("crypt")
    if name is None:
        return None
    try:
        function = ctypes.CDLL(name).crypt_r
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    function.restype = ctypes.c_char_p

    def compare(password: bytes, hash_: bytes) -> bool:
        # One for each call, zeroed: https://manpages.debian.org/crypt_r.3
        data = ctypes.create_string_buffer(1 << 17)
        found = function(password, hash_, data)
        # An error begins with a star, and a hash here never does.
        return isinstance(found, bytes) and found == hash_

    known = b"$y$j75$$" + b"." * 43
    return compare if (function(b"", known, ctypes.create_string_buffer(1 << 17)) or b"*").startswith(b"$y$") else None
