"""TOML → a built service. README has the reference of all keys."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tokenissuer.backend import Backend, Chain, Source, load_backend
from tokenissuer.errors import ConfigurationError
from tokenissuer.finding import Finding, Severity
from tokenissuer.issuer import MIN_LIFETIME, Issuer
from tokenissuer.keys import KeyForm, SigningKey, file_findings, load_signing_key
from tokenissuer.memory import LONGEST, Memory
from tokenissuer.options import Secret, decode, files_in, near_match, option
from tokenissuer.policy import REPOSITORY_ACTIONS, Glob, IPNetwork, Policy, Rule
from tokenissuer.proxies import UNIX, X_FORWARDED_FOR, TrustedProxies
from tokenissuer.refresh import RefreshTokens, Store, load_store
from tokenissuer.service import TokenService
from tokenissuer.throttle import Throttle, open_redis

T = TypeVar("T")

ENVIRONMENT_VARIABLE: Final = "TOKENISSUER_CONFIG"
FILE_NAME: Final = "tokenissuer.toml"
SYSTEM_FILE: Final = Path("/etc/tokenissuer") / FILE_NAME

#: Seconds: what a token allows cannot be taken back before it ends.
_LONG_LIFETIME: Final = 3600
#: What a counter of wrong passwords takes.
_MOST_TRIES: Final = 10_000
_LONGEST_WINDOW: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class IssuerOptions:
    """The `[issuer]` table."""

    name: str = option("the issuer name: the registry's auth.token.issuer")
    services: tuple[str, ...] = option("the registries' names: their auth.token.service; any other is refused")
    realm: str = option("the URL clients are sent to: the registry's auth.token.realm")
    lifetime: int = option("seconds a token is good for, at least 60", default=900)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("'name' is empty")
        if not self.services or "" in self.services:
            raise ValueError("'services' needs at least one name; use the registry's auth.token.service")
        if self.lifetime < MIN_LIFETIME:
            raise ValueError(f"'lifetime' is {self.lifetime}; clients need at least {MIN_LIFETIME} seconds")
        check_realm(self.realm)


@dataclass(frozen=True, slots=True)
class SigningOptions:
    """The `[signing]` table."""

    key: Path = option("the private key, PEM")
    certificate: Path = option("its certificate, PEM: the registry's rootcertbundle")
    key_forms: Mapping[str, Literal["x5c", "thumbprint", "libtrust"]] = option(
        "for each service, how a token names its key: 'x5c' unless said otherwise; "
        "'thumbprint' for a registry 3.x that has only `jwks`",
        default_factory=dict,
    )


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """One `[[access]]` table."""

    accounts: frozenset[str] = option("accounts the rule is for", default=frozenset())
    groups: frozenset[str] = option("groups the rule is for", default=frozenset())
    authenticated: bool = option("whether it is for everyone who is logged in", default=False)
    everyone: bool = option("whether it is for everyone, logged in or not", default=False)
    repositories: tuple[str, ...] = option("patterns of repository names: `*`, `**`, {account}, {group}", default=())
    catalog: bool = option("whether it is about the list of all repositories", default=False)
    actions: frozenset[str] = option("'pull', 'push', 'delete', or '*' for all three", default=frozenset())
    services: frozenset[str] | None = option("only for these registries; absent: for all", default=None)
    networks: tuple[str, ...] | None = option(
        "only from these addresses or networks; absent: from anywhere", default=None
    )
    effect: Literal["allow", "deny"] = option("'deny' takes away, whatever other rules allow", default="allow")

    def __post_init__(self) -> None:
        if not (self.accounts or self.groups or self.authenticated or self.everyone):
            raise ValueError("the rule is for nobody; add accounts, groups, authenticated = true or everyone = true")
        if not self.repositories and not self.catalog:
            raise ValueError("the rule is about nothing; add repositories or catalog = true")
        if self.repositories and not self.actions:
            raise ValueError("the key 'actions' is missing; use for example actions = [\"pull\"]")
        if self.actions and not self.repositories:
            raise ValueError("'actions' speaks of repositories, but none are named; the catalog needs no actions")
        for key, values in (("services", self.services), ("networks", self.networks)):
            if values is not None and not values:
                raise ValueError(f"'{key}' is empty, so the rule would never apply; name some, or leave the key out")
        for action in self.actions - REPOSITORY_ACTIONS - {"*"}:
            raise ValueError(f"unknown action '{action}'; {near_match(action, REPOSITORY_ACTIONS)}")

    def rule(self, number: int) -> Rule:
        """Build the rule.

        Raises:
            ValueError: if a pattern or network cannot be understood.
        """
        return Rule(
            number=number,
            accounts=self.accounts,
            groups=self.groups,
            authenticated=self.authenticated,
            everyone=self.everyone,
            repositories=tuple(Glob(text) for text in self.repositories),
            catalog=self.catalog,
            actions=REPOSITORY_ACTIONS if "*" in self.actions else self.actions,
            services=self.services or frozenset(),
            networks=tuple(_network(text) for text in self.networks or ()),
            deny=self.effect == "deny",
        )


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The `[server]` table: what stands between the clients and this server."""

    trusted_proxies: tuple[str, ...] = option(
        "addresses or networks of the proxies in front, or 'unix' for a Unix socket; absent: none", default=()
    )
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"] = option(
        "the header in which these proxies name the client", default=X_FORWARDED_FOR
    )

    def proxies(self) -> TrustedProxies:
        """Return the proxies whose word counts.

        Raises:
            ValueError: if one is no address or network.
        """
        networks = tuple(_network(text) for text in self.trusted_proxies if text != UNIX)
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("'trusted_proxies' holds every address there is; name the proxies in front, and no others")
        return TrustedProxies(networks, UNIX in self.trusted_proxies, self.forwarded_header)

    def __post_init__(self) -> None:
        self.proxies()


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """The `[memory]` table: how long answers of the backends hold."""

    success: int = option("seconds for which a right password is remembered, 0 to 60", default=LONGEST)
    failure: int = option("seconds for which a refused one is remembered, 0 to 60", default=LONGEST)

    def __post_init__(self) -> None:
        for key, seconds in (("success", self.success), ("failure", self.failure)):
            if not 0 <= seconds <= LONGEST:
                raise ValueError(f"'{key}' is {seconds}; use 0 to {LONGEST} seconds")

    def remember(self, source: Source, places: int) -> Source:
        """Return the source with a memory, and so many places for threads that ask it."""
        return Source(source.name, Memory(source.backend, self.success, self.failure, places, source.name))


