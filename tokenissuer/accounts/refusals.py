"""Passwords that stay wrong until the account's password changes.

A robot with an old password tries it every minute, in every process of the server. Each try at the account source would
be one of the few after which it locks the account.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

from tokenissuer.errors import StoreUnavailable

#: Seconds after which such a password is tried again all the same.
MAX_SECONDS: Final = 12 * 3600
#: Refusals kept in memory; the oldest is dropped first.
MAX_REFUSALS: Final = 10_000


class RefusalStore(Protocol):
    """Keeps refusals for several processes. Each method may raise `StoreUnavailable`."""

    def add_refusal(self, digest: bytes, account: str, version: str, until: float) -> None:
        """Keep one until a moment, in seconds since 1970."""

    def find_refusal(self, digest: bytes) -> Sequence[tuple[str, str, float]]:
        """Return account, version and end of the refusal with this digest: one, or none."""


class Refusals:
    """Remembers for which account, and which `password_version` of it, a password is wrong.

    It keeps no password: a login is known by a digest under a secret key.

    Args:
        key: the same for all processes that share a store.
        store: shares the refusals; None to keep them in this process alone.
    """

    def __init__(self, key: bytes, store: RefusalStore | None = None) -> None:
        self._key: Final = key
        self._store: Final = store
        self._kept: Final[OrderedDict[bytes, tuple[str, str, float]]] = OrderedDict()

    def digest(self, backend: str, username: str, password: str) -> bytes:
        """Return what a login is known by."""
        # The lengths say where each text ends: no other three can give the same bytes.
        texts = [text.encode("utf-8", "surrogatepass") for text in (backend, username, password)]
        message = b"".join(len(text).to_bytes(8, "big") + text for text in texts)
        return hashlib.blake2b(message, key=self._key, digest_size=32).digest()

    def add(self, digest: bytes, account: str, version: str) -> None:
        """Remember that a password is wrong as long as the account has this `password_version`."""
        until = time.time() + MAX_SECONDS
        self._kept[digest] = (account, version, until)
        if len(self._kept) > MAX_REFUSALS:
            self._kept.popitem(last=False)
        if self._store is not None:
            # Whoever waits for a refresh token is told of an outage; this process remembers it.
            with contextlib.suppress(StoreUnavailable):
                self._store.add_refusal(digest, account, version, until)

    def find(self, digest: bytes) -> tuple[str, str] | None:
        """Return the account and the `password_version` for which a password is wrong; None if that is unknown."""
        now = time.time()
        kept = self._kept.get(digest)
        found = [kept] if kept is not None and now < kept[2] else []
        if not found and self._store is not None:
            with contextlib.suppress(StoreUnavailable):
                found = [each for each in self._store.find_refusal(digest) if now < each[2]]
        return (found[0][0], found[0][1]) if found else None
