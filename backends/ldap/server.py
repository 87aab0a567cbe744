"""One server of a directory: how it is doing, and the connections to it that wait for the next login."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Final

from tokenissuer_backends.ldap.deadline import Deadline
from tokenissuer_backends.ldap.failure import Refused, Unreachable
from tokenissuer_backends.ldap.options import LdapOptions
from tokenissuer_backends.ldap.wire import Session, Trust

_log: Final = logging.getLogger("tokenissuer.backends.ldap")

#: Seconds for which a server that failed is asked only after all others.
COOL_DOWN: Final = 30.0
#: Seconds after which a firewall may have forgotten an idle connection without telling.
_MAX_IDLE: Final = 60.0
#: Seconds after which a connection is renewed, so that none outlives a change of the server behind a name for long.
_MAX_AGE: Final = 600.0


@dataclass(slots=True)
class PooledSession:
    """A connection that is logged in as the account that searches.

    Args:
        session: the connection.
        born: seconds on the monotonic clock.
        is_proven: whether it has answered since it was taken; one from the pool may be dead without showing it.
        idle_since: seconds on the monotonic clock.
    """

    session: Session
    born: float
    is_proven: bool
    idle_since: float = 0.0

    def is_usable(self, now: float) -> bool:
        """Whether nothing speaks against using it again."""
        return now - self.idle_since < _MAX_IDLE and now - self.born < _MAX_AGE and self.session.is_quiet


class Server:
    """One of the servers that hold the same data.

    Args:
        number: which of `options.servers`.
        options: how to reach it, and as whom.
        trust: whom TLS trusts.
    """

    def __init__(self, number: int, options: LdapOptions, trust: Trust) -> None:
        self.address: Final = options.addresses[number]
        self._options: Final = options
        self._trust: Final = trust
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[PooledSession] = []
        self._is_closed = False
        self._retry_at = 0.0  # 0: it is well
        self._reported_at = -COOL_DOWN
        self._refused = ""
        self._refused_until = 0.0

    def is_due(self) -> bool:
        """Whether it is to be asked before servers that failed.

        After each cool-down this is true once: one login finds out how the server is, and not all at the same time.
        """
        now = time.monotonic()
        with self._lock:
            if now < self._retry_at:
                return False
            if self._retry_at:
                self._retry_at = now + COOL_DOWN
            return True

    def note_failure(self, reason: str) -> None:
        """Ask others first for a while."""
        now = time.monotonic()
        with self._lock:
            is_news, self._retry_at = now >= self._reported_at + COOL_DOWN, now + COOL_DOWN
            if is_news:
                self._reported_at = now
        _log.log(
            logging.WARNING if is_news else logging.DEBUG,
            "%s: %s; others are asked first for %d seconds",
            self.address.url,
            reason,
            COOL_DOWN,
        )

    def note_answer(self) -> None:
        """Ask it in its turn again."""
        with self._lock:
            was_failing, self._retry_at = bool(self._retry_at), 0.0
        if was_failing:
            _log.info("%s: answers again", self.address.url)

    def connect(self, deadline: Deadline) -> Session:
        """Open a connection that is logged in as nobody.

        Raises:
            Unreachable: if that cannot be done.
        """
        deadline = deadline.within(self._options.connect_timeout)
        return Session.open(self.address, self._trust, self._options.starttls, deadline)

    def take(self, deadline: Deadline) -> PooledSession:
        """Take an idle connection of the account that searches, or make one.

        Raises:
            Unreachable: if there is none and none can be made.
        """
        now = time.monotonic()
        with self._lock:
            self._forget_the_parents()
            while self._idle:
                pooled = self._idle.pop()
                if pooled.is_usable(now):
                    return pooled
                pooled.session.close()
        return self.make(deadline)

    def make(self, deadline: Deadline) -> PooledSession:
        """Make a connection of the account that searches.

        Raises:
            Unreachable: if it cannot be made.
        """
        self._refuse_early()
        session = self.connect(deadline)
        if self._options.bind_dn and self._options.bind_password is not None:
            self._log_in(session, self._options.bind_password.reveal(), deadline)
        return PooledSession(session, time.monotonic(), is_proven=True)

    def give_back(self, pooled: PooledSession) -> None:
        """Keep a connection for the next login, or end it if enough are kept."""
        pooled.is_proven, pooled.idle_since = False, time.monotonic()
        with self._lock:
            self._forget_the_parents()
            if pooled.session.is_open and len(self._idle) < self._options.pool_size and not self._is_closed:
                self._idle.append(pooled)
                return
        pooled.session.close()

    def clear(self) -> None:
        """End all idle connections: what broke one has most likely broken all."""
        with self._lock:
            self._forget_the_parents()
            idle, self._idle = self._idle, []
        for pooled in idle:
            pooled.session.close()

    def close(self) -> None:
        """End all idle connections and keep none from now on."""
        self._is_closed = True
        self.clear()

    def _log_in(self, session: Session, password: str, deadline: Deadline) -> None:
        try:
            state = session.bind(self._options.bind_dn, password, deadline.within(self._options.timeout))
            if state.objection:
                raise Refused(state.objection)
        except Refused as error:
            session.close()
            self._refused = f"'bind_dn' cannot log in: {error.reason}; correct 'bind_dn' or its password"
            self._refused_until = time.monotonic() + COOL_DOWN
            raise Unreachable(self._refused) from None
        except BaseException:
            session.close()
            raise
        if state.expires_in:
            _log.warning("the password of %s expires in %d seconds", self._options.bind_dn, state.expires_in)

    def _refuse_early(self) -> None:
        # With every login another try, a password policy would soon lock the account that searches.
        if time.monotonic() < self._refused_until:
            raise Unreachable(self._refused)

    def _forget_the_parents(self) -> None:
        """Leave connections to the process that made them: two processes on one would read each other's answers."""
        if self._pid != os.getpid():
            idle, self._idle, self._pid = self._idle, [], os.getpid()
            for pooled in idle:
                pooled.session.abandon()

    def __repr__(self) -> str:
        return f"Server({self.address.url})"
