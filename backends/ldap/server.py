"""One server of a directory: whether it answers, and its idle connections."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from tokenissuer import Deadline
from tokenissuer_backends.ldap.failure import Refused, Unreachable
from tokenissuer_backends.ldap.options import LdapOptions
from tokenissuer_backends.ldap.wire import Session, Trust

_log: Final = logging.getLogger("tokenissuer.backends.ldap")

#: Seconds for which a server that failed is asked only after all others.
RETRY_INTERVAL: Final = 30.0
#: Seconds after which a firewall may have dropped an idle connection silently.
_MAX_IDLE: Final = 60.0
#: Seconds after which a connection is replaced, so that a new server behind the same name is used soon.
_MAX_AGE: Final = 600.0


@dataclass(slots=True)
class PooledSession:
    """A connection that is logged in as `bind_dn`.

    Args:
        session: the connection.
        born: seconds on the monotonic clock.
        is_proven: whether it has answered since it was taken; a pooled one may be dead without any sign.
        idle_since: seconds on the monotonic clock.
    """

    session: Session
    born: float
    is_proven: bool
    idle_since: float = 0.0

    def is_usable(self, now: float) -> bool:
        """Whether it can be used again."""
        return now - self.idle_since < _MAX_IDLE and now - self.born < _MAX_AGE and self.session.is_quiet


class Server:
    """One of the servers with the same data.

    Args:
        number: which of `options.servers`.
        options: how to reach it, and as which account.
        trust: the certificates that TLS trusts.
    """

    def __init__(self, number: int, options: LdapOptions, trust: Trust) -> None:
        self.address: Final = options.addresses[number]
        self._options: Final = options
        self._trust: Final = trust
        self._lock = threading.Lock()
        self._idle: list[PooledSession] = []
        self._is_closed = False
        self._retry_at = 0.0  # 0: it answers
        self._reported_at = -RETRY_INTERVAL
        self._refused = ""
        self._refused_until = 0.0

    def is_due(self) -> bool:
        """Whether it is asked before servers that failed.

        After each interval this is true once: one login tries the server, and not all at the same time.
        """
        now = time.monotonic()
        with self._lock:
            if now < self._retry_at:
                return False
            if self._retry_at:
                self._retry_at = now + RETRY_INTERVAL
            return True

    def note_failure(self, reason: str) -> None:
        """Ask others first for some time."""
        now = time.monotonic()
        with self._lock:
            is_news, self._retry_at = now >= self._reported_at + RETRY_INTERVAL, now + RETRY_INTERVAL
            if is_news:
                self._reported_at = now
        _log.log(
            logging.WARNING if is_news else logging.DEBUG,
            "%s: %s; others are asked first for %d seconds",
            self.address.url,
            reason,
            RETRY_INTERVAL,
        )

    def note_answer(self) -> None:
        """Ask it in the configured order again."""
        with self._lock:
            was_failing, self._retry_at = bool(self._retry_at), 0.0
        if was_failing:
            _log.info("%s answers again", self.address.url)

    def connect(self, deadline: Deadline) -> Session:
        """Open an anonymous connection.

        Raises:
            Unreachable: if that cannot be done.
        """
        deadline = deadline.within(self._options.connect_timeout)
        return Session.open(self.address, self._trust, self._options.starttls, deadline)

    def take(self, deadline: Deadline) -> PooledSession:
        """Take an idle connection of `bind_dn`, or make one.

        Raises:
            Unreachable: if there is none and none can be made.
        """
        now = time.monotonic()
        with self._lock:
            while self._idle:
                pooled = self._idle.pop()
                if pooled.is_usable(now):
                    return pooled
                pooled.session.close()
        return self.make(deadline)

    def make(self, deadline: Deadline) -> PooledSession:
        """Make a connection of `bind_dn`.

        Raises:
            Unreachable: if it cannot be made.
        """
        self._refuse_early()
        session = self.connect(deadline)
        if self._options.bind_dn and self._options.bind_password is not None:
            self._log_in(session, self._options.bind_password.reveal(), deadline)
        return PooledSession(session, time.monotonic(), is_proven=True)

    def give_back(self, pooled: PooledSession) -> None:
        """Keep a connection for the next login, or close it if there are enough."""
        pooled.is_proven, pooled.idle_since = False, time.monotonic()
        with self._lock:
            if pooled.session.is_open and len(self._idle) < self._options.pool_size and not self._is_closed:
                self._idle.append(pooled)
                return
        pooled.session.close()

    def clear(self) -> None:
        """Close all idle connections: what broke one has probably broken all."""
        with self._lock:
            idle, self._idle = self._idle, []
        for pooled in idle:
            pooled.session.close()

    def close(self) -> None:
        """Close all idle connections and keep none from now on."""
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
            self._refused_until = time.monotonic() + RETRY_INTERVAL
            raise Unreachable(self._refused) from None
        except BaseException:
            session.close()
            raise
        if state.expires_in:
            _log.warning("the password of %s expires in %d seconds", self._options.bind_dn, state.expires_in)

    def _refuse_early(self) -> None:
        # If every login tried it, a password policy would soon lock `bind_dn`.
        if time.monotonic() < self._refused_until:
            raise Unreachable(self._refused)

    def __repr__(self) -> str:
        return f"Server({self.address.url})"
