"""Refresh tokens: what `docker login` keeps instead of the password.

https://distribution.github.io/distribution/spec/auth/oauth/ and RFC 6749, section 6. A token is never rotated: most
clients throw a new one away. It is opaque, and the store has only its digest. A password that the backend needs to look
up the account is encrypted with a key derived from the token, so the store alone reveals and proves nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tokenissuer.accounts.backend import Backend
from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, LoginEnded
from tokenissuer.options import option
from tokenissuer.sessions.store import Session, Store

#: By this, scanners for leaked secrets recognise a refresh token.
PREFIX: Final = "tir_"
# Letters that need no encoding in a form: some clients do not encode.
_TOKEN: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
_SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 12
#: Characters kept of what a client calls itself.
_MAX_TEXT: Final = 200

#: Seconds after which another use is noted, unless it comes from another address: each costs a write to disk.
TOUCH_INTERVAL: Final = 60
#: Seconds for which an ended session is still listed.
_ENDED_LISTED: Final = 30 * 24 * 3600
#: Seconds between two sweeps of a process.
_SWEEP_INTERVAL: Final = 3600
#: Seconds: clients would use a login that ends earlier after its end.
_MIN_SECONDS: Final = 60

_log: Final = logging.getLogger("tokenissuer.sessions")


@dataclass(frozen=True, slots=True)
class RefreshOptions:
    """The `[refresh]` table. Without it no refresh tokens are issued."""

    idle: int = option("seconds without use after which a login ends", default=30 * 24 * 3600)
    age: int = option("seconds after which a login ends in any case", default=365 * 24 * 3600)
    except_clients: frozenset[str] = option("client ids that get no refresh token", default=frozenset())
    except_services: frozenset[str] = option("registries for which none are issued", default=frozenset())

    def __post_init__(self) -> None:
        for key, seconds in (("idle", self.idle), ("age", self.age)):
            if seconds < _MIN_SECONDS:
                raise ValueError(f"'{key}' is {seconds}; use at least {_MIN_SECONDS} seconds")


@dataclass(frozen=True, slots=True)
class Client:
    """Who sends a request.

    Args:
        service: the registry that the token is for.
        client_id: what the client calls itself.
        agent: its User-Agent.
        address: its address; empty if unknown.
    """

    service: str
    client_id: str
    agent: str
    address: str


def is_refresh_token(text: str) -> bool:
    """Whether a text has the form of a refresh token."""
    return _TOKEN.fullmatch(text) is not None


class RefreshTokens:
    """Issues, redeems and revokes refresh tokens.

    Args:
        store: keeps the sessions.
        options: how long a session lasts, and who gets none.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, options: RefreshOptions, clock: Callable[[], float] = time.time) -> None:
        self.store: Final = store
        self._options: Final = options
        self._clock: Final = clock
        self._sweeping: Final = threading.Lock()
        self._swept = clock()

    def issue(self, login: Login, password: str, client: Client) -> str:
        """Make a refresh token for an account that has just logged in.

        Returns:
            The token; empty if the account, the client or the service gets none.

        Raises:
            BackendUnavailable: if the session cannot be kept, or the backend cannot answer.
        """
        if (
            login.account.delegated
            or type(login.backend.backend).lookup is Backend.lookup
            or client.client_id in self._options.except_clients
            or client.service in self._options.except_services
        ):
            return ""
        version = login.account.password_version
        kept = "" if version else password
        try:
            found = login.backend.lookup(login.account.name, kept)
        except InvalidCredentials as error:
            _log.info("no refresh token for %r: %s", login.account.name, error.reason)
            return ""
        # A remembered login may be older than a change of the password.
        return self._begin(login, kept, client) if found.password_version == version else ""

    def redeem(self, token: str, chain: Chain, client: Client) -> Login:
        """Prove that the token is valid and that its account is unchanged.

        Raises:
            LoginEnded: if the token is unknown, has ended, is for another registry or of a backend that is not
                configured, or the backend no longer vouches for the account; only the last ends the session.
            BackendUnavailable: if the store or the backend cannot answer, or the end cannot be written; that ends
                nothing.
        """
        session = self._find(token)
        if session.service != client.service:
            raise LoginEnded(reason=f"session {session.id} is for the service '{session.service}'")
        if session.backend not in [backend.name for backend in chain.backends]:
            # Nobody has refused it: a configuration that is being edited may have the backend again soon.
            raise LoginEnded(reason=f"session {session.id} is of the backend '{session.backend}', not configured now")
        now = self._clock()
        try:
            login = self._prove(session, chain, _unseal(token, session), now)
        except LoginEnded as error:
            if session.ended is None:
                self.store.end([session.digest], now, error.reason)
                _log.warning(
                    "session %s of account %r has ended: %s",
                    *(session.id, session.account, error.reason),
                    extra={"security": "session_ended"},
                )
            raise
        if now - session.used > min(TOUCH_INTERVAL, self._options.idle / 2) or client.address != session.used_from:
            try:
                self.store.touch(session.digest, now, client.address)
            except BackendUnavailable as error:
                # A full disk must not stop every pull. A use that is not noted can only end the login earlier.
                _log.warning("a use of session %s is not noted: %s", session.id, error.reason)
        return login

    def states(self, sessions: Iterable[Session], chain: Chain) -> Iterator[str]:
        """Say for a list which sessions are valid. The backend is asked where that needs no sealed password.

        A backend that cannot answer is asked once: a list of many must not wait for each.
        """
        down = set()
        for session in sessions:
            try:
                if session.sealed_password or session.backend in down:
                    self._check_times(session, self._clock())
                else:
                    self._prove(session, chain, "", self._clock())
            except LoginEnded as error:
                yield f"ended: {error.reason}"
                continue
            except BackendUnavailable:
                down.add(session.backend)
            is_known = session.sealed_password or session.backend not in down
            yield "valid" if is_known else "unknown: the account source is not available"

    def revoke(self, token: str) -> None:
        """End a token's session. A text that is not one of our refresh tokens is not an error (RFC 7009, 2.2)."""
        for session in self.store.find(_digest(token)):
            self.store.end([session.digest], self._clock(), "revoked by its holder")

    def _begin(self, login: Login, password: str, client: Client) -> str:
        now = self._clock()
        self._sweep(now)
        token = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode("ascii")
        digest = _digest(token)
        session = Session(
            id=secrets.token_hex(6),
            digest=digest,
            account=login.account.name,
            backend=login.backend.name,
            service=client.service,
            client_id=client.client_id[:_MAX_TEXT],
            agent=client.agent[:_MAX_TEXT],
            created=now,
            created_from=client.address,
            used=now,
            used_from=client.address,
            password_version=login.account.password_version,
            sealed_password=_seal(token, digest, password),
        )
        self.store.add(session)
        _log.info(
            "session %s begins: account %r, backend %r",
            *(session.id, session.account, session.backend),
            extra={"security": "session_begun"},
        )
        return token

    def _find(self, token: str) -> Session:
        if not _TOKEN.fullmatch(token):
            raise LoginEnded(reason="this is not a refresh token")
        found = self.store.find(_digest(token))
        if not found:
            raise LoginEnded(reason="the refresh token is unknown")
        return found[0]

    def _prove(self, session: Session, chain: Chain, password: str, now: float) -> Login:
        self._check_times(session, now)
        try:
            login = chain.lookup(session.backend, session.account, password)
        except InvalidCredentials as error:
            raise LoginEnded(reason=error.reason or "the account source refuses the account") from error
        if login.account.password_version != session.password_version:
            raise LoginEnded(reason="the password has changed")
        return login

    def _check_times(self, session: Session, now: float) -> None:
        if session.ended is not None:
            raise LoginEnded(reason=session.end_reason)
        if now - session.used > self._options.idle:
            raise LoginEnded(reason="not used for too long")
        if now - session.created > self._options.age:
            raise LoginEnded(reason="too old")

    def _sweep(self, now: float) -> None:
        if now - self._swept > _SWEEP_INTERVAL and self._sweeping.acquire(blocking=False):
            try:
                self._swept = now
                self.store.sweep(now - self._options.age, now - self._options.idle, now - _ENDED_LISTED)
            finally:
                self._sweeping.release()


def _digest(token: str) -> bytes:
    # 256 random bits need no slow hash, and no salt.
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _cipher(token: str) -> AESGCM:
    key = HKDF(hashes.SHA256(), 32, salt=None, info=b"tokenissuer sealed password").derive(token.encode("ascii"))
    return AESGCM(key)


def _seal(token: str, digest: bytes, password: str) -> bytes:
    if not password:
        return b""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _cipher(token).encrypt(nonce, password.encode("utf-8"), digest)


def _unseal(token: str, session: Session) -> str:
    if not session.sealed_password:
        return ""
    nonce, sealed = session.sealed_password[:_NONCE_BYTES], session.sealed_password[_NONCE_BYTES:]
    try:
        return _cipher(token).decrypt(nonce, sealed, session.digest).decode("utf-8")
    except InvalidTag:
        raise BackendUnavailable(f"the store's row of session {session.id} is damaged") from None
