"""Account sources: `Account`, the `Backend` base class, loading by entry point, and the chain.

A backend is a class named by an entry point of the group `tokenissuer.backends`; README tells how to write one.
"""

from __future__ import annotations

import contextlib
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from tokenissuer.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    RequestError,
    TokenIssuerError,
    UnknownAccount,
)
from tokenissuer.finding import Finding, Severity
from tokenissuer.options import Secret, option
from tokenissuer.pace import Pace, Pause
from tokenissuer.plugin import load_plugin
from tokenissuer.scope import Access
from tokenissuer.stamp import file_stamp
from tokenissuer.step import Step

__all__ = [
    "Account",
    "Authenticated",
    "Backend",
    "Chain",
    "Finding",
    "Secret",
    "Severity",
    "Source",
    "Step",
    "file_stamp",
    "load_backend",
    "option",
    "refuse_unusable",
]

ENTRY_POINT_GROUP: Final = "tokenissuer.backends"

#: Characters in a user name, and in a password; longer ones are refused before any backend sees them. A CI job token
#: may be a JWT of more than a thousand.
MAX_NAME_LENGTH: Final = 1024
MAX_PASSWORD_LENGTH: Final = 4096


@dataclass(frozen=True, slots=True)
class Account:
    """Who a backend says it is. A backend may subclass this to carry what its `grants` needs.

    Args:
        name: the source's own canonical spelling, never what was typed.
        groups: short names of the groups it belongs to.
        delegated: whether this is a credential made for one purpose on the account's behalf, such as a CI job's. Access
            rules that allow something to this account or its groups do not count then, only what the source grants.
        valid_until: seconds since 1970 after which the source no longer vouches for this login; None if it does not
            say. No token outlives it.
        stamp: something that is another after a change of the password, and no secret; empty if the source has no such
            thing.
    """

    name: str
    groups: frozenset[str] = frozenset()
    delegated: bool = False
    valid_until: float | None = field(default=None, compare=False)
    stamp: str = field(default="", repr=False, compare=False)

    def belongs_to(self, group: str) -> bool:
        """Whether a group named in an access rule has this account as a member."""
        return group in self.groups


class Backend(ABC):
    """A source of accounts. One instance serves all threads and holds no state of a request.

    Args:
        options: an instance of the class's own `Options`.

    Raises:
        ConfigurationError: if the source can never be used as configured. An outage is no reason: it may end.
    """

    #: A frozen dataclass: its fields, declared with `option`, are the keys of the backend's table.
    Options: ClassVar[type[Any]]
    #: Those options that name files which the backend itself reads again when they change. Others make it anew.
    rereads: ClassVar[frozenset[str]] = frozenset()

    #: Whether finding that a name is unknown takes as long as refusing a password. Else the core waits for the rest.
    is_even: bool = False

    #: Whether the core may remember an account for a moment after a right password. Not if it carries a secret.
    may_be_remembered: ClassVar[bool] = True

    #: Whether it answers from this machine alone. Others may hang, and are given only some of the threads.
    is_local: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is this account's.

        Args:
            username: what the client typed; never empty, no control characters.
            password: likewise.

        Raises:
            UnknownAccount: if the source does not know the name: the next backend is asked.
            InvalidCredentials: if it knows the name and refuses.
            BackendUnavailable: if the source cannot tell.
        """

    def is_guessable(self, username: str, password: str) -> bool:
        """Whether a password like this one could be found by trying.

        Not if it has the form of a token that a machine makes: of those, many come for one name from one address.

        Args:
            username: what the client typed.
            password: likewise; it may be right or wrong.
        """
        return True

    def lookup(self, name: str, keepsake: str) -> Account:
        """Find an account again without its password, for a refresh token.

        Whoever gives this gives the account a `stamp` or returns a `keepsake`, or no refresh tokens are issued: they
        would outlive the password.

        Args:
            name: an `Account.name` given earlier.
            keepsake: what `keepsake` returned when the account logged in.

        Raises:
            InvalidCredentials: if there is no such account any more, or the keepsake does not prove it any more.
            BackendUnavailable: if the source cannot tell.
        """
        raise InvalidCredentials(reason=f"{type(self).__name__} looks no accounts up")

    def keepsake(self, account: Account, password: str) -> str:
        """Return what `lookup` needs besides the name. It is kept sealed under the refresh token, and nowhere else.

        Args:
            account: who has just logged in.
            password: with what.
        """
        return ""

    def grants(self, account: Account, access: Access) -> frozenset[str]:
        """Return the actions this source itself allows on a repository, whatever the access rules say.

        Args:
            account: one that `authenticate` or `lookup` returned.
            access: the repository and what is asked for.

        Raises:
            BackendUnavailable: if the source cannot tell.
        """
        return frozenset()

    def public_grants(self, access: Access) -> frozenset[str]:
        """Return the actions this source allows on a repository to everyone, logged in or not.

        Args:
            access: the repository and what is asked for.

        Raises:
            BackendUnavailable: if the source cannot tell.
        """
        return frozenset()

    def check(self) -> None:
        """Prove that the source can be asked now.

        Raises:
            BackendUnavailable: if it cannot.
        """
        return

    def findings(self) -> Iterable[Finding]:
        """Return what `tokenissuer check` should say about this source."""
        return ()

    def repository_findings(self, access: Access) -> Iterable[Finding]:
        """Return what `tokenissuer check --repository` should say about one repository.

        Args:
            access: the repository; its actions mean nothing.
        """
        return ()

    def probe(self) -> Iterable[Step]:
        """Try the source out, for `tokenissuer check`: a step for each server and each thing that must work there."""
        return ()

    def trace(self, name: str) -> Iterable[Step]:
        """Find an account without its password, for `tokenissuer check --account`, telling every step.

        Args:
            name: as somebody would type it.
        """
        started = time.monotonic()
        try:
            account = self.lookup(name, "")
        except RequestError as error:
            return (Step(name, "look the account up", time.monotonic() - started, trouble=error.reason),)
        fact = f"it is {account.name}; groups: {', '.join(sorted(account.groups)) or 'none'}"
        return (Step(name, "look the account up", time.monotonic() - started, fact),)

    def version(self) -> Hashable:
        """Return what is equal as long as an answer given before still holds; called before each question.

        A source whose data is at hand returns another value after each change, and no remembered answer outlives one.
        The same value for ever means that nobody tells us, and answers are remembered for the configured time.
        """
        return None

    def set_password(self, username: str, password: str) -> None:
        """Add an account or change its password, where this source keeps passwords itself.

        Raises:
            TokenIssuerError: if it keeps none, or this one cannot be kept.
        """
        raise TokenIssuerError("this kind of backend keeps no passwords; change it at the account source")

    def close(self) -> None:
        """Let go of connections and threads; nothing is asked afterwards."""
        return


@dataclass(frozen=True, slots=True)
class Source:
    """A configured backend.

    Args:
        name: what logs and messages call it.
        backend: the backend itself.
    """

    name: str
    backend: Backend

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Let an error that comes out of the block say which source it is from."""
        try:
            yield
        except RequestError as error:
            error.source = self.name
            raise


