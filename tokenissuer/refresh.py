"""Refresh tokens: what `docker login` keeps instead of the password.

https://distribution.github.io/distribution/spec/auth/oauth/ and RFC 6749, section 6. A token is never rotated: most
clients throw a new one away. It is opaque, and kept only as a digest; what the account source needs to look the account
up again is sealed under a key that the token itself holds, so that the store alone reveals and proves nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tokenissuer.backend import Authenticated, Chain
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, LoginEnded
from tokenissuer.plugin import load_plugin

ENTRY_POINT_GROUP: Final = "tokenissuer.stores"

#: What scanners for leaked secrets can know a refresh token by.
PREFIX: Final = "tir_"
# Letters that no client needs to encode: some do not.
_TOKEN: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
_SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 12
#: Characters kept of what a client calls itself.
_TEXT_LENGTH: Final = 200

#: Seconds after which an ended session is no longer listed.
_ENDED_LISTED: Final = 30 * 24 * 3600
#: Seconds between two sweeps of a process.
_SWEEP_INTERVAL: Final = 3600

_log: Final = logging.getLogger("tokenissuer.refresh")


@dataclass(frozen=True, slots=True)
class Session:
    """One refresh token's life, without the token.

    Args:
        id: what it is called in lists and logs.
        digest: SHA-256 of the token.
        account: the account's name.
        backend: the source that vouches for it.
        service: the only registry the token is good for.
        client_id: what the client called itself at login.
        agent: its User-Agent at login.
        created: seconds since 1970.
        created_from: the address at login.
        used: seconds since 1970; at first the time of login.
        used_from: the address of the last use.
        stamp: the account's stamp at login.
        sealed: what the source needs to look the account up; empty if that is nothing.
        ended: seconds since 1970; None while it is good.
        ending: why it has ended.
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
    stamp: str = field(repr=False)
    sealed: bytes = field(repr=False)
    ended: float | None = None
    ending: str = ""


class Store(ABC):
    """Where sessions are kept. One instance serves all threads; several processes may share what it stands on.

    What a method has done when it returns is kept, whatever happens to the process then.

    Args:
        options: an instance of the class's own `Options`.

    Raises:
        ConfigurationError: if it can never be used as configured.
    """

    #: A frozen dataclass: its fields, declared with `option`, are the keys of the `[refresh.store]` table.
    Options: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def add(self, session: Session) -> None:
        """Keep a new session.

        Raises:
            BackendUnavailable: here and below, if the store cannot be reached or written.
        """

    @abstractmethod
    def find(self, digest: bytes) -> Sequence[Session]:
        """Return the session with this digest, ended or not: one, or none."""

    @abstractmethod
    def touch(self, digest: bytes, used: float, used_from: str) -> None:
        """Note a use."""

    @abstractmethod
    def end(self, digest: bytes, ended: float, ending: str) -> None:
        """End a session, unless it has ended before."""

    @abstractmethod
    def sessions(self) -> Iterable[Session]:
        """Return every session, the newest first."""

    @abstractmethod
    def sweep(self, created_before: float, used_before: float, ended_before: float) -> None:
        """Forget the sessions created, last used or ended before these times, each in seconds since 1970."""

    def check(self) -> None:
        """Prove that the store can be asked now.

        Raises:
            BackendUnavailable: if it cannot.
        """
        self.find(b"")

    def close(self) -> None:
        """Let go of files and connections."""
        return


@dataclass(frozen=True, slots=True)
class Refresh:
    """Who redeems a refresh token, and where.

    Args:
        service: the registry that a token is asked for.
        client_id: what the client calls itself.
        agent: its User-Agent.
        address: where it is.
    """

    service: str
    client_id: str
    agent: str
    address: str


