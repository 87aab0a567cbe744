"""A directory: servers with the same data, asked in order until one answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeVar

from tokenissuer import BackendUnavailable, ConfigurationError, Deadline, RequestError
from tokenissuer_backends.ldap.failure import DirectoryFailure, Unreachable
from tokenissuer_backends.ldap.options import Address, LdapOptions
from tokenissuer_backends.ldap.ppolicy import PasswordState
from tokenissuer_backends.ldap.server import PooledSession, Server
from tokenissuer_backends.ldap.wire import Entry, Session, Trust

if TYPE_CHECKING:
    from tokenissuer_backends.ldap.discovery import Discovery

T = TypeVar("T")

#: Seconds for which a login waits for a sign of life from one server before it asks the next one.
SILENCE: Final = 1.0


class Conversation:
    """The questions of one login to one server.

    Args:
        server: the server.
        options: seconds for each question, and who asks.
        deadline: for all of them.
    """

    def __init__(self, server: Server, options: LdapOptions, deadline: Deadline) -> None:
        self.server: Final = server
        self._options: Final = options
        self._deadline: Final = deadline
        self._service: PooledSession | None = None
        self._user: Session | None = None

    def search(
        self, base: str, filter_: str, attributes: Iterable[str], *, limit: int = 0, below: bool = True
    ) -> tuple[Entry, ...]:
        """Find entries, logged in as `bind_dn` or as the account of `become`.

        Raises:
            DirectoryFailure: if the server does not give them all; see `Session.search`.
        """
        wanted = tuple(attributes)

        def ask(session: Session) -> tuple[Entry, ...]:
            deadline = self._deadline.within(self._options.timeout)
            return session.search(base, filter_, wanted, deadline, limit=limit, below=below)

        return ask(self._user) if self._user is not None else self._as_reader(ask, math.inf)

    def reach(self, seconds: float) -> None:
        """Prove that the server answers, as `bind_dn`; with `bind_as`, that it can be reached.

        Args:
            seconds: how long to wait, twice that if a connection was broken while it was idle.

        Raises:
            Unreachable: if it does not.
        """
        if self._options.bind_as:
            # No question: some servers end a connection on which nobody has logged in.
            if self._user is None:
                self._user = self.server.connect(self._deadline.within(seconds))
            return
        base = self._options.user.bases[0]
        self._as_reader(lambda session: session.ping(base, self._deadline.within(seconds)), seconds)

    def prove(self, dn: str, password: str) -> PasswordState:
        """Prove that a password is this entry's, on a new connection.

        Raises:
            Refused: if it is not.
            DirectoryFailure: if the server does not answer.
        """
        session = self.server.connect(self._deadline)
        try:
            return session.bind(dn, password, self._deadline.within(self._options.timeout))
        finally:
            session.close()

    def become(self, name: str, password: str) -> PasswordState:
        """Prove that a password is this account's, and search as this account afterwards.

        Raises:
            Refused: if it is not.
            DirectoryFailure: if the server does not answer.
        """
        if self._user is None:
            self._user = self.server.connect(self._deadline)
        return self._user.bind(name, password, self._deadline.within(self._options.timeout))

    def identity(self) -> str:
        """Return the server's name for the account of `become`.

        Raises:
            DirectoryFailure: if it does not tell.
        """
        if self._user is None:
            raise Unreachable("nobody is logged in")
        return self._user.identity(self._deadline.within(self._options.timeout))

    def _as_reader(self, ask: Callable[[Session], T], seconds: float) -> T:
        """Ask as `bind_dn`, on a connection that is made within so many seconds if there is none."""
        if self._service is None:
            self._service = self.server.take(self._deadline.within(seconds))
        if not self._service.is_proven:
            try:
                found = ask(self._service.session)
            except Unreachable:
                # It was closed while it was idle, and probably the others too. Try again on a new one.
                self.server.clear()
                self._service = self.server.make(self._deadline.within(seconds))
            else:
                self._service.is_proven = True
                return found
        return ask(self._service.session)

    def close(self) -> None:
        """End the conversation; keep the connection for the next login."""
        if self._service is not None:
            self.server.give_back(self._service)
        if self._user is not None:
            self._user.close()


class Directory:
    """The servers, in the order of the configuration.

    Args:
        options: where they are and how to log in.

    Raises:
        ConfigurationError: if the CA file cannot be used, or the package that asks DNS is missing.
    """

    def __init__(self, options: LdapOptions) -> None:
        self._options: Final = options
        self._trust: Final = Trust(options.ca_file, options.server_name)
        self._discovery: Final = _discovery(options) if options.domain else None
        self._lock: Final = threading.Lock()
        self._servers: Final[dict[Address, Server]] = {}

    def servers(self, deadline: Deadline) -> list[Server]:
        """Return the servers in their order.

        Args:
            deadline: for the answer of DNS, if that names them.

        Raises:
            Unreachable: if DNS does not tell.
        """
        found = self._discovery.addresses(deadline) if self._discovery else self._options.addresses
        with self._lock:
            for address in found:
                if address not in self._servers:
                    self._servers[address] = Server(address, self._options, self._trust)
            return [self._servers[address] for address in found]

    def ask(self, question: Callable[[Conversation], T], deadline: Deadline) -> T:
        """Ask the first server that answers.

        Args:
            question: what is asked; it begins again with each server.
            deadline: for all servers. Each gets an equal share of what is left, so that the last one is asked in time.

        Raises:
            BackendUnavailable: if none answers.
            DirectoryFailure, RequestError: what the answer of one of them led to, or DNS does not name them.
        """
        troubles = []
        # Those that are down come last, each kind in the configured order.
        servers = sorted(self.servers(deadline), key=lambda server: server.is_down)
        for number, server in enumerate(servers):
            try:
                with closing(self.converse(server, deadline.share(len(servers) - number))) as conversation:
                    if server is not servers[-1]:
                        # A server that is silent is left soon; one that is slow has its full time for the question.
                        conversation.reach(SILENCE)
                    answer = question(conversation)
            except (Unreachable, TimeoutError) as error:
                reason = error.reason if isinstance(error, Unreachable) else "no answer in time"
                server.note_failure(reason)
                if len(servers) > 1:
                    server.probe()
                troubles.append(f"{server.address.url}: {reason}")
            except (DirectoryFailure, RequestError):
                server.note_answer()
                raise
            else:
                server.note_answer()
                return answer
        raise BackendUnavailable("; ".join(troubles))

    def converse(self, server: Server, deadline: Deadline) -> Conversation:
        """Begin to ask one server."""
        return Conversation(server, self._options, deadline)

    def close(self) -> None:
        """End all idle connections."""
        with self._lock:
            known = list(self._servers.values())
        for server in known:
            server.close()


def _discovery(options: LdapOptions) -> Discovery:
    try:
        # Its package is installed only where it is used.
        from tokenissuer_backends.ldap.discovery import Discovery
    except ImportError:
        raise ConfigurationError(
            "srv:// needs one more package: install tokenissuer with [srv], as in pip install '.[srv]'"
        ) from None
    return Discovery(options.domain, options.starttls)
