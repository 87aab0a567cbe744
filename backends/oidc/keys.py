"""The provider's keys: from a file, or as it publishes them."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt
import urllib3
from urllib3.exceptions import HTTPError

from tokenissuer import BackendUnavailable, ConfigurationError, Deadline, read_text, tls_context
from tokenissuer_backends.oidc.claims import shown

#: Seconds after which keys are fetched again.
KEYS_FRESH: Final = 3600
#: Seconds after which keys are not used any more: so long may the provider be down.
KEYS_LAST: Final = 24 * 3600
#: Seconds between two fetches because of a key that is not known: anybody can write any key id into a token.
REFETCH: Final = 60
#: Seconds between two fetches while there are no keys.
RETRY: Final = 5
#: Seconds to fetch the provider's keys.
TIMEOUT: Final = 5
#: Seconds that a login waits for a key that is not here: fewer than tell of a backend that hangs, because anybody can
#: write any key id into a token.
UNKNOWN_WAIT: Final = 1.5
#: Bytes in one answer of the provider.
MAX_ANSWER: Final = 256 * 1024
#: Bits that an RSA key has at least: RFC 7518, 3.3.
MIN_RSA_BITS: Final = 2048

#: For each kind of key the algorithms that may be used with it: never what the token says.
_ALGORITHMS: Final[Mapping[tuple[str, str], Sequence[str]]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_PUBLIC: Final = ("kty", "crv", "n", "e", "x", "y")

_UNDER_WAY: Final = "the provider's keys are still being fetched"

_log: Final = logging.getLogger("tokenissuer.backends.oidc")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the provider.

    Args:
        id: its `kid`; empty if it has none.
        public: the key.
        algorithms: what it may be used with.
    """

    id: str
    public: Any = field(repr=False)
    algorithms: tuple[str, ...]