class RefreshTokens:
    """Issues, redeems and revokes refresh tokens.

    Args:
        store: where they are kept.
        idle: seconds of disuse after which one ends.
        age: seconds after login at which one ends in any case.
        except_clients: client ids that are given none.
        except_services: registries for which none are given.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        idle: int,
        age: int,
        except_clients: Iterable[str] = (),
        except_services: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store: Final = store
        self._idle: Final = idle
        self._age: Final = age
        self._except_clients: Final = frozenset(except_clients)
        self._except_services: Final = frozenset(except_services)
        self._clock: Final = clock
        self._sweeping: Final = threading.Lock()
        self._swept = 0.0

    def offers(self, login: Authenticated, keepsake: str, client: Refresh) -> bool:
        """Whether this login is given a refresh token: not if nothing would tell that its password has changed."""
        return (
            bool(login.account.stamp or keepsake)
            and client.client_id not in self._except_clients
            and client.service not in self._except_services
        )

    def issue(self, login: Authenticated, keepsake: str, client: Refresh) -> str:
        """Make a refresh token for an account that has just logged in.

        Raises:
            BackendUnavailable: if it cannot be kept.
        """
        now = self._clock()
        self._sweep(now)
        secret = secrets.token_bytes(_SECRET_BYTES)
        token = PREFIX + _encode(secret)
        digest = _digest(token)
        session = Session(
            id=secrets.token_hex(6),
            digest=digest,
            account=login.account.name,
            backend=login.source.name,
            service=client.service,
            client_id=client.client_id[:_TEXT_LENGTH],
            agent=client.agent[:_TEXT_LENGTH],
            created=now,
            created_from=client.address,
            used=now,
            used_from=client.address,
            stamp=login.account.stamp,
            sealed=_seal(token, digest, keepsake),
        )
        self.store.add(session)
        _log.info(
            "session %s begins: account %r, backend %r",
            *(session.id, session.account, session.backend),
            extra={"security": "session_begun"},
        )
        return token

    def redeem(self, token: str, chain: Chain, client: Refresh) -> Authenticated:
        """Prove that the token is good and that its account still is what it was.

        Raises:
            LoginEnded: if the token is unknown, has ended, is for another registry, of a backend that is not
                configured, or its account is no longer vouched for; only the last ends it.
            BackendUnavailable: if the store or the account source cannot tell, or an end cannot be kept; that ends
                nothing.
        """
        session = self._find(token)
        if session.service != client.service:
            raise LoginEnded(reason=f"session {session.id} is for the service '{session.service}'")
        if session.backend not in [source.name for source in chain.sources]:
            # Nobody has refused it: a configuration that is being edited may bring the backend back.
            raise LoginEnded(
                reason=f"session {session.id} is of the backend '{session.backend}', which is not configured"
            )
        now = self._clock()
        try:
            login = self._proved(session, chain, _unseal(token, session), now)
        except LoginEnded as error:
            if session.ended is None:
                self.store.end(session.digest, now, error.reason)
                _log.warning(
                    "session %s of account %r has ended: %s",
                    *(session.id, session.account, error.reason),
                    extra={"security": "session_ended"},
                )
            raise
        try:
            self.store.touch(session.digest, now, client.address)
        except BackendUnavailable as error:
            # A full disk shall not stop every pull. A use that is not noted can only let the login end earlier.
            _log.warning("a use of session %s is not noted: %s", session.id, error.reason)
        return login

    def states(self, sessions: Iterable[Session], chain: Chain) -> Iterator[str]:
        """Say for a list which sessions are good; the source is asked where that needs nothing that is sealed.

        One that cannot tell is asked once: a list of many must not wait for each.
        """
        down = set()
        for session in sessions:
            try:
                if session.sealed or session.backend in down:
                    self._still_on(session, self._clock())
                else:
                    self._proved(session, chain, "", self._clock())
            except LoginEnded as error:
                yield f"ended: {error.reason}"
                continue
            except BackendUnavailable:
                down.add(session.backend)
            is_known = session.sealed or session.backend not in down
            yield "good" if is_known else "unknown: the account source is not available"

    def revoke(self, token: str) -> None:
        """End a token's session; what is no refresh token of ours is no error (RFC 7009, 2.2)."""
        for session in self.store.find(_digest(token)):
            self.store.end(session.digest, self._clock(), "revoked by its holder")

    def _find(self, token: str) -> Session:
        if not _TOKEN.fullmatch(token):
            raise LoginEnded(reason="this is no refresh token")
        found = self.store.find(_digest(token))
        if not found:
            raise LoginEnded(reason="the refresh token is unknown")
        return found[0]

    def _proved(self, session: Session, chain: Chain, keepsake: str, now: float) -> Authenticated:
        self._still_on(session, now)
        try:
            login = chain.lookup(session.backend, session.account, keepsake)
        except InvalidCredentials as error:
            raise LoginEnded(reason=error.reason or "the account source refuses the account") from error
        if login.account.stamp != session.stamp:
            raise LoginEnded(reason="the password has changed")
        return login

    def _still_on(self, session: Session, now: float) -> None:
        if session.ended is not None:
            raise LoginEnded(reason=session.ending)
        if now - session.used > self._idle:
            raise LoginEnded(reason="not used for too long")
        if now - session.created > self._age:
            raise LoginEnded(reason="too old")

    def _sweep(self, now: float) -> None:
        if now - self._swept > _SWEEP_INTERVAL and self._sweeping.acquire(blocking=False):
            try:
                self._swept = now
                self.store.sweep(now - self._age, now - self._idle, now - _ENDED_LISTED)
            finally:
                self._sweeping.release()


def load_store(type_: str) -> type[Store]:
    """Find a store class by the name of its entry point.

    Args:
        type_: the `type` key of the `[refresh.store]` table.

    Raises:
        ConfigurationError: if no installed package has it, two have it, or it cannot be used.
    """
    return load_plugin(ENTRY_POINT_GROUP, "store", type_, Store)  # type: ignore[type-abstract]  # only a bound


def _encode(secret: bytes) -> str:
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode("ascii")


def _digest(token: str) -> bytes:
    # 256 random bits need no slow hash, and no salt.
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _cipher(token: str) -> AESGCM:
    key = HKDF(hashes.SHA256(), 32, salt=None, info=b"tokenissuer keepsake").derive(token.encode("ascii"))
    return AESGCM(key)


def _seal(token: str, digest: bytes, keepsake: str) -> bytes:
    if not keepsake:
        return b""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _cipher(token).encrypt(nonce, keepsake.encode("utf-8"), digest)


def _unseal(token: str, session: Session) -> str:
    if not session.sealed:
        return ""
    nonce, sealed = session.sealed[:_NONCE_BYTES], session.sealed[_NONCE_BYTES:]
    try:
        return _cipher(token).decrypt(nonce, sealed, session.digest).decode("utf-8")
    except InvalidTag:
        raise BackendUnavailable(f"the store's row of session {session.id} is damaged") from None
