"""Guessing slowed down: who has tried several different wrong passwords waits.

Wrong passwords are counted for each account and source, and for each source. A source is an address, or the /64 of an
IPv6 address. Right passwords never count, and of a wrong one that is sent again and again only the first.

Whoever has used up an account's tries is refused whatever the password: an answer that told a right one apart would be
one more try. Other sources are not concerned, so nobody can lock somebody else out from elsewhere. When a whole source
has used up its tries, those who have lately logged in from there still do, with the same password; for a guess at
theirs they have no more tries than before.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import logging
import math
import threading
import time
import unicodedata
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.errors import StorageError
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from tokenissuer.backend import refuse_unusable
from tokenissuer.errors import ConfigurationError, InvalidCredentials, TooManyAttempts
from tokenissuer.policy import IPAddress

T = TypeVar("T")

#: Seconds for which it is remembered that a password was right.
PROVEN: Final = 7 * 24 * 3600
#: Counters kept in memory of each kind; the one that was not used for longest goes first.
MOST: Final = 20_000
#: Bits of an IPv6 address that tell one customer from another.
_IPV6_PREFIX: Final = 64
#: Seconds that Redis may take, and for which it is left alone after a failure.
_REDIS_PATIENCE: Final = 0.3
_REDIS_REST: Final = 10.0
_REDIS_SCHEMES: Final = ("redis", "rediss", "redis+unix")

_log: Final = logging.getLogger("tokenissuer.throttle")


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A login as the counters know it: nobody can read name, address or password from it.

    Args:
        source: where it comes from.
        pair: the account, and where it comes from.
        password: the account, where it comes from, and the password.
        is_guessable: whether a password like this could be found by trying.
    """

    source: str
    pair: str
    password: str
    is_guessable: bool


class _Counters:
    """Counters in one storage.

    Args:
        storage: where they are kept.
        window: seconds for which a wrong password counts.
        most: how many may be kept of each kind; None if the storage sees to that itself.
    """

    def __init__(self, storage: Storage, window: int, most: int | None) -> None:
        self._moving: Final = MovingWindowRateLimiter(storage)
        self._fixed: Final = FixedWindowRateLimiter(storage)
        self._wrong: Final = RateLimitItemPerSecond(1, window, "wrong")
        self._proven: Final = RateLimitItemPerSecond(1, PROVEN, "proven")
        self._most: Final = most
        self._lock: Final = threading.Lock()
        # Apart from each other, so that no flood of wrong passwords can push out who has proven theirs.
        self._kept: Final[dict[bool, OrderedDict[tuple[RateLimitItem, str], None]]] = {
            False: OrderedDict(),
            True: OrderedDict(),
        }

    def wait(self, limit: RateLimitItem, who: str, others: int = 0) -> float:
        """Return the seconds until a further try is allowed; 0 if it is now.

        Args:
            limit: how many tries there are.
            who: whose.
            others: tries under way.
        """
        end, left = self._moving.get_window_stats(limit, who)
        if left > others:
            return 0
        return max(1.0, end - time.time()) if left <= 0 else 1.0

    def is_proven(self, who: str) -> bool:
        """Whether this was right lately."""
        return not self._fixed.test(self._proven, who)

    def prove(self, who: str) -> None:
        """Note that this was right."""
        self._keep(self._proven, who)
        self._fixed.hit(self._proven, who)

    def is_news(self, password: str) -> bool:
        """Note a wrong password; whether it has not been noted lately."""
        self._keep(self._wrong, password)
        return self._fixed.hit(self._wrong, password)

    def count(self, limit: RateLimitItem, who: str) -> None:
        """Take one of the tries away."""
        self._keep(limit, who)
        self._moving.hit(limit, who)

    def _keep(self, limit: RateLimitItem, who: str) -> None:
        if self._most is None:
            return
        with self._lock:
            kept = self._kept[limit is self._proven]
            kept[limit, who] = None
            kept.move_to_end((limit, who))
            if len(kept) > self._most:
                (old_limit, old_who), _ = kept.popitem(last=False)
                self._moving.clear(old_limit, old_who)


