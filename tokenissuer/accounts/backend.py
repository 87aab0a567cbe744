"""`Account` and `Backend`: the whole plug-in interface.

A backend is a class that an entry point of the group `tokenissuer.backends` names; docs/backends.md shows how to write
one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from tokenissuer.accounts.refusals import Refusals
from tokenissuer.diagnosis import Finding, Findings, Severity, Stopwatch
from tokenissuer.errors import InvalidCredentials, RequestError, TokenIssuerError, UnknownAccount
from tokenissuer.options import NoOptions, load_plugin
from tokenissuer.policy import fold
from tokenissuer.scope import Access

ENTRY_POINT_GROUP: Final = "tokenissuer.backends"


@dataclass(frozen=True, slots=True)
class Account:
    """Who a backend says it is. A backend may subclass this to carry what its `grants` needs.

    Args:
        name: the backend's own canonical spelling, never what was typed.
        groups: short names of the groups it belongs to. Case does not matter: they are kept folded.
        groups_known: false if the credential does not show the account's groups. Denials for groups then apply to it.
        delegated: whether this credential was made for one purpose on the account's behalf, such as a CI job's. Access
            rules that allow something do not apply then, only what the backend grants.
        valid_until: seconds since 1970 after which the backend no longer vouches for this login; None if it does not
            say. No token lives longer.
        credential_ends: seconds since 1970 after which the credential is not accepted any more; None if it does not
            say. A token that was issued before may live on.
        password_version: a text that changes when the password changes, and is not a secret; empty if the backend
            cannot tell.
        advice: a sentence for the user if nothing of a request is granted: what to do about it. It must not show what
            exists or who may do what. Empty if there is nothing to say.
    """

    name: str
    groups: frozenset[str] = frozenset()
    groups_known: bool = True
    delegated: bool = False
    valid_until: float | None = field(default=None, compare=False)
    credential_ends: float | None = field(default=None, compare=False)
    password_version: str = field(default="", repr=False, compare=False)
    advice: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", frozenset(fold(group) for group in self.groups if group))

    def group_named(self, text: str) -> str | None:
        """Return the name of its group that an access rule means; empty if the name is not certain; None if none.

        The one comparison of groups, for membership and for `{group}`. An account whose groups can be written in
        several ways overrides it.

        Args:
            text: the group as the rule writes it.
        """
        name = fold(text)
        return name if name in self.groups else None


@dataclass(frozen=True, slots=True)
class WantedGroups:
    """The groups that access rules ask for.

    Args:
        named: those that rules name, as the rules write them.
        others: whether any other may matter too, because of a pattern or `{group}`.
        others_deny: whether an account would get more if one of the others were not found.
    """

    named: frozenset[str] = frozenset()
    others: bool = True
    others_deny: bool = True


@dataclass(frozen=True, slots=True)
class Listing:
    """All accounts and groups of a backend that keeps them itself.

    Args:
        accounts: names of the accounts.
        groups: names of the groups that have members.
        unusable: for each account that can never log in, the place and the reason.
        ignored: lines that are no account's, each with its place and the reason.
    """

    accounts: frozenset[str]
    groups: frozenset[str]
    unusable: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def findings(self, backend: str) -> Findings:
        """Report the accounts that can never log in, and the lines that are no account's.

        Args:
            backend: its name in the configuration.
        """
        for line in self.ignored:
            yield Finding(Severity.WARNING, f"backend '{backend}'", f"{line}; until then the line is left out")
        for name, reason in self.unusable.items():
            yield Finding(Severity.WARNING, f"backend '{backend}'", f"the account '{name}' cannot log in: {reason}")


class Backend(ABC):
    """A source of accounts. One instance serves all threads and keeps no state of a request.

    The core remembers answers, limits calls, watches files and counts wrong passwords around it. Every method may raise
    `BackendUnavailable` if the backend cannot answer.

    Args:
        options: an instance of the class's own `Options`.

    Raises:
        ConfigurationError: if the backend can never work with these options. An outage is no such reason: it may end.
    """

    #: A frozen dataclass. Its fields, declared with `option`, are the keys of the backend's table. A file that a field
    #: of type `Path` names is watched: when it changes, the backend is built again.
    Options: ClassVar[type[Any]] = NoOptions

    #: Whether its users can make groups with names of their choice.
    users_make_groups: ClassVar[bool] = False

    #: Set by the core: the groups that access rules ask for. No others need to be found.
    groups_wanted: WantedGroups = WantedGroups()

    #: Set by the core: remembers which passwords are certainly wrong. A source that locks accounts after some wrong
    #: passwords is not to be asked about those again. None if nothing is to be remembered.
    refusals: Refusals | None = None

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def may_grant(self) -> bool:
        """Whether `grants` is worth asking."""
        return type(self).grants is not Backend.grants

    @property
    def bans_servers(self) -> bool:
        """Whether its source counts wrong logins, and after ten in a minute refuses this whole server."""
        return False

    @abstractmethod
    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is this account's.

        Args:
            username: what the client typed; not empty, at most 1024 characters, no control characters.
            password: what the client typed; not empty, at most 4096 characters, no control characters.

        Raises:
            UnknownAccount: if the backend does not know the name: the next backend is asked.
            InvalidCredentials: if it knows the name and refuses.
        """

    def lookup(self, name: str, password: str) -> Account:
        """Find an account again, for a refresh token. Without this method none are issued.

        It must prove that the password is still the one of the login: the account it returns has a `password_version`,
        which is compared, or the backend holds the password against the source again.

        Args:
            name: an `Account.name` from an earlier login.
            password: the password of that login, which only the refresh token can decrypt; empty if the account had a
                `password_version`.

        Raises:
            InvalidCredentials: if the account no longer exists, is locked, or nothing proves the password.
        """
        raise InvalidCredentials(reason=f"{type(self).__name__} cannot look up accounts")

    def find(self, username: str) -> Account:
        """Find an account without its password, for `explain` and `check`. Nobody is logged in by it.

        Args:
            username: as somebody would type it.

        Raises:
            UnknownAccount: if nobody has the name, or that cannot be told without a password.
            InvalidCredentials: if the account could not log in now.
        """
        try:
            return self.lookup(username, "")
        except InvalidCredentials as error:
            # `lookup` does not say which of both it is.
            raise UnknownAccount(reason=error.reason) from None

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        """Return the actions that the backend itself allows on a repository. It does not know the access rules.

        Args:
            account: from `authenticate`, `lookup` or `find` of this backend; None for what everyone may do.
            access: the repository, and the actions requested.
        """
        return frozenset()

    def listing(self) -> Listing | None:
        """Return all accounts and groups, if the backend itself keeps them; None if it cannot tell.

        The core says which names in access rules are nobody's.
        """
        return None

    def check(self) -> None:
        """Prove that the backend can be asked now."""
        return

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Tell step by step what works and what does not.

        Args:
            account: a name as somebody would type it: find it without its password. Empty: look at the backend itself.
            repository: say what is known about this repository.
        """
        if account:
            yield _account_finding(self, account)

    def set_password(self, username: str, password: str) -> None:
        """Add an account or change its password, if the backend itself keeps passwords.

        Raises:
            TokenIssuerError: if it keeps none, or cannot keep this one.
        """
        raise TokenIssuerError("this kind of backend keeps no passwords; change it at the account source")

    def close(self) -> None:
        """Close connections and end threads; nothing is asked afterwards."""
        return


def load_backend(type_: str) -> type[Backend]:
    """Find a backend class by the name of its entry point.

    Args:
        type_: the `type` key of a `[[backends]]` table.

    Raises:
        ConfigurationError: if no installed package has it, two have it, or it cannot be used.
    """
    return load_plugin(ENTRY_POINT_GROUP, "backend", type_, Backend)  # type: ignore[type-abstract]  # only a bound


def _account_finding(backend: Backend, account: str) -> Finding:
    watch = Stopwatch()
    try:
        found = backend.find(account)
    except RequestError as error:
        return Finding(Severity.ERROR, account, f"look up the account: {error.reason}", seconds=watch.lap())
    groups = ", ".join(sorted(found.groups)) or "none"
    fact = f"look up the account: it is {found.name}; groups: {groups}"
    return Finding(Severity.INFO, account, fact, seconds=watch.lap())
