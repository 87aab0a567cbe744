"""One server of a directory: whether it answers, and its idle connections."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from tokenissuer import Deadline
from tokenissuer_backends.ldap.failure import Refused, Unreachable
from tokenissuer_backends.ldap.options import Address, LdapOptions
from tokenissuer_backends.ldap.wire import Session, Trust

_log: Final = logging.getLogger("tokenissuer.backends.ldap")

#: Seconds after which a server that failed is tried again, in the background.
PROBE_INTERVAL: Final = 5.0
#: Seconds for which a refused `bind_dn` is not tried again, and between two warnings about one server.
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
        address: where it is.
        options: how to reach it, and as which account.
        trust: the certificates that TLS trusts.
    """

    def __init__(self, address: Address, options: LdapOptions, trust: Trust) -> None:
        self.address: Final = address
        self._options: Final = options
        self._trust: Final = trust
        self._lock = threading.Lock()
        self._idle: list[PooledSession] = []
        self._closed: Final = threading.Event()
        self._is_down = False
        self._is_probed = False
        self._reported_at = -RETRY_INTERVAL
        self._refused = ""
        self._refused_until = 0.0

    @property
    def is_down(self) -> bool:
        """Whether it has failed and has not answered since."""
        return self._is_down

    def note_failure(self, reason: str) -> None:
        """Ask others first, until it answers again."""
        now = time.monotonic()
        with self._lock:
            self._is_down = True
            is_news = now >= self._reported_at + RETRY_INTERVAL
            if is_news:
                self._reported_at = now
        _log.log(logging.WARNING if is_news else logging.DEBUG, "%s: %s", self.address.url, reason)

    def note_answer(self) -> None:
        """Ask it in the configured order again."""
        with self._lock:
            was_down, self._is_down = self._is_down, False
        if was_down:
            _log.info("%s answers again", self.address.url)

    def probe(self) -> None:
        """Try it in the background until it answers, so that no login has to wait for it."""
        with self._lock:
            if self._is_probed or self._closed.is_set():
                return
            # If no thread can start, the login goes on, and the next failure tries again.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._probe, name=f"probe of {self.address.url}", daemon=True).start()
                self._is_probed = True

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
            if pooled.session.is_open and len(self._idle) < self._options.pool_size and not self._closed.is_set():
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
        self._closed.set()
        self.clear()

    def _probe(self) -> None:
        while not self._closed.wait(PROBE_INTERVAL):
            with self._lock:
                # Decided under the lock, so that a failure at this moment starts another probe.
                self._is_probed = self._is_down
            if not self._is_probed:
                return
            deadline = Deadline.after(self._options.connect_timeout + self._options.timeout)
            # Any exception: the next probe may succeed.
            with contextlib.suppress(Exception):
                # A refused password is not tried here: nobody may have logged in for hours, and tries lock `bind_dn`.
                logs_in = not (self._options.bind_as or self._refused)
                session = self.make(deadline).session if logs_in else self.connect(deadline)
                try:
                    if not self._options.bind_as:
                        session.ping(self._options.user.bases[0], deadline)
                    self.note_answer()
                finally:
                    session.close()

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
        self._refused = ""
        if state.expires_in:
            _log.warning("the password of %s expires in %d seconds", self._options.bind_dn, state.expires_in)

    def _refuse_early(self) -> None:
        # If every login tried it, a password policy would soon lock `bind_dn`.
        if time.monotonic() < self._refused_until:
            raise Unreachable(self._refused)

    def __repr__(self) -> str:
        return f"Server({self.address.url})"