class Throttle:
    """Slows guessing down. One instance serves all threads.

    Args:
        account: different wrong passwords for one account from one source; 0 for any number.
        address: different wrong passwords from one source; 0 for any number.
        window: seconds for which each of them counts.
        key: makes the counters' names unreadable; the same for all machines that share a Redis.
        redis: the URL of a Redis that several machines share; empty to count in this process's memory.
        most: counters kept in memory of each kind.

    Raises:
        ConfigurationError: if the URL cannot be used, or the package for it is missing. An outage is no reason.
    """

    def __init__(self, account: int, address: int, window: int, key: bytes, redis: str = "", most: int = MOST) -> None:
        self._account: Final = RateLimitItemPerSecond(account, window, "account") if account else None
        self._address: Final = RateLimitItemPerSecond(address, window, "address") if address else None
        self._window: Final = window
        self._key: Final = key
        self._most: Final = most
        self._redis: Final = _Counters(open_redis(redis), window, None) if redis else None
        self._redis_rests_until = 0.0
        self._lock: Final = threading.Lock()
        self._memory: _Counters | None = None
        self._under_way: Final[dict[str, dict[str, int]]] = {}

    @contextlib.contextmanager
    def attempt(
        self, username: str, password: str, address: IPAddress | None, is_guessable: bool = True
    ) -> Iterator[None]:
        """Let a login be tried inside the block, and count it if it fails there as wrong.

        Args:
            username: what the client typed.
            password: likewise.
            address: where it comes from; all of whom that cannot be told are one source.
            is_guessable: whether a password like this could be found by trying; else it counts only for the source.

        Raises:
            TooManyAttempts: if there were too many wrong ones.
            InvalidCredentials: for what no account source is ever asked; that is no guess and does not count.
        """
        refuse_unusable(username, password)
        attempt = self._recognise(username, password, address, is_guessable)
        with self._passage(attempt) as others:
            self._ask(lambda counters: self._admit(counters, attempt, others))
            try:
                yield
            except InvalidCredentials:
                self._ask(lambda counters: self._count(counters, attempt))
                raise
            self._ask(lambda counters: self._prove(counters, attempt))

    def _recognise(self, username: str, password: str, address: IPAddress | None, is_guessable: bool) -> _Attempt:
        source = self._digest(_source(address))
        # A directory takes `Bob`, `BOB` and `b o b` for one account or another: here they are one.
        name = "".join(unicodedata.normalize("NFKC", username).casefold().split())
        pair = self._digest(source, name)
        return _Attempt(source, pair, self._digest(pair, password), is_guessable)

    def _digest(self, *parts: str) -> str:
        raw = [part.encode("utf-8", "surrogatepass") for part in parts]
        # The lengths tell where a part ends: no others can give the same bytes.
        message = b"".join(len(part).to_bytes(8, "big") + part for part in raw)
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:32]

    def _admit(self, counters: _Counters, attempt: _Attempt, others: int) -> None:
        """Prove that this may be tried.

        Args:
            others: passwords that are being tried for the account already, and may all be wrong.

        Raises:
            TooManyAttempts: if not.
        """
        limit = self._account if attempt.is_guessable else None
        if limit and (wait := counters.wait(limit, attempt.pair, others)):
            raise _refusal(wait, "account")
        if not self._address or not (wait := counters.wait(self._address, attempt.source)):
            return
        if counters.is_proven(attempt.password):
            return
        # Where one password would be let in, every other one is a guess at it. Elsewhere nothing could be learnt, and
        # names that are made up take no room.
        if limit and counters.is_proven(attempt.pair) and counters.is_news(attempt.password):
            counters.count(limit, attempt.pair)
        raise _refusal(wait, "address")

    def _count(self, counters: _Counters, attempt: _Attempt) -> None:
        if counters.is_news(attempt.password):
            if self._account and attempt.is_guessable:
                counters.count(self._account, attempt.pair)
            if self._address:
                counters.count(self._address, attempt.source)

    def _prove(self, counters: _Counters, attempt: _Attempt) -> None:
        for who in (attempt.password, attempt.pair):
            if not counters.is_proven(who):
                counters.prove(who)

    @contextlib.contextmanager
    def _passage(self, attempt: _Attempt) -> Iterator[int]:
        """Note that a password is being tried; gives how many others were before it."""
        with self._lock:
            passwords = self._under_way.setdefault(attempt.pair, {})
            passwords[attempt.password] = passwords.get(attempt.password, 0) + 1
            others = list(passwords).index(attempt.password)
        try:
            yield others
        finally:
            with self._lock:
                passwords[attempt.password] -= 1
                if not passwords[attempt.password]:
                    del passwords[attempt.password]
                if not passwords:
                    del self._under_way[attempt.pair]

    def _ask(self, question: Callable[[_Counters], T]) -> T:
        """Ask Redis, or memory where there is none or it fails: no outage of it may stop a login."""
        if self._redis is not None and time.monotonic() >= self._redis_rests_until:
            try:
                answer = question(self._redis)
            except StorageError as error:
                self._rest(error)
            else:
                self._wake()
                return answer
        return question(self._counters())

    def _rest(self, error: StorageError) -> None:
        if not self._redis_rests_until:
            # Its text might hold the URL, and that a password.
            kind = type(error.__cause__ or error).__name__
            _log.error(
                "the Redis of [throttle] cannot be asked (%s); until it can, this process counts by itself",
                kind,
                extra={"security": "outage"},
            )
        self._redis_rests_until = time.monotonic() + _REDIS_REST

    def _wake(self) -> None:
        if self._redis_rests_until:
            self._redis_rests_until = 0.0
            _log.warning("the Redis of [throttle] can be asked again", extra={"security": "outage_over"})

    def _counters(self) -> _Counters:
        # Not before it is needed: its storage starts a thread, and the process may yet be forked.
        with self._lock:
            if self._memory is None:
                self._memory = _Counters(MemoryStorage(), self._window, self._most)
            return self._memory


