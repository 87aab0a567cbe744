"""The rate limit on guessing passwords.

There is a limit of different wrong passwords per account and address, and a limit per address. For IPv6 an address is
a /64, which is one customer's, and four times as many are allowed from a /48, which one customer may have as well. An
account that has logged in from an address within a week, under its own name, is not held to that address's limit.

Beyond a limit every password is refused, the right one too: a different answer would be one more guess.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
import unicodedata
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import Any, Final, TypeVar

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.errors import StorageError
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from tokenissuer.accounts.cache import Turn
from tokenissuer.accounts.chain import Login
from tokenissuer.errors import ConfigurationError, InvalidCredentials, TooManyAttempts
from tokenissuer.net import IPAddress
from tokenissuer.options import Secret, option

T = TypeVar("T")

#: Seconds for which an account that has logged in from an address is not held to the address's limit.
KNOWN: Final = 7 * 24 * 3600
#: Seconds for which a login that is noted in the storage is not noted again.
_NOTED: Final = 3600
#: Counters kept in memory; the one that was not used for longest is dropped first.
MAX_COUNTERS: Final = 60_000
#: Wrong passwords a minute from one address that the account source counts. GitLab, by default, refuses after ten.
SOURCE_LIMIT: Final = 9
#: Seconds that a login waits for others from its address, so that all together cannot pass that limit.
_TURN_WAIT: Final = 3.0
#: Seconds between two looks whether they have ended.
_TURN_POLL: Final = 0.1
#: Logins from an address that may wait at once: each keeps a thread from others. A source that takes a second for each
#: answers so many in time.
_TURN_WAITERS: Final = 27
#: How many times as many passwords may be tried at once for a name that has logged in from the address before: all jobs
#: of a CI runner use one name, each with its own token.
_USED_TIMES: Final = 4
#: What the storage can count.
_MAX_LIMIT: Final = 10_000
_MAX_WINDOW: Final = 24 * 3600
# Bits of an IPv6 address that may tell one customer from another: most have a /64, some a /48.
_IPV6_PREFIXES: Final = (64, 48)
#: How many times as many wrong passwords are allowed from a /48: it may also have many customers.
_WIDE_TIMES: Final = 4
#: Seconds that Redis may take, and for which it is not asked after a failure.
_REDIS_TIMEOUT: Final = 0.3
_REDIS_PAUSE: Final = 10.0
_REDIS_SCHEMES: Final = ("redis", "rediss", "redis+unix")

_log: Final = logging.getLogger("tokenissuer.throttle")


@dataclass(frozen=True, slots=True)
class ThrottleOptions:
    """The `[throttle]` table: the rate limit on guessing passwords."""

    account: int = option("different wrong passwords for one account from one address; 0 for any number", default=10)
    address: int = option("different wrong passwords from one address; 0 for any number", default=100)
    window: int = option("seconds for which each of them counts", default=600)
    redis: Secret | None = option("URL of a Redis that counts for several machines (default: memory)", default=None)

    def __post_init__(self) -> None:
        for key, limit in (("account", self.account), ("address", self.address)):
            if not 0 <= limit <= _MAX_LIMIT:
                raise ValueError(f"'{key}' is {limit}; use 1 to {_MAX_LIMIT}, or 0 for no limit")
        if self.account and 0 < self.address < self.account:
            raise ValueError(f"'address' is {self.address}, less than 'account' ({self.account}); make it greater")
        if not 1 <= self.window <= _MAX_WINDOW:
            raise ValueError(f"'window' is {self.window}; use 1 to {_MAX_WINDOW} seconds")
        if self.redis is not None:
            try:
                _open_redis(self.redis.reveal())
            except ConfigurationError as error:
                raise ValueError(str(error)) from None


class _Counters:
    """The counters in one storage."""

    def __init__(self, storage: Storage, options: ThrottleOptions) -> None:
        self._moving: Final = MovingWindowRateLimiter(storage)
        self._fixed: Final = FixedWindowRateLimiter(storage)
        self._limits: Final[list[tuple[str, int, RateLimitItem]]] = [
            (name, width, RateLimitItemPerSecond(limit * times, options.window, f"{name}{width}"))
            for name, limit in (("account", options.account), ("address", options.address))
            for width, times in enumerate((1, _WIDE_TIMES))
            if limit
        ]
        # By the widest network: to the account source all of a customer's addresses are this server's one.
        self._source: Final = RateLimitItemPerMinute(SOURCE_LIMIT, namespace="source")
        self._wrong: Final = RateLimitItemPerSecond(1, options.window, "wrong")
        # Marks on a name at an address: somebody has logged in with it; it was the account's own name.
        self._used: Final = RateLimitItemPerSecond(1, KNOWN, "used")
        self._known: Final = RateLimitItemPerSecond(1, KNOWN, "known")
        self._is_bounded: Final = isinstance(storage, MemoryStorage)
        self._marks: Final[OrderedDict[tuple[RateLimitItem, str], float]] = OrderedDict()
        self._lock: Final = threading.Lock()
        self._kept: Final[OrderedDict[tuple[RateLimitItem, str], None]] = OrderedDict()

    def admit(self, attempt: _Attempt, others: int) -> None:
        """Prove that one more password may be tried.

        Args:
            attempt: whose.
            others: other passwords for the account that are being tried from the address and may all be wrong.

        Raises:
            TooManyAttempts: if not.
        """
        for name, limit, who in self._of(attempt):
            if self._is_bounded and not others and (limit, who) not in self._kept:
                # Nothing was counted, as for nearly everybody.
                continue
            end, left = self._moving.get_window_stats(limit, who)
            if left > (others if name == "account" else 0):
                continue
            if left > 0 and others < _USED_TIMES * limit.amount and self._is_marked(self._used, attempt):
                continue
            # The limit of the account bounds the guesses of whoever shares the address with it.
            if name == "address" and self._limits[0][0] == "account" and self._is_marked(self._known, attempt):
                continue
            raise TooManyAttempts(_seconds_until(end) if left <= 0 else 1, name)

    def left_at_source(self, where: str) -> int:
        """Return how many more wrong passwords from an address the account source may count.

        Args:
            where: the widest address.

        Raises:
            TooManyAttempts: if none, whoever asks: it would refuse everybody.
        """
        end, left = self._moving.get_window_stats(self._source, where)
        if left <= 0:
            raise TooManyAttempts(_seconds_until(end), "source")
        return left

    def count(self, attempt: _Attempt, *, is_guess: bool) -> None:
        """Count a wrong password, unless the same one was counted within the window.

        Args:
            attempt: whose.
            is_guess: whether it may be a person's password; a token counts for the address alone.
        """
        self._keep(self._wrong, attempt.password)
        if self._fixed.hit(self._wrong, attempt.password):
            for name, limit, who in self._of(attempt):
                if name == "account" and not is_guess:
                    continue
                self._keep(limit, who)
                self._moving.hit(limit, who)

    def count_at_source(self, where: str) -> None:
        """Count a wrong password that the account source has counted, from the widest address."""
        self._keep(self._source, where)
        self._moving.hit(self._source, where)

    def _of(self, attempt: _Attempt) -> Iterator[tuple[str, RateLimitItem, str]]:
        for name, width, limit in self._limits:
            if width < len(attempt.places):
                place = attempt.places[width]
                yield name, limit, place.account if name == "account" else place.address

    def mark(self, attempt: _Attempt, *, is_own_name: bool) -> None:
        """Note that somebody has logged in from the address under this name.

        Args:
            attempt: whose.
            is_own_name: whether it is the account's. Whoever logs in with a machine's token may type anybody's.
        """
        who, now = attempt.places[0].account, time.monotonic()
        for mark in (self._used, self._known) if is_own_name else (self._used,):
            if now < self._marks.get((mark, who), 0.0):
                continue
            if not self._is_marked(mark, attempt):
                # Not in `_kept`: many wrong passwords must not push out who has logged in.
                self._fixed.hit(mark, who)
            with self._lock:
                self._marks[mark, who] = now + _NOTED
                if len(self._marks) > MAX_COUNTERS:
                    (old_mark, old_who), _ = self._marks.popitem(last=False)
                    if self._is_bounded:
                        self._fixed.clear(old_mark, old_who)

    def _is_marked(self, mark: RateLimitItem, attempt: _Attempt) -> bool:
        return not self._fixed.test(mark, attempt.places[0].account)

    def _keep(self, limit: RateLimitItem, who: str) -> None:
        if not self._is_bounded:
            return
        with self._lock:
            self._kept[limit, who] = None
            self._kept.move_to_end((limit, who))
            if len(self._kept) > MAX_COUNTERS:
                (old_limit, old_who), _ = self._kept.popitem(last=False)
                self._moving.clear(old_limit, old_who)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where attempts are counted, as texts from which nobody can read name or address.

    Args:
        address: the address, or its network.
        account: that and the account.
    """

    address: str
    account: str


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One password that is tried.

    Args:
        places: where it counts, the narrowest first.
        password: the widest place, the account and the password, as a text from which nobody can read them.
    """

    places: tuple[_Place, ...]
    password: str


class Throttle:
    """Refuses further passwords after too many wrong ones. One instance serves all threads.

    Args:
        options: the limits.
        key: makes the counters' names unreadable; the same for all machines that share a Redis.
    """

    def __init__(self, options: ThrottleOptions, key: bytes) -> None:
        self._key: Final = key
        self._addresses: Final = lru_cache(4096)(
            lambda address: tuple(self._digest("", place) for place in _places(address))
        )
        self._redis: Final = _Counters(_open_redis(options.redis.reveal()), options) if options.redis else None
        self._redis_paused_until = 0.0
        memory = MemoryStorage()
        # It has started a thread. If a server forked while that held Python's lock, the new process would hang.
        memory.timer.cancel()
        memory.timer.join()
        self._memory: Final = _Counters(memory, options)
        self._lock: Final = threading.Lock()
        # The passwords that are being tried, by how many requests each: for an account at an address; and at the
        # account source for an address, in the order of their turns.
        self._trying: Final[dict[str, dict[str, int]]] = {}
        self._at_source: Final[dict[str, dict[str, int]]] = {}

    def run(self, username: str, password: str, address: IPAddress | None, login: Callable[[Turn], Login]) -> Login:
        """Try a login if that is allowed, and count it if the password was wrong.

        Args:
            username: what the client typed.
            password: what the client typed.
            address: the client's address; all clients with an unknown address share one limit.
            login: tries it; its argument is to be waited for before a source that bans servers is asked.

        Raises:
            TooManyAttempts: if there were too many wrong passwords.
            Exception: what `login` raises.
        """
        name = _folded(username)
        places = [_Place(place, self._digest(place, name)) for place in self._addresses(address)]
        who = places[-1].account
        attempt = _Attempt(tuple(places), self._digest(who, password))
        others = self._begin(self._trying, who, attempt.password)
        try:
            self._ask(lambda counters: counters.admit(attempt, others))
            result = login(lambda: self._turn(places[-1].address, attempt.password))
            is_own_name = _folded(result.account.name) == name
            self._ask(lambda counters: counters.mark(attempt, is_own_name=is_own_name))
            return result
        except InvalidCredentials as error:
            is_guess = error.is_guess
            self._ask(lambda counters: counters.count(attempt, is_guess=is_guess))
            raise
        finally:
            self._end(self._trying, who, attempt.password)

    def ask_for_anonymous(
        self, question: str, address: IPAddress | None, ask: Callable[[], frozenset[str]]
    ) -> frozenset[str]:
        """Ask the backends for an anonymous caller, and count the question if nothing is granted.

        These questions have counters of their own: nobody who logs in from the same address waits for them.

        Args:
            question: what is asked.
            address: the caller's.
            ask: asks, and returns what is granted.

        Raises:
            TooManyAttempts: if there were too many such questions before.
        """
        addresses = [self._digest(place, "\0anonymous") for place in self._addresses(address)]
        attempt = _Attempt(tuple(_Place(place, "") for place in addresses), self._digest(addresses[-1], question))
        try:
            self._ask(lambda counters: counters.admit(attempt, 0))
        except TooManyAttempts as error:
            raise TooManyAttempts(error.retry_after, "anonymous") from None
        granted: frozenset[str] = frozenset()
        try:
            granted = ask()
            return granted
        finally:
            # Also if the backends could not answer: the question has cost them as much.
            if not granted:
                self._ask(lambda counters: counters.count(attempt, is_guess=False))

    @contextmanager
    def _turn(self, where: str, password: str) -> Iterator[None]:
        """Wait until the passwords before this one, all together, cannot reach the account source's limit.

        Raises:
            TooManyAttempts: if that takes too long, too many wait, or the limit is reached.
        """
        before = self._begin(self._at_source, where, password)
        try:
            end = time.monotonic() + _TURN_WAIT
            while before >= (left := self._ask(lambda counters: counters.left_at_source(where))):
                if before >= left + _TURN_WAITERS or time.monotonic() >= end:
                    raise TooManyAttempts(1, "turn")
                time.sleep(_TURN_POLL)
                before = self._before(self._at_source, where, password)
            yield
        except InvalidCredentials as error:
            if error.is_counted:
                # Before the turn ends: the next one must not overlook it.
                self._ask(lambda counters: counters.count_at_source(where))
            raise
        finally:
            self._end(self._at_source, where, password)

    def _begin(self, tried: dict[str, dict[str, int]], who: str, password: str) -> int:
        """Note that a password is being tried, and return how many others were before it."""
        with self._lock:
            passwords = tried.setdefault(who, {})
            passwords[password] = passwords.get(password, 0) + 1
        return self._before(tried, who, password)

    def _before(self, tried: dict[str, dict[str, int]], who: str, password: str) -> int:
        with self._lock:
            return list(tried[who]).index(password)

    def _end(self, tried: dict[str, dict[str, int]], who: str, password: str) -> None:
        with self._lock:
            passwords = tried[who]
            passwords[password] -= 1
            if not passwords[password]:
                del passwords[password]
            if not passwords:
                del tried[who]

    def _digest(self, context: str, text: str) -> str:
        # The context has a fixed length, so no other two texts give the same bytes.
        message = (context + text).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(message, key=self._key, digest_size=16).hexdigest()

    def _ask(self, question: Callable[[_Counters], T]) -> T:
        """Ask Redis, or memory if there is none or it fails: an outage of Redis must not stop a login."""
        if self._redis is not None and time.monotonic() >= self._redis_paused_until:
            try:
                answer = question(self._redis)
            except StorageError as error:
                self._pause(error)
            else:
                self._resume()
                return answer
        return question(self._memory)

    def _pause(self, error: StorageError) -> None:
        if not self._redis_paused_until:
            # Its text might hold the URL, and that a password.
            kind = type(error.__cause__ or error).__name__
            _log.error(
                "the Redis of [throttle] does not answer (%s); until it does, this process counts by itself",
                kind,
                extra={"security": "outage"},
            )
        self._redis_paused_until = time.monotonic() + _REDIS_PAUSE

    def _resume(self) -> None:
        if self._redis_paused_until:
            self._redis_paused_until = 0.0
            _log.warning("the Redis of [throttle] answers again", extra={"security": "outage_over"})


def _open_redis(url: str) -> Storage:
    """Make a client of a Redis; it connects when it is first asked.

    Args:
        url: `redis://…`, `rediss://…` with TLS, or `redis+unix:///path`. It may hold a password and is never shown.

    Raises:
        ConfigurationError: if the URL cannot be used, or the package for it is missing.
    """
    if urllib.parse.urlsplit(url).scheme not in _REDIS_SCHEMES:
        raise ConfigurationError(f"'redis' must be a URL that begins with {', '.join(_REDIS_SCHEMES)} and ://")
    try:
        # Needed only here, and installed only by who uses it.
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {
            "socket_timeout": _REDIS_TIMEOUT,
            "socket_connect_timeout": _REDIS_TIMEOUT,
            # By default it would try for seconds while a login waits.
            "retry": Retry(NoBackoff(), 0),
        }
        storage = storage_from_string(url, wrap_exceptions=True, key_prefix="tokenissuer", **options)
    except (ImportError, LimitsConfigurationError):
        raise ConfigurationError(
            "'redis' needs one more package: install tokenissuer with it, as in pip install '.[redis]'"
        ) from None
    except ValueError:
        raise ConfigurationError("'redis' is not a URL such as redis://:password@redis.example.com:6379/0") from None
    assert isinstance(storage, Storage)
    return storage


def _seconds_until(end: float) -> int:
    return math.ceil(max(1.0, end - time.time()))


def _folded(name: str) -> str:
    # A directory takes `Bob`, `BOB` and `b o b` for the same account or for different ones: here they are the same.
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _places(address: IPAddress | None) -> Sequence[str]:
    """Name who shares a limit: an address, or the networks of IPv6 that one customer may have."""
    if isinstance(address, IPv6Address):
        return [str(IPv6Network((address.packed, prefix), strict=False)) for prefix in _IPV6_PREFIXES]
    return ("" if address is None else str(address),)
