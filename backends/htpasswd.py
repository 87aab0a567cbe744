"""Accounts in a password file as Apache's htpasswd writes it, groups in a file as Apache's AuthGroupFile reads it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import bcrypt
from passlib.hash import apr_md5_crypt, ldap_sha1, sha256_crypt, sha512_crypt

from tokenissuer.backend import (
    Account,
    Backend,
    Finding,
    Severity,
    file_stamp,
    option,
    refuse_unusable,
)
from tokenissuer.errors import ConfigurationError, InvalidCredentials, TokenIssuerError, UnknownAccount

_log: Final = logging.getLogger("tokenissuer.backends.htpasswd")

#: Bytes that bcrypt looks at; of a longer password it would take the beginning for the whole.
_BCRYPT_BYTES: Final = 72
#: Seconds after its last change for which a file may still be being written.
_SETTLED: Final = 0.5
#: Cost of new hashes: about a quarter of a second.
_BCRYPT_COST: Final = 12
_WEAK_BCRYPT_COST: Final = 10
_SLOW_BCRYPT_COST: Final = 15
_SLOW_ROUNDS: Final = 2_000_000
#: Weak hashes that `check` names one by one.
_NAMED_FINDINGS: Final = 20

# What an unknown name is held against while the file is empty: the hash of 32 random bytes that nobody kept.
_STAND_IN: Final = "$2b$12$iSTUIc3k6/qyhrU0F9fU7u9xUO6JRPicAgQy.SR8pI5iLbKFjrFFy"

_LINE: Final = re.compile(
    r"(?P<name>[^:\x00-\x1f\x7f]+):"
    r"(?P<hash>"
    # Cost and rounds only as far as a login can wait for. The salt's last letter holds two bits, and the library
    # refuses any other than these four.
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


@dataclass(frozen=True, slots=True)
class _Version:
    """What the files said at one time, whole."""

    hashes: Mapping[str, str]
    stand_ins: tuple[str, ...]
    groups: Mapping[str, frozenset[str]]
    number: int = field(default_factory=itertools.count().__next__)

    def hash_for(self, username: str) -> str:
        """Return the account's hash, for an unknown name some account's: so both take the same time.

        The same name always meets the same stand-in, or its varying times would tell that it is unknown.
        """
        if username in self.hashes:
            return self.hashes[username]
        if not self.stand_ins:
            return _STAND_IN
        digest = hashlib.sha256(username.encode("utf-8")).digest()
        return self.stand_ins[int.from_bytes(digest[:8], "big") % len(self.stand_ins)]

    def account(self, username: str) -> Account:
        """Return an account that the file has; its stamp changes with its line."""
        stamp = hashlib.sha256(self.hashes[username].encode("ascii")).hexdigest()
        return Account(username, self.groups.get(username, frozenset()), stamp=stamp)


class HtpasswdBackend(Backend):
    """Accounts in a file that is read again when it changes: whole, or not at all.

    Args:
        options: which files.

    Raises:
        ConfigurationError: if a file cannot be read or a line of it cannot be understood.
    """

    Options = HtpasswdOptions
    rereads = frozenset({"path", "groups"})
    is_even = True
    is_local = True

    def __init__(self, options: HtpasswdOptions) -> None:
        self._options: Final = options
        self._reading: Final = threading.Lock()
        self._stamp: object = self._take_stamp()
        self._version: _Version = _read_version(options)

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is this account's; names count letter by letter.

        Raises:
            UnknownAccount: if the file does not have the name; after as much work as for one that it has.
            InvalidCredentials: if the password is wrong.
        """
        refuse_unusable(username, password)
        version = self._current()
        right = _verify(password, version.hash_for(username))
        if username not in version.hashes:
            raise UnknownAccount(reason="the name is not in the password file")
        if not right:
            raise InvalidCredentials(reason="the password is wrong")
        return version.account(username)

    def lookup(self, name: str, keepsake: str) -> Account:
        """Find an account again without its password.

        Raises:
            InvalidCredentials: if the file does not have it any more.
        """
        version = self._current()
        if name not in version.hashes:
            # For good, that is: who writes the file in place, as Apache's htpasswd does, empties it first.
            self._let_settle()
            version = self._current()
        if name not in version.hashes:
            raise InvalidCredentials(reason="the name is not in the password file any more")
        return version.account(name)

    def version(self) -> int:
        """Return another number after each change of the files."""
        return self._current().number

    def findings(self) -> Iterable[Finding]:
        """Say which hashes are weak, who may read the file, and which group members are nobody."""
        version = self._current()
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
        told = 0
        for name, hash_ in version.hashes.items():
            weakness = _weakness(hash_)
            if weakness:
                told += 1
                if told <= _NAMED_FINDINGS:
                    yield Finding(Severity.WARNING, subject, f"the account '{name}' has {weakness}", _renew(name))
        if told > _NAMED_FINDINGS:
            yield Finding(Severity.WARNING, subject, f"{told - _NAMED_FINDINGS} more accounts have such hashes")
        for name in sorted(version.groups.keys() - version.hashes.keys())[:_NAMED_FINDINGS]:
            yield Finding(
                Severity.WARNING,
                str(self._options.groups),
                f"the member '{name}' is no account of {subject}",
                "take the name out, or add the account with `tokenissuer passwd`",
            )

    def set_password(self, username: str, password: str) -> None:
        """Add an account or change its password, by a new file in the old one's place.

        Raises:
            TokenIssuerError: if name or password cannot stand in such a file, or it cannot be written.
        """
        if not _LINE.fullmatch(f"{username}:{_STAND_IN}") or username.strip() != username or username[0] == "#":
            raise TokenIssuerError(
                f"{username!r} cannot be an account name: it must not be empty, hold a colon or control character, "
                "or begin with # or a space"
            )
        try:
            refuse_unusable(username, password)
        except InvalidCredentials as error:
            raise TokenIssuerError(f"this cannot be a password: {error.reason}") from None
        secret = password.encode("utf-8")
        if len(secret) > _BCRYPT_BYTES:
            raise TokenIssuerError(f"the password has {len(secret)} bytes; bcrypt takes at most {_BCRYPT_BYTES}")
        hash_ = bcrypt.hashpw(secret, bcrypt.gensalt(_BCRYPT_COST)).decode("ascii")
        # A link stays a link: what it points to is replaced.
        path = self._options.path.resolve()
        try:
            with _locked(path.parent):
                # As bytes: `read_text` would make a new line of what stands behind a lone carriage return.
                _replace(path, _with_line(path.read_bytes().decode("utf-8"), username, hash_))
        except OSError as error:
            raise TokenIssuerError(f"cannot write {path}: {error.strerror}") from None

    def _current(self) -> _Version:
        """Return what is in force, after a look whether the files have changed."""
        stamp = self._take_stamp()
        # Whoever finds another thread reading goes on with the version before.
        if stamp != self._stamp and self._reading.acquire(blocking=False):
            try:
                self._version = _read_version(self._options)
                _log.info(
                    "%s: read again, %d accounts",
                    *(self._options.path, len(self._version.hashes)),
                    extra={"security": "reload"},
                )
            except ConfigurationError as error:
                _log.error("%s; what was read before stays in force", error, extra={"security": "reload_failed"})
            finally:
                self._stamp = stamp
                self._reading.release()
        return self._version

    def _let_settle(self) -> None:
        """Wait until the password file has been left alone for a moment; not long, even if the clock is wrong."""
        end = time.monotonic() + 2 * _SETTLED
        with contextlib.suppress(OSError):
            while time.time() < self._options.path.stat().st_ctime + _SETTLED and time.monotonic() < end:
                time.sleep(_SETTLED / 10)

    def _take_stamp(self) -> tuple[object, ...]:
        return tuple(file_stamp(path) for path in (self._options.path, self._options.groups) if path is not None)


