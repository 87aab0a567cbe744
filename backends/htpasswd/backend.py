"""The backend `htpasswd`."""

from __future__ import annotations

import hashlib
import os
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bcrypt

from tokenissuer import (
    Account,
    Backend,
    Finding,
    Findings,
    InvalidCredentials,
    Listing,
    Severity,
    TokenIssuerError,
    UnknownAccount,
    control_findings,
    locked_folder,
    option,
    read_file,
    replace_file,
    secret_findings,
)
from tokenissuer_backends.htpasswd import hash as hashes
from tokenissuer_backends.htpasswd.groups import read_groups
from tokenissuer_backends.htpasswd.passwords import read_passwords, with_line

#: Characters of a user name and of a password: nobody can log in with longer ones.
_MAX_NAME: Final = 1024
_MAX_PASSWORD: Final = 4096
#: Accounts that `check` names one by one.
_MAX_FINDINGS: Final = 20

# What an unknown name is compared with if the file is empty: the hash of 32 random bytes that nobody has kept.
_STAND_IN: Final = "$2b$12$iSTUIc3k6/qyhrU0F9fU7u9xUO6JRPicAgQy.SR8pI5iLbKFjrFFy"


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
        ConfigurationError: if a file cannot be read, or a line of the group file cannot be understood.
    """

    Options = HtpasswdOptions

    def __init__(self, options: HtpasswdOptions) -> None:
        self._options: Final = options
        self._passwords: Final = read_passwords(read_file(options.path))
        self._hashes: Final = self._passwords.hashes
        self._stand_ins: Final = tuple(self._hashes.values()) or (_STAND_IN,)
        self._groups: Final = read_groups(options.groups) if options.groups is not None else {}
        self._listing: Final = Listing(
            frozenset(self._hashes.keys() | self._passwords.unusable.keys()),
            frozenset().union(*self._groups.values()),
            {name: f"{options.path}, {reason}" for name, reason in self._passwords.unusable.items()},
            tuple(f"{options.path}, {line}" for line in self._passwords.ignored),
        )
        # More hashes at once than processors take no less time, and keep every other request from its turn.
        self._processors: Final = threading.BoundedSemaphore(os.cpu_count() or 1)

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is this account's; names are compared letter by letter.

        Raises:
            UnknownAccount: if the file does not have the name; after as much work as for a known one.
            InvalidCredentials: if the password is wrong.
        """
        with self._processors:
            right = hashes.verify(password, self._hash_for(username))
        if username in self._passwords.unusable:
            raise InvalidCredentials(reason=self._passwords.unusable[username])
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
        if name in self._passwords.unusable:
            raise InvalidCredentials(reason=self._passwords.unusable[name])
        if name not in self._hashes:
            raise InvalidCredentials(reason="the name is not in the password file")
        return self._account(name)

    def listing(self) -> Listing:
        """Return all accounts and groups."""
        return self._listing

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report weak hashes, file permissions, and group members that are no accounts."""
        if account:
            yield from super().diagnose(account)
        if account or repository:
            return
        subject = str(self._options.path)
        groups = self._options.groups
        yield from secret_findings(self._options.path, "the password hashes")
        if groups is not None:
            yield from control_findings(groups)
        weak = [(name, weakness) for name, hash_ in self._hashes.items() if (weakness := hashes.weakness(hash_))]
        for name, weakness in weak[:_MAX_FINDINGS]:
            yield Finding(
                Severity.WARNING,
                subject,
                f"the account '{name}' has {weakness}",
                f"set a new one with: tokenissuer passwd {name}",
            )
        if len(weak) > _MAX_FINDINGS:
            yield Finding(Severity.WARNING, subject, f"{len(weak) - _MAX_FINDINGS} more accounts have such hashes")
        for name in sorted(self._groups.keys() - self.listing().accounts)[:_MAX_FINDINGS]:
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
        is_name = ":" not in username and username.strip() == username and not username.startswith("#")
        if not is_name or not _is_typable(username, _MAX_NAME):
            raise TokenIssuerError(
                f"{username[:100]!r} cannot be an account name: it must not be empty, begin with # or a space, "
                f"have a colon or control character, or have more than {_MAX_NAME} characters"
            )
        if not _is_typable(password, _MAX_PASSWORD):
            raise TokenIssuerError("this cannot be a password: it is empty, too long or has a control character")
        secret = password.encode("utf-8")
        if len(secret) > hashes.BCRYPT_BYTES:
            raise TokenIssuerError(f"the password has {len(secret)} bytes; bcrypt takes at most {hashes.BCRYPT_BYTES}")
        hash_ = bcrypt.hashpw(secret, bcrypt.gensalt(hashes.BCRYPT_COST)).decode("ascii")
        path = self._options.path.resolve()
        try:
            with locked_folder(path.parent):
                replace_file(path, with_line(read_file(path), username, hash_), path)
        except ValueError as error:
            raise TokenIssuerError(f"{path}: {error}") from None
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


def _is_typable(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)