def open_redis(url: str) -> Storage:
    """Make ready to ask a Redis.

    Args:
        url: `redis://…`, `rediss://…` with TLS, or `redis+unix:///path`. It may hold a password and is never shown.

    Raises:
        ConfigurationError: if the URL cannot be used, or the package for it is missing.
    """
    if urllib.parse.urlsplit(url).scheme not in _REDIS_SCHEMES:
        raise ConfigurationError(f"'redis' must be a URL that begins with {', '.join(_REDIS_SCHEMES)} and ://")
    try:
        # Needed only here, and installed only for whoever wants it.
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {
            "socket_timeout": _REDIS_PATIENCE,
            "socket_connect_timeout": _REDIS_PATIENCE,
            # It would try for seconds while a login waits.
            "retry": Retry(NoBackoff(), 0),
        }
        storage = storage_from_string(url, wrap_exceptions=True, key_prefix="tokenissuer", **options)
    except (ImportError, LimitsConfigurationError):
        raise ConfigurationError("'redis' needs a package more; run: pip install 'tokenissuer[redis]'") from None
    except ValueError:
        raise ConfigurationError("'redis' is no URL such as redis://:password@redis.example.com:6379/0") from None
    assert isinstance(storage, Storage)
    return storage


def _source(address: IPAddress | None) -> str:
    """Name who shares the tries: an address, or all of those that one customer has."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address.packed, _IPV6_PREFIX), strict=False))
    return "" if address is None else str(address)


def _refusal(wait: float, limit: str) -> TooManyAttempts:
    return TooManyAttempts(math.ceil(wait), limit)