@dataclass(frozen=True, slots=True)
class ThrottleOptions:
    """The `[throttle]` table: how guessing is slowed down."""

    account: int = option("different wrong passwords for one account from one address; 0 for any number", default=10)
    address: int = option("different wrong passwords from one address; 0 for any number", default=100)
    window: int = option("seconds for which each of them counts", default=600)
    redis: Secret | None = option("URL of a Redis that counts for several machines; absent: memory", default=None)

    def __post_init__(self) -> None:
        for key, tries in (("account", self.account), ("address", self.address)):
            if not 0 <= tries <= _MOST_TRIES:
                raise ValueError(f"'{key}' is {tries}; use 1 to {_MOST_TRIES}, or 0 for no limit")
        if self.account and 0 < self.address < self.account:
            raise ValueError(f"'address' is {self.address}, less than 'account' ({self.account}); make it greater")
        if not 1 <= self.window <= _LONGEST_WINDOW:
            raise ValueError(f"'window' is {self.window}; use 1 to {_LONGEST_WINDOW} seconds")
        if self.redis is not None:
            try:
                open_redis(self.redis.reveal())
            except ConfigurationError as error:
                raise ValueError(str(error)) from None

    def build(self, key: SigningKey) -> Throttle | None:
        """Return the throttle; None if there is no limit.

        Args:
            key: makes the counters' names unreadable, and the same on every machine that has it.
        """
        if not self.account and not self.address:
            return None
        redis = self.redis.reveal() if self.redis is not None else ""
        return Throttle(self.account, self.address, self.window, key.derive("tokenissuer throttle"), redis)


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """The `[metrics]` table. Without it nothing is shown."""

    listen: str = option("HOST:PORT for /metrics, and /readyz in detail; only you may reach it")

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"'listen' is '{self.listen}'; use HOST:PORT such as 127.0.0.1:9001")