def _read_version(options: HtpasswdOptions) -> _Version:
    hashes = _read_hashes(options.path)
    groups = _read_groups(options.groups) if options.groups is not None else {}
    return _Version(hashes, tuple(hashes.values()), groups)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8")
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
    # No message may quote a line: a password in plain text may stand there.
    for number, line in _read_lines(path):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigurationError(f"{path}, line {number}: {_complaint(line)}")
        name = match["name"]
        if name != name.strip():
            raise ConfigurationError(f"{path}, line {number}: the name begins or ends with a space; take it out")
        if name in hashes:
            raise ConfigurationError(f"{path}, line {number}: the same name stands on an earlier line; remove one")
        hashes[name] = match["hash"]
    return hashes


def _complaint(line: str) -> str:
    name, colon, rest = line.partition(":")
    if not name or not colon:
        return "this is no line of name:hash; remove it"
    if rest.startswith(("$2", "$5$", "$6$", "$apr1$", "{SHA}")):
        return (
            "the hash is damaged, or takes longer than a login can wait; "
            "remove the line and set the password anew with `tokenissuer passwd`"
        )
    if rest.startswith("$y$"):
        return "yescrypt hashes are not supported; remove the line and set the password anew with `tokenissuer passwd`"
    return (
        "the password is neither a bcrypt, SHA-crypt, APR1 nor {SHA} hash; "
        "remove the line and set it anew with `tokenissuer passwd`, or use `htpasswd -B`"
    )


def _read_groups(path: Path) -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for number, line in _read_lines(path):
        group, colon, members = line.partition(":")
        if not colon or not group.strip():
            raise ConfigurationError(f"{path}, line {number}: this is no line of group: name name; remove it")
        for member in members.split():
            groups.setdefault(member, set()).add(group.strip())
    return {member: frozenset(of) for member, of in groups.items()}


def _verify(password: str, hash_: str) -> bool:
    if hash_.startswith("$2"):
        secret = password.encode("utf-8")
        # Measured against the beginning, to take the same time, and refused: bcrypt would see no difference.
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
    """Name what is wrong with a hash; empty if nothing is."""
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


def _renew(name: str) -> str:
    return f"set it anew with: tokenissuer passwd {name}"


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
    """Keep a second writer out: it would bring back the first one's old lines."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Put a new file in the old one's place, on disk before it counts, with the old one's mode and owner."""
    status = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            fresh = os.fstat(descriptor)
            # Not what this process is: a folder may give its own group to new files.
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
