"""Accounts in a password file as Apache's htpasswd writes it, groups in a file as Apache's AuthGroupFile reads it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bcrypt
from passlib.hash import apr_md5_crypt, ldap_sha1, sha256_crypt, sha512_crypt

from tokenissuer import (
    Account,
    Backend,
    ConfigurationError,
    Finding,
    Findings,
    InvalidCredentials,
    Severity,
    TokenIssuerError,
    UnknownAccount,
    option,
)

#: Bytes that bcrypt compares; it ignores the rest of a longer password.
_BCRYPT_BYTES: Final = 72
#: Cost of new hashes: about a quarter of a second.
_BCRYPT_COST: Final = 12
_WEAK_BCRYPT_COST: Final = 10
_SLOW_BCRYPT_COST: Final = 15
_SLOW_ROUNDS: Final = 2_000_000
#: Characters of a user name and of a password: nobody can log in with longer ones.
_MAX_NAME: Final = 1024
_MAX_PASSWORD: Final = 4096
#: Accounts that `check` names one by one.
_MAX_FINDINGS: Final = 20

# What an unknown name is compared with if the file is empty: the hash of 32 random bytes that nobody has kept.
_STAND_IN: Final = "$2b$12$iSTUIc3k6/qyhrU0F9fU7u9xUO6JRPicAgQy.SR8pI5iLbKFjrFFy"

_LINE: Final = re.compile(
    r"(?P<name>[^:\x00-\x1f\x7f]+):"
    r"(?P<hash>"
    # Cost and rounds only as high as a login can wait. The salt's last letter holds two bits: the library refuses any
    # other than these four.
    r"\$2[aby]\$(?:0[4-9]|1[0-7])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
    r"|\$5\$(?:rounds=[1-9][0-9]{3,6}\$)?[./A-Za-z0-9]{0,16}\$[./A-Za-z0-9]{43}"
    r"|\$6\$(?:rounds=[1-9][0-9]{3,6}\$)?[./A-Za-z0-9]{0,16}\$[./A-Za-z0-9]{86}"
    r"|\$apr1\$[./A-Za-z0-9]{0,8}\$[./A-Za-z0-9]{22}"
    r"|\{SHA\}[A-Za-z0-9+/]{27}="
    r")(?::.*)?"
)
_ROUNDS: Final = re.compile(r"\$rounds=([0-9]+)\$")


@dataclass(frozen=True, slots=True)
class HtpasswdOptions:
    """The keys of a `[[backends]]` table with `type = "htpasswd"`."""

    path: Path = option("the password file, lines of name:hash")
    groups: Path | None = option("a group file, lines of group: name name", default=None)


class HtpasswdBackend(Backend):
    """Accounts in a file, read when the backend is built. A changed file builds it again.

    Args:
        options: the files.

    Raises:
        ConfigurationError: if a file cannot be read or a line of it cannot be understood.
    """

    Options = HtpasswdOptions

    def __init__(self, options: HtpasswdOptions) -> None:
        self._options: Final = options
        self._hashes: Final = _read_hashes(options.path)
        self._stand_ins: Final = tuple(self._hashes.values()) or (_STAND_IN,)
        self._groups: Final = _read_groups(options.groups) if options.groups is not None else {}
        # More hashes at once than processors take no less time, and keep every other request from its turn.
        self._processors: Final = threading.BoundedSemaphore(os.cpu_count() or 1)

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is this account's; names are compared letter by letter.

        Raises:
            UnknownAccount: if the file does not have the name; after as much work as for a known one.
            InvalidCredentials: if the password is wrong.
        """
        with self._processors:
            right = _verify(password, self._hash_for(username))
        if username not in self._hashes:
            raise UnknownAccount(reason="the name is not in the password file")
        if not right:
            raise InvalidCredentials(reason="the password is wrong")
        return self._account(username)

    def lookup(self, name: str, password: str) -> Account:
        """Find an account again, for a refresh token.

        Raises:
            InvalidCredentials: if it is no longer in the file.
        """
        if name not in self._hashes:
            raise InvalidCredentials(reason="the name is no longer in the password file")
        return self._account(name)

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report weak hashes, file permissions, and group members that are no accounts."""
        if account:
            yield from super().diagnose(account)
        if account or repository:
            return
        subject = str(self._options.path)
        mode = stat.S_IMODE(self._options.path.stat().st_mode)
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            yield Finding(
                Severity.ERROR,
                subject,
                f"others can read or change the password hashes (mode {mode:04o})",
                f"run: chmod 0600 {subject}",
            )
        groups = self._options.groups
        if groups is not None and (group_mode := stat.S_IMODE(groups.stat().st_mode)) & (stat.S_IWOTH | stat.S_IWGRP):
            yield Finding(
                Severity.ERROR,
                str(groups),
                f"others can make themselves members of any group (mode {group_mode:04o})",
                f"run: chmod 0644 {groups}",
            )
        weak = [(name, weakness) for name, hash_ in self._hashes.items() if (weakness := _weakness(hash_))]
        for name, weakness in weak[:_MAX_FINDINGS]:
            yield Finding(
                Severity.WARNING,
                subject,
                f"the account '{name}' has {weakness}",
                f"set a new one with: tokenissuer passwd {name}",
            )
        if len(weak) > _MAX_FINDINGS:
            yield Finding(Severity.WARNING, subject, f"{len(weak) - _MAX_FINDINGS} more accounts have such hashes")
        for name in sorted(self._groups.keys() - self._hashes.keys())[:_MAX_FINDINGS]:
            yield Finding(
                Severity.WARNING,
                str(groups),
                f"the member '{name}' is not an account in {subject}",
                "remove the name, or add the account with `tokenissuer passwd`",
            )

    def set_password(self, username: str, password: str) -> None:
        """Add an account or change its password, by replacing the file.

        Raises:
            TokenIssuerError: if the file cannot have this name or password, or cannot be written.
        """
        is_line = _LINE.fullmatch(f"{username}:{_STAND_IN}") is not None
        if not is_line or username.strip() != username or username[0] == "#" or not _is_typable(username, _MAX_NAME):
            raise TokenIssuerError(
                f"{username[:100]!r} cannot be an account name: it must not be empty, begin with # or a space, "
                f"have a colon or control character, or have more than {_MAX_NAME} characters"
            )
        if not _is_typable(password, _MAX_PASSWORD):
            raise TokenIssuerError("this cannot be a password: it is empty, too long or has a control character")
        secret = password.encode("utf-8")
        if len(secret) > _BCRYPT_BYTES:
            raise TokenIssuerError(f"the password has {len(secret)} bytes; bcrypt takes at most {_BCRYPT_BYTES}")
        hash_ = bcrypt.hashpw(secret, bcrypt.gensalt(_BCRYPT_COST)).decode("ascii")
        # A link stays a link: the file it points to is replaced.
        path = self._options.path.resolve()
        try:
            with _locked(path.parent):
                # As bytes: `read_text` would begin a new line after a lone carriage return.
                _replace(path, _with_line(path.read_bytes().decode("utf-8"), username, hash_))
        except OSError as error:
            raise TokenIssuerError(f"cannot write {path}: {error.strerror}") from None

    def _hash_for(self, username: str) -> str:
        """Return the account's hash. For an unknown name, return another account's: both take the same time.

        The same unknown name always gets the same hash, or its varying times would show that it is unknown.
        """
        if username in self._hashes:
            return self._hashes[username]
        digest = hashlib.sha256(username.encode("utf-8")).digest()
        return self._stand_ins[int.from_bytes(digest[:8], "big") % len(self._stand_ins)]

    def _account(self, username: str) -> Account:
        version = hashlib.sha256(self._hashes[username].encode("ascii")).hexdigest()
        return Account(username, self._groups.get(username, frozenset()), password_version=version)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line and not line.startswith("#") and not line.isspace():
            yield number, line


def _read_hashes(path: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    # No message may quote a line: it may have a password in plain text.
    for number, line in _read_lines(path):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigurationError(f"{path}, line {number}: {_complaint(line)}")
        name = match["name"]
        if name != name.strip():
            raise ConfigurationError(f"{path}, line {number}: the name begins or ends with a space; remove it")
        if name in hashes:
            raise ConfigurationError(f"{path}, line {number}: an earlier line has the same name; remove one")
        hashes[name] = match["hash"]
    return hashes


def _complaint(line: str) -> str:
    name, colon, rest = line.partition(":")
    if not name or not colon:
        return "not a line of name:hash; remove it"
    if rest.startswith(("$2", "$5$", "$6$", "$apr1$", "{SHA}")):
        return (
            "the hash is damaged, or takes longer than a login can wait; "
            "remove the line and set a new password with `tokenissuer passwd`"
        )
    if rest.startswith("$y$"):
        return "yescrypt hashes are not supported; remove the line and set a new password with `tokenissuer passwd`"
    return (
        "the password is neither a bcrypt, SHA-crypt, APR1 nor {SHA} hash; "
        "remove the line and set a new one with `tokenissuer passwd` or `htpasswd -B`"
    )


def _read_groups(path: Path) -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = {}
    spelled: dict[str, str] = {}
    for number, line in _read_lines(path):
        group, colon, members = line.partition(":")
        if not colon or not group.strip():
            raise ConfigurationError(f"{path}, line {number}: not a line of group: name name; remove it")
        # Rules ignore case, so these would be one group, with the members of both.
        if spelled.setdefault(group.strip().casefold(), group.strip()) != group.strip():
            raise ConfigurationError(
                f"{path}, line {number}: the group '{group.strip()}' differs only in capitals from "
                f"'{spelled[group.strip().casefold()]}'; give it another name, or the same"
            )
        for member in members.split():
            groups.setdefault(member, set()).add(group.strip())
    return {member: frozenset(of) for member, of in groups.items()}


def _verify(password: str, hash_: str) -> bool:
    if hash_.startswith("$2"):
        secret = password.encode("utf-8")
        # Too long a password is compared too, to take the same time, and then refused: bcrypt ignores its end.
        right = bcrypt.checkpw(secret[:_BCRYPT_BYTES], hash_.encode("ascii"))
        return right and len(secret) <= _BCRYPT_BYTES
    return _VERIFIERS[hash_[:3]](password, hash_)


def _verifier(handler: Any) -> Callable[[str, str], bool]:
    def verify(password: str, hash_: str) -> bool:
        return bool(handler.verify(password, hash_))

    return verify


_VERIFIERS: Final = {
    "$5$": _verifier(sha256_crypt),
    "$6$": _verifier(sha512_crypt),
    "$ap": _verifier(apr_md5_crypt),
    "{SH": _verifier(ldap_sha1),
}


def _weakness(hash_: str) -> str:
    """Say what is wrong with a hash; empty if nothing."""
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


def _is_typable(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def _with_line(text: str, username: str, hash_: str) -> str:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    fresh = f"{username}:{hash_}"
    kept = [fresh if line.startswith(f"{username}:") else line for line in lines]
    if fresh not in kept:
        kept.append(fresh)
    return "\n".join(kept) + "\n"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one writer in at a time: a second one would restore the first one's old lines."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically and keep its mode and owner."""
    status = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            fresh = os.fstat(descriptor)
            # Compared with the new file: a folder may give its own group to new files.
            if (fresh.st_uid, fresh.st_gid) != (status.st_uid, status.st_gid):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