@dataclass(frozen=True, slots=True)
class Authenticated:
    """An account, and the source that vouches for it.

    Raises:
        BackendUnavailable: for an account without a name, which a token would show as nobody.
    """

    account: Account
    source: Source

    def __post_init__(self) -> None:
        if not self.account.name:
            raise BackendUnavailable(f"the backend '{self.source.name}' returned an account without a name")


class Chain:
    """The sources in configuration order: the first that knows the name decides.

    Args:
        sources: at least one.

    Raises:
        ConfigurationError: if there is none: an empty chain must not pass for "everyone may".
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ConfigurationError("no backend is configured; add a [[backends]] table")
        self.sources: Final = tuple(sources)
        self._paces: Final = [Pace(source.backend.is_even) for source in self.sources]
        self._pause: Final = Pause()

    def authenticate(self, username: str, password: str) -> Authenticated:
        """Prove that the password is this account's.

        Raises:
            InvalidCredentials: if a source knows the name and refuses, or none knows it.
            BackendUnavailable: if a source cannot tell; no later source is asked.
        """
        refuse_unusable(username, password)
        missing = 0.0
        for number, source in enumerate(self.sources):
            begun = time.perf_counter()
            try:
                with source.named():
                    return Authenticated(source.backend.authenticate(username, password), source)
            except UnknownAccount as error:
                if not error.is_remembered:
                    missing += self._paces[number].unknown(time.perf_counter() - begun)
            except InvalidCredentials as error:
                if not error.is_remembered:
                    self._paces[number].refused(time.perf_counter() - begun)
                    missing += sum(pace.draw() for pace in self._paces[number + 1 :])
                self._pause.wait(missing)
                raise
        self._pause.wait(missing)
        raise InvalidCredentials(reason="no backend knows the name")

    def is_guessable(self, username: str, password: str) -> bool:
        """Whether a password like this one could be found by trying, as far as every source can tell."""
        return all(source.backend.is_guessable(username, password) for source in self.sources)

    def lookup(self, source_name: str, name: str, keepsake: str) -> Authenticated:
        """Find an account again without its password.

        Raises:
            InvalidCredentials: if its source does not vouch for it any more, or is not configured any more.
            BackendUnavailable: if the source cannot tell.
        """
        for source in self.sources:
            if source.name == source_name:
                with source.named():
                    account = source.backend.lookup(name, keepsake)
                if account.name != name:
                    raise InvalidCredentials(reason="the source now has another name for the account")
                return Authenticated(account, source)
        raise InvalidCredentials(reason=f"no backend is called '{source_name}' any more")

    def close(self) -> None:
        """Close every backend."""
        for source in self.sources:
            source.backend.close()


def refuse_unusable(username: str, password: str) -> None:
    """Refuse what no source may ever be asked: an empty LDAP password, for one, is an anonymous bind that succeeds.

    Raises:
        InvalidCredentials: for an empty, over-long or control-character user name or password.
    """
    for kind, text, most in (
        ("user name", username, MAX_NAME_LENGTH),
        ("password", password, MAX_PASSWORD_LENGTH),
    ):
        if not text:
            raise InvalidCredentials(reason=f"the {kind} is empty")
        if len(text) > most:
            raise InvalidCredentials(reason=f"the {kind} has more than {most} characters")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            raise InvalidCredentials(reason=f"the {kind} holds a control character")


def load_backend(type_: str) -> type[Backend]:
    """Find a backend class by the name of its entry point.

    Args:
        type_: the `type` key of a `[[backends]]` table.

    Raises:
        ConfigurationError: if no installed package has it, two have it, or it cannot be used.
    """
    return load_plugin(ENTRY_POINT_GROUP, "backend", type_, Backend)  # type: ignore[type-abstract]  # only a bound
