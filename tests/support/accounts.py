"""A backend with one account that changes as the test wants."""

from __future__ import annotations

from dataclasses import dataclass

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Login
from tokenissuer.errors import BackendUnavailable, InvalidCredentials
from tokenissuer.sessions.tokens import Client

CLIENT = Client("registry", "docker", "Docker-Client/28 (linux)", "192.0.2.1")
ALICE = Account("alice", frozenset({"developers"}), password_version="first")


@dataclass
class Person:
    """What the source knows of alice at the moment."""

    account: Account | None = ALICE
    down: bool = False


class Directory(Backend):
    """A backend whose one account changes as the test wants."""

    def __init__(self, options: Person) -> None:
        self.person = options
        self.asked: list[str] = []

    def authenticate(self, username: str, password: str) -> Account:
        """Accept any password."""
        return self.lookup(username, password)

    def lookup(self, name: str, password: str) -> Account:
        """Say what is known now."""
        self.asked.append(password)
        if self.person.down:
            raise BackendUnavailable("down")
        if self.person.account is None:
            raise InvalidCredentials(reason="the account is gone")
        return self.person.account


def logged_in(name: str) -> Login:
    """A login of an account."""
    return Login(Account(name), CachedBackend("people", Directory(Person())))
