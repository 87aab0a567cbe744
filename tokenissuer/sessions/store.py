"""Where sessions are kept: the interface of stores.

A store is a class that an entry point of the group `tokenissuer.stores` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from tokenissuer.options import NoOptions, load_plugin

ENTRY_POINT_GROUP: Final = "tokenissuer.stores"


@dataclass(frozen=True, slots=True)
class Session:
    """The life of one refresh token, without the token.

    Args:
        id: its name in lists and logs.
        digest: SHA-256 of the token.
        account: the account's name.
        backend: the name of the backend that vouches for it.
        service: the only registry that the token is valid for.
        client_id: what the client called itself at login.
        agent: its User-Agent at login.
        created: seconds since 1970.
        created_from: the client's address at login.
        used: seconds since 1970; at first the time of login.
        used_from: the client's address at the last use.
        password_version: the account's at login; empty if it had none.
        sealed_password: the password of the login, encrypted with a key that only the token holds; empty if the account
            had a `password_version`.
        ended: seconds since 1970; None as long as it is valid.
        end_reason: why it has ended.
    """

    id: str
    digest: bytes = field(repr=False)
    account: str
    backend: str
    service: str
    client_id: str
    agent: str
    created: float
    created_from: str
    used: float
    used_from: str
    password_version: str = field(repr=False)
    sealed_password: bytes = field(repr=False)
    ended: float | None = None
    end_reason: str = ""


class Store(ABC):
    """Keeps sessions. One instance serves all threads; several processes may share the same data.

    A change is on disk when the method returns, whatever happens to the process then. Every method may raise
    `BackendUnavailable` if the store cannot be read or written.

    Args:
        options: an instance of the class's own `Options`.

    Raises:
        ConfigurationError: if the store can never work with these options.
    """

    #: A frozen dataclass: its fields, declared with `option`, are the keys of the `[refresh.store]` table.
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def add(self, session: Session) -> None:
        """Keep a new session."""

    @abstractmethod
    def find(self, digest: bytes) -> Sequence[Session]:
        """Return the session with this digest, ended or not: one, or none."""

    @abstractmethod
    def touch(self, digest: bytes, used: float, used_from: str) -> None:
        """Note a use."""

    @abstractmethod
    def end(self, digests: Sequence[bytes], ended: float, reason: str) -> None:
        """End sessions that have not ended yet: all of them, or none if that fails."""

    @abstractmethod
    def sessions(self) -> Iterable[Session]:
        """Return every session, the newest first."""

    @abstractmethod
    def sweep(self, created_before: float, used_before: float, ended_before: float) -> None:
        """Delete the sessions created, last used or ended before these times, each in seconds since 1970."""

    def add_refusal(self, digest: bytes, until: float) -> None:
        """Keep for all processes that a password is wrong: see `RefusalStore`. By default nothing is kept."""
        return

    def has_refusal(self, digest: bytes) -> bool:
        """Whether `add_refusal` has kept this digest, and its moment has not come."""
        return False

    def check(self) -> None:
        """Prove that the store can be read now."""
        self.find(b"")

    def close(self) -> None:
        """Close files and connections."""
        return


def load_store(type_: str) -> type[Store]:
    """Find a store class by the name of its entry point.

    Args:
        type_: the `type` key of the `[refresh.store]` table.

    Raises:
        ConfigurationError: if no installed package has it, two have it, or it cannot be used.
    """
    return load_plugin(ENTRY_POINT_GROUP, "store", type_, Store)  # type: ignore[type-abstract]  # only a bound
