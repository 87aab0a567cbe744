"""The order of backends: the first that knows the name decides."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from tokenissuer.accounts.backend import Account
from tokenissuer.accounts.cache import CachedBackend, Turn
from tokenissuer.errors import InvalidCredentials, QuotaExceeded, UnknownAccount
from tokenissuer.policy import REPOSITORY_ACTIONS
from tokenissuer.scope import Access

#: Characters in a user name and in a password. A CI job's token may be a JWT of more than a thousand.
MAX_NAME_LENGTH: Final = 1024
MAX_PASSWORD_LENGTH: Final = 4096


@dataclass(frozen=True, slots=True)
class Login:
    """An account, and the backend that vouches for it."""

    account: Account
    backend: CachedBackend


class Chain:
    """The backends in the order of the configuration.

    Args:
        backends: at least one.
    """

    def __init__(self, backends: Sequence[CachedBackend]) -> None:
        self.backends: Final = tuple(backends)
        #: Whether any of them allows actions itself.
        self.may_grant: Final = any(each.backend.may_grant for each in backends)
        #: Whether the source of any of them counts wrong logins, and then refuses this whole server.
        self.bans_servers: Final = any(each.backend.bans_servers for each in backends)

    def authenticate(self, username: str, password: str, turn: Turn = nullcontext) -> Login:
        """Prove that the password is this account's.

        Args:
            username: what the client typed.
            password: what the client typed.
            turn: waited for before a source that bans servers is asked.

        Raises:
            InvalidCredentials: if a backend knows the name and refuses, or none knows it.
            BackendUnavailable: if a backend cannot answer; no later one is asked.
        """
        _check("user name", username, MAX_NAME_LENGTH)
        _check("password", password, MAX_PASSWORD_LENGTH)
        unknown = []
        for backend in self.backends:
            try:
                login = Login(backend.authenticate(username, password, turn), backend)
            except UnknownAccount as error:
                unknown.append(error)
            else:
                return login if login.account.name == username else self._prove_first(login)
        reasons = "; ".join(dict.fromkeys(error.reason for error in unknown if error.reason))
        raise InvalidCredentials(
            reason=f"no backend knows the name{f' ({reasons})' if reasons else ''}",
            # A machine's token is no guess for any of them.
            is_guess=all(error.is_guess for error in unknown),
        )

    def find(self, backend: CachedBackend, username: str) -> Login:
        """Find an account without its password, to say what it may do. Nobody is logged in by it.

        Raises:
            InvalidCredentials: if it could not log in.
            BackendUnavailable: if a backend cannot answer.
        """
        return self._prove_first(Login(backend.backend.find(username), backend))

    def _prove_first(self, login: Login) -> Login:
        """Prove that no earlier backend has an account of the same name, and return the login.

        Backends fold names in different ways. Without this, `ADMIN` in the second backend would become the account
        `admin` of the first one, which knows no other spelling. A job's rights do not come from rules for its user.

        Raises:
            InvalidCredentials: if one has.
        """
        account = login.account
        for backend in () if account.delegated else self.backends:
            if backend is login.backend:
                break
            if backend.knows(account.name):
                raise InvalidCredentials(
                    reason=f"'{account.name}' is an account of the backend '{backend.name}', which comes first",
                    is_guess=False,
                )
        return login

    def lookup(self, backend_name: str, name: str, password: str) -> Login:
        """Find an account again, for a refresh token.

        Raises:
            InvalidCredentials: if its backend no longer vouches for it, or is no longer configured.
            BackendUnavailable: if the backend cannot answer.
        """
        for backend in self.backends:
            if backend.name == backend_name:
                return self._prove_first(Login(backend.lookup(name, password), backend))
        raise InvalidCredentials(reason=f"no backend is called '{backend_name}' any more")

    def grants(self, login: Login | None, access: Access) -> frozenset[str]:
        """Return the actions that the backends allow themselves.

        Args:
            login: who asks; None for an anonymous caller.
            access: what is requested.

        Raises:
            BackendUnavailable: if one cannot answer.
        """
        granted: frozenset[str] = frozenset()
        if login is not None:
            granted = login.backend.grants(login.account, access)
        # What a backend grants to everyone, it grants also to who has logged in with another one.
        for backend in self.backends:
            if access.actions <= granted:
                break
            if login is None or backend is not login.backend:
                try:
                    granted |= backend.grants(None, access)
                except QuotaExceeded:
                    # Strangers may have used up what is for everyone; what the account has of its own stays.
                    if login is None or not granted:
                        raise
        # A plug-in may grant only the actions that a registry knows.
        return granted & REPOSITORY_ACTIONS

    def close(self) -> None:
        """Close every backend."""
        for backend in self.backends:
            backend.backend.close()


def _check(kind: str, text: str, longest: int) -> None:
    """Refuse what no backend may ever see: an empty LDAP password, for one, is an anonymous bind that succeeds."""
    if not text:
        raise InvalidCredentials(reason=f"the {kind} is empty", is_guess=False)
    if len(text) > longest:
        raise InvalidCredentials(reason=f"the {kind} has more than {longest} characters", is_guess=False)
    # `isprintable` is fast and true for most texts; it is false for more than control characters.
    if not text.isprintable() and any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise InvalidCredentials(reason=f"the {kind} has a control character", is_guess=False)