class FileKeys:
    """Keys in a file. When it changes, the backend is built again.

    Args:
        path: a JWK Set.

    Raises:
        ConfigurationError: if the file has no key that can be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._keys: Final = read_keys(json.loads(read_text(path)))
        except (ValueError, RecursionError):
            raise ConfigurationError(f"'jwks_file': {path} is not JSON") from None
        if not self._keys:
            raise ConfigurationError(
                f"'jwks_file': {path} has no key that can be used; save what is at the provider's jwks_uri in it"
            )

    def current(self) -> Sequence[Key]:
        """Return all keys."""
        return self._keys

    def candidates(self, key_id: str) -> Iterable[Key]:
        """Return the keys that may have signed a token."""
        return _matching(self._keys, key_id)


class ProviderKeys:
    """Keys that the provider publishes: https://openid.net/specs/openid-connect-discovery-1_0.html.

    Args:
        issuer: its URL.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(self, issuer: str, ca_file: Path | None) -> None:
        self._issuer: Final = issuer
        self._pool: Final = urllib3.PoolManager(ssl_context=tls_context(ca_file), retries=False)
        self._lock: Final = threading.Lock()
        self._keys: Sequence[Key] = ()
        self._fetched = self._tried = float("-inf")
        self._trouble = ""
        # Of the last fetch, and when it began.
        self._done = threading.Event()
        self._began = float("-inf")

    def current(self) -> Sequence[Key]:
        """Return all keys.

        Raises:
            BackendUnavailable: if there are none that are recent enough.
        """
        if time.monotonic() - self._fetched > KEYS_FRESH:
            # While the keys that are here are good, nobody waits but the one that fetches new ones.
            is_old = self._are_too_old()
            self._fetch(2 * TIMEOUT if is_old else UNKNOWN_WAIT, joins=is_old)
        if self._are_too_old():
            raise BackendUnavailable(self._trouble or _UNDER_WAY, retry_after=RETRY)
        return self._keys

    def candidates(self, key_id: str) -> Iterator[Key]:
        """Return the keys that may have signed a token: those that are here, then those that the provider has now.

        Raises:
            BackendUnavailable: if there are none that are recent enough; after the last key, if there may be others.
        """
        keys = self.current()
        yield from _matching(keys, key_id)
        if key_id and any(key.id == key_id for key in keys):
            return
        self._fetch(UNKNOWN_WAIT, joins=True)
        if self._keys is not keys:
            yield from _matching(self._keys, key_id)
        if self._trouble or self._is_fetching():
            # Nobody knows whether a key that is not here is one of its.
            raise BackendUnavailable(self._trouble or _UNDER_WAY, retry_after=REFETCH)

    def _are_too_old(self) -> bool:
        return time.monotonic() - self._fetched > KEYS_LAST

    def _is_fetching(self) -> bool:
        # One that began long ago was another process's, which this one was forked from.
        return not self._done.is_set() and time.monotonic() - self._began < 4 * TIMEOUT

    def _fetch(self, seconds: float, *, joins: bool) -> None:
        """Fetch the keys again, unless that was tried a short while ago.

        Args:
            seconds: how long to wait for them.
            joins: whether to wait for a fetch that another login has begun.
        """
        with self._lock:
            pause = RETRY if self._are_too_old() else REFETCH
            begins = not self._is_fetching() and time.monotonic() - self._tried > pause
            if begins:
                self._done, self._began = threading.Event(), time.monotonic()
                try:
                    threading.Thread(target=self._renew, args=(self._done,), daemon=True).start()
                except RuntimeError:
                    self._done.set()
                    raise BackendUnavailable("no thread can be started to fetch the provider's keys") from None
            done = self._done
        if begins or (joins and self._is_fetching()):
            done.wait(seconds)

    def _renew(self, done: threading.Event) -> None:
        trouble = "the keys could not be fetched"
        try:
            self._keys, trouble = self._published(), ""
            self._fetched = time.monotonic()
        except BackendUnavailable as error:
            # The keys that are here stay good for a while: a provider that is down must not stop every job.
            trouble = error.reason
        finally:
            self._tried = time.monotonic()
            if trouble != self._trouble:
                _log.warning("keys of %s: %s", self._issuer, trouble or "they can be fetched again")
            self._trouble = trouble
            done.set()

    def _published(self) -> Sequence[Key]:
        deadline = Deadline.after(TIMEOUT)
        document = self._get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", deadline)
        if document.get("issuer") != self._issuer:
            raise BackendUnavailable(f"the provider calls itself {shown(document.get('issuer'))}")
        address = document.get("jwks_uri")
        if not isinstance(address, str) or not is_https(address):
            raise BackendUnavailable("the provider names no https jwks_uri")
        keys = read_keys(self._get(address, deadline))
        if not keys:
            raise BackendUnavailable(f"{address}: no key that can be used")
        return keys

    def _get(self, url: str, deadline: Deadline) -> Mapping[str, Any]:
        body = b""
        try:
            # Never a redirect: the keys must come from the host that is named.
            response = self._pool.request(
                "GET", url, redirect=False, timeout=urllib3.Timeout(total=deadline.remaining()), preload_content=False,
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "tokenissuer"},
            )  # fmt: skip
            try:
                while len(body) <= MAX_ANSWER and (piece := response.read1(MAX_ANSWER, decode_content=False)):
                    body += piece
                    deadline.remaining()
            finally:
                response.close()
        except (HTTPError, OSError, ValueError) as error:
            raise BackendUnavailable(f"{url}: {type(error).__name__}: {shown(str(error))}") from None
        if response.status != 200:
            raise BackendUnavailable(f"{url}: answered {response.status}")
        if len(body) > MAX_ANSWER:
            raise BackendUnavailable(f"{url}: the answer has more than {MAX_ANSWER} bytes")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise BackendUnavailable(f"{url}: the answer is not a JSON object")
        return found


def read_keys(document: Any) -> tuple[Key, ...]:
    """Return the keys of a JWK Set that can verify signatures; others are passed over (RFC 7517, 5)."""
    found = document.get("keys") if isinstance(document, dict) else None
    listed = found if isinstance(found, list) else []
    return tuple(key for jwk in listed if isinstance(jwk, dict) for key in _read_key(jwk))


def _read_key(jwk: Mapping[str, Any]) -> Iterator[Key]:
    key_id, kind = jwk.get("kid"), (str(jwk.get("kty")), str(jwk.get("crv", "")))
    algorithms = tuple(each for each in _ALGORITHMS.get(kind, ()) if each == jwk.get("alg", each))
    if not algorithms or jwk.get("use", "sig") != "sig":
        return
    try:
        if "verify" not in jwk.get("key_ops", ["verify"]):
            return
        # A set with private keys by mistake still has public ones.
        public: Any = jwt.PyJWK({name: jwk[name] for name in _PUBLIC if name in jwk}, algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return
    if kind[0] != "RSA" or public.key_size >= MIN_RSA_BITS:
        yield Key(key_id if isinstance(key_id, str) else "", public, algorithms)


def _matching(keys: Sequence[Key], key_id: str) -> Sequence[Key]:
    # A token without an id may be signed with any key; a provider without ids has few.
    return [key for key in keys if key.id in ("", key_id)] if key_id else keys


def is_https(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        # Only reading the port checks it.
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
