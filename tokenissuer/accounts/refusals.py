"""Passwords that stay wrong until the account's password changes.

A robot with an old password tries it every minute, in every process of the server. Each try at the account source would
be one of the few after which it locks the account.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from tokenissuer.errors import BackendUnavailable

if TYPE_CHECKING:
    from tokenissuer.accounts.backend import Account

#: Seconds after which such a password is tried again all the same.
MAX_SECONDS: Final = 12 * 3600
#: Refusals kept; the oldest is dropped first.
MAX_REFUSALS: Final = 10_000


class RefusalStore(Protocol):
    """Keeps refusals for several processes. Each method may raise `BackendUnavailable`."""

    def add_refusal(self, digest: bytes, until: float) -> None:
        """Keep one until a moment, in seconds since 1970."""

    def has_refusal(self, digest: bytes) -> bool:
        """Whether one is kept whose moment has not come."""


class Refusals:
    """Remembers which passwords are certainly wrong for an account as long as it has the same `password_version`.

    It keeps no password, but digests under a secret key.

    Args:
        backend: the name of the backend whose accounts they are.
        key: the same for all processes that share a store.
        store: shares them; None to keep them in this process alone.
    """

    def __init__(self, backend: str, key: bytes, store: RefusalStore | None = None) -> None:
        self._backend: Final = backend
        self._key: Final = key
        self._store: Final = store
        self._kept: Final[OrderedDict[bytes, float]] = OrderedDict()

    def add(self, account: Account, password: str) -> None:
        """Remember a password that is certainly wrong, if the account shows when its password changes."""
        if not account.password_version:
            return
        digest, until = self._digest(account, password), time.time() + MAX_SECONDS
        self._kept[digest] = until
        if len(self._kept) > MAX_REFUSALS:
            self._kept.popitem(last=False)
        # An outage of the store stops no login, and this process remembers the refusal in any case.
        if self._store is not None:
            with contextlib.suppress(BackendUnavailable):
                self._store.add_refusal(digest, until)

    def holds(self, account: Account, password: str) -> bool:
        """Whether this password is known to be wrong for the account as it is now."""
        digest = self._digest(account, password)
        if time.time() < self._kept.get(digest, 0.0):
            return True
        with contextlib.suppress(BackendUnavailable):
            return self._store is not None and self._store.has_refusal(digest)
        return False

    def _digest(self, account: Account, password: str) -> bytes:
        # The lengths say where each text ends: no other four can give the same bytes.
        texts = (self._backend, account.name, account.password_version, password)
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hashlib.blake2b(message, key=self._key, digest_size=32).digest()