@dataclass(frozen=True, slots=True)
class RefreshOptions:
    """The `[refresh]` table. Without it no refresh tokens are issued."""

    idle: int = option("seconds of disuse after which a login ends", default=30 * 24 * 3600)
    age: int = option("seconds after which a login ends in any case", default=365 * 24 * 3600)
    except_clients: frozenset[str] = option("client ids that are given no refresh token", default=frozenset())
    except_services: frozenset[str] = option("registries for which none are given", default=frozenset())

    def __post_init__(self) -> None:
        for key, seconds in (("idle", self.idle), ("age", self.age)):
            if seconds < MIN_LIFETIME:
                raise ValueError(f"'{key}' is {seconds}; use at least {MIN_LIFETIME} seconds")


@dataclass(frozen=True, slots=True)
class RefreshConfig:
    """The `[refresh]` table, and the store that its table `store` names."""

    options: RefreshOptions
    store: type[Store]
    store_options: Any

    def build(self) -> RefreshTokens:
        """Open the store.

        Raises:
            ConfigurationError: if it cannot be used as configured.
        """
        return RefreshTokens(
            self.store(self.store_options),
            self.options.idle,
            self.options.age,
            self.options.except_clients,
            self.options.except_services,
        )


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """One `[[backends]]` table: which backend, and its own options."""

    name: str
    cls: type[Backend]
    options: Any

    def build(self) -> Source:
        """Make the backend.

        Raises:
            ConfigurationError: if it cannot be used as configured.
        """
        try:
            return Source(self.name, self.cls(self.options))
        except ConfigurationError as error:
            raise ConfigurationError(f"backend '{self.name}': {error}") from error


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that has been read; nothing is built yet.

    Args:
        path: the file.
    """

    path: Path
    issuer: IssuerOptions
    signing: SigningOptions
    backends: tuple[BackendOptions, ...]
    rules: tuple[Rule, ...]
    refresh: RefreshConfig | None
    server: ServerOptions
    memory: MemoryOptions
    throttle: ThrottleOptions
    metrics: MetricsOptions | None

    def load_key(self) -> SigningKey:
        """Read key and certificate.

        Raises:
            ConfigurationError: if they cannot be used.
        """
        return load_signing_key(self.signing.key, self.signing.certificate)

    def files(self) -> frozenset[Path]:
        """Return the files on which what is built here depends, less those that a backend itself reads again."""
        found = {self.path, self.signing.key, self.signing.certificate}
        for backend in self.backends:
            for field in dataclasses.fields(backend.options):
                if field.name not in backend.cls.rereads:
                    found.update(files_in(getattr(backend.options, field.name)))
        return frozenset(found)

    def key_forms(self) -> dict[str, KeyForm]:
        """Return how tokens name their key, for the services where that is said."""
        return {service: KeyForm(form) for service, form in self.signing.key_forms.items()}

    def build(self, now: float, threads: int = 8) -> TokenService:
        """Build the service.

        Args:
            now: seconds since 1970, to hold the certificate against.
            threads: requests that the server answers at once.

        Raises:
            ConfigurationError: if any part cannot be used.
        """
        key = self.load_key()
        try:
            key.expiry(now)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.signing.certificate}: {error}") from None
        issuer = Issuer(self.issuer.name, key, self.issuer.lifetime, self.key_forms())
        with ExitStack() as built:
            sources = []
            for backend in self.backends:
                source = backend.build()
                built.callback(source.backend.close)
                sources.append(self.memory.remember(source, self._places(backend, threads)))
            chain = Chain(sources)
            refresh = self.refresh.build() if self.refresh is not None else None
            services = self.issuer.services
            throttle = self.throttle.build(key)
            policy = Policy(self.rules)
            service = TokenService(issuer, chain, policy, services, refresh, self.issuer.realm, throttle)
            built.pop_all()
        return service

    def _places(self, backend: BackendOptions, threads: int) -> int:
        """Return how many threads a backend may hold: all that may hang together leave half for other requests."""
        if backend.cls.is_local:
            return threads
        remote = sum(not other.cls.is_local for other in self.backends)
        return max(1, threads // 2 // remote)

    def findings(self, now: float) -> Iterator[Finding]:
        """Say what is wrong with key, certificate, realm and rules, or soon will be.

        Args:
            now: seconds since 1970.
        """
        try:
            key = self.load_key()
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, "[signing]", str(error))
        else:
            yield from key.findings(str(self.signing.certificate), now)
            yield from file_findings(self.signing.key)
        yield from self._issuer_findings()
        yield from self._rule_findings()

    def _issuer_findings(self) -> Iterator[Finding]:
        realm = urllib.parse.urlsplit(self.issuer.realm)
        if realm.scheme == "http" and not _is_loopback(realm.hostname or ""):
            yield Finding(
                Severity.WARNING,
                "[issuer] realm",
                f"clients send their passwords to {self.issuer.realm} in clear text, and some refuse to",
                "put a proxy with TLS in front and use its https address",
            )
        if self.issuer.lifetime > _LONG_LIFETIME:
            yield Finding(
                Severity.WARNING,
                "[issuer] lifetime",
                f"a token is good for {self.issuer.lifetime} seconds, whatever is revoked meanwhile",
                f"use at most {_LONG_LIFETIME}; a push outlives it only if one layer takes longer",
            )

    def _rule_findings(self) -> Iterator[Finding]:
        grants = any(options.cls.grants is not Backend.grants for options in self.backends)
        if not grants and not any(not rule.deny for rule in self.rules):
            yield Finding(
                Severity.WARNING,
                "[[access]]",
                "no rule allows anything; only what a backend itself grants can be pulled or pushed",
                'add one: authenticated = true, repositories = ["{account}/**"], actions = ["pull", "push"]',
            )
        for rule in self.rules:
            subject = f"[[access]] {rule.number}"
            if not rule.deny and "push" in rule.actions and "pull" not in rule.actions:
                yield Finding(
                    Severity.WARNING,
                    subject,
                    "it allows push without pull, and a registry takes a push only with both",
                    'use actions = ["pull", "push"]',
                )
            if not rule.deny and rule.everyone and rule.actions & {"push", "delete"}:
                yield Finding(
                    Severity.WARNING,
                    subject,
                    "anybody may push or delete without logging in",
                    "use authenticated = true if that is not meant",
                )


def find_config(given: Path | None) -> Path:
    """Return the configuration file to use.

    Args:
        given: from the command line; else the environment variable, the working folder and /etc are tried.

    Raises:
        ConfigurationError: if there is none.
    """
    if given is not None:
        return given
    if variable := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(variable)
    for path in (Path(FILE_NAME), SYSTEM_FILE):
        if path.exists():
            return path
    raise ConfigurationError(
        f"no configuration found: neither ./{FILE_NAME} nor {SYSTEM_FILE}; use --config FILE, or make one with "
        "`tokenissuer init`"
    )


def load_config(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigurationError: if anything in it cannot be understood; the text names file, table and key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: this is not TOML: {error}") from None
    try:
        return _decode_config(path, table)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def check_realm(realm: str) -> None:
    """Refuse a realm that some client cannot use.

    Raises:
        ValueError: if it is no absolute http(s) URL, or has a query: Jib and Apple's client lose it.
    """
    try:
        url = urllib.parse.urlsplit(realm)
        # `port` is read where it is asked for, and raises for no number.
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() or character in '"\\' for character in realm):
        raise ValueError(f"'realm' is '{realm}'; use a whole URL such as https://auth.example.com/token")
    # By the signs themselves: an empty query would be dropped in parsing, and Jib would add a second question mark.
    if "?" in realm or "#" in realm or url.username is not None:
        raise ValueError(f"'realm' is '{realm}'; leave out user, query and fragment: some clients lose them")


def _decode_config(path: Path, table: Mapping[str, Any]) -> Config:
    folder = path.absolute().parent
    known = ("issuer", "signing", "backends", "access", "memory", "metrics", "refresh", "server", "throttle")
    for key in table:
        if key not in known:
            raise ConfigurationError(f"unknown table [{key}]; {near_match(key, known)}")
    for key in ("issuer", "signing"):
        if key not in table:
            raise ConfigurationError(f"the table [{key}] is missing")
    issuer = decode(IssuerOptions, _table(table, "issuer"), "[issuer]", folder)
    signing = decode(SigningOptions, _table(table, "signing"), "[signing]", folder)
    for service in signing.key_forms:
        _check_service(service, issuer.services, "[signing.key_forms]")
    backends = [_decode_backend(item, f"[[backends]] {n}", folder) for n, item in _tables(table, "backends")]
    rules = [_decode_rule(item, n, issuer.services, folder) for n, item in _tables(table, "access")]
    if not backends:
        raise ConfigurationError("no backend is configured; add a [[backends]] table")
    refresh = _decode_refresh(_table(table, "refresh"), issuer.services, folder) if "refresh" in table else None
    server = decode(ServerOptions, _table(table, "server") if "server" in table else {}, "[server]", folder)
    memory = decode(MemoryOptions, _table(table, "memory") if "memory" in table else {}, "[memory]", folder)
    throttle = decode(ThrottleOptions, _table(table, "throttle") if "throttle" in table else {}, "[throttle]", folder)
    shown = decode(MetricsOptions, _table(table, "metrics"), "[metrics]", folder) if "metrics" in table else None
    return Config(
        path, issuer, signing, tuple(_named(backends)), tuple(rules), refresh, server, memory, throttle, shown
    )


def _decode_refresh(table: Mapping[str, Any], services: Sequence[str], folder: Path) -> RefreshConfig:
    rest = dict(table)
    store = rest.pop("store", None)
    if not isinstance(store, dict) or not isinstance(type_ := store.get("type"), str):
        raise ConfigurationError('[refresh]: it needs a table [refresh.store] with a type, such as type = "sqlite"')
    options = decode(RefreshOptions, rest, "[refresh]", folder)
    for service in options.except_services:
        _check_service(service, services, "[refresh]")
    where = f"[refresh.store] ({type_})"
    cls = _with_place("[refresh.store]", lambda: load_store(type_))
    return RefreshConfig(
        options, cls, decode(cls.Options, {key: store[key] for key in store if key != "type"}, where, folder)
    )


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = table[key]
    if not isinstance(found, dict):
        raise ConfigurationError(f"'{key}' must be a table: write [{key}]")
    return found


def _tables(table: Mapping[str, Any], key: str) -> Iterable[tuple[int, dict[str, Any]]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConfigurationError(f"'{key}' must be a list of tables: write [[{key}]]")
    return enumerate(found, 1)


def _decode_backend(table: dict[str, Any], where: str, folder: Path) -> BackendOptions:
    rest = dict(table)
    type_ = rest.pop("type", None)
    if not isinstance(type_, str):
        raise ConfigurationError(f"{where}: the key 'type' is missing (for example type = \"htpasswd\")")
    name = rest.pop("name", type_)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: 'name' must be a string that is not empty")
    cls = _with_place(where, lambda: load_backend(type_))
    return BackendOptions(name, cls, decode(cls.Options, rest, f"{where} ({type_})", folder))


def _named(backends: Sequence[BackendOptions]) -> Iterator[BackendOptions]:
    seen: set[str] = set()
    for number, backend in enumerate(backends, 1):
        if backend.name in seen:
            raise ConfigurationError(
                f"[[backends]] {number}: two backends are called '{backend.name}'; give one a name = \"…\" of its own"
            )
        seen.add(backend.name)
        yield backend


def _decode_rule(table: dict[str, Any], number: int, services: Sequence[str], folder: Path) -> Rule:
    where = f"[[access]] {number}"
    options = decode(AccessOptions, table, where, folder)
    for service in options.services or ():
        _check_service(service, services, where)
    try:
        return options.rule(number)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _check_service(service: str, services: Sequence[str], where: str) -> None:
    if service not in services:
        raise ConfigurationError(
            f"{where}: the service '{service}' is not in [issuer] services; {near_match(service, services)}"
        )


def _with_place(where: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _network(text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no address or network such as 192.0.2.0/24: {error}") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
