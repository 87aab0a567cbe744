"""TOML → a running application: find, load, compose. Each table's options stand beside what they configure."""

from __future__ import annotations

import logging
import os
import re
import time
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from tokenissuer.accounts.backend import Account, Backend, Listing, WantedGroups, load_backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.limit import Threads
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions
from tokenissuer.diagnosis import Finding, Findings, Severity, control_findings, log_findings, secret_findings
from tokenissuer.errors import ConfigurationError
from tokenissuer.monitoring.health import Health
from tokenissuer.monitoring.metrics import (
    CERTIFICATE_END,
    STORE,
    UNUSABLE_ACCOUNTS,
    MetricsOptions,
    begin,
    observe_backend,
    observe_request,
)
from tokenissuer.net import is_inner_literal, is_loopback
from tokenissuer.options import decode, files_in, near_match, read_text, secrets_in
from tokenissuer.policy import AccessOptions, Caller, Policy, Rule
from tokenissuer.policy.expectation import TestOptions
from tokenissuer.policy.findings import KnownNames, name_findings, rule_findings
from tokenissuer.service import TokenService
from tokenissuer.sessions.store import Store, load_store
from tokenissuer.sessions.tokens import RefreshOptions, RefreshTokens
from tokenissuer.signing.issuer import Issuer, IssuerOptions
from tokenissuer.signing.keys import KeyForm, SigningKey, SigningOptions, load_signing_key
from tokenissuer.signing.rotation import Rotation
from tokenissuer.web.app import Application
from tokenissuer.web.browsers import AllowedOrigins
from tokenissuer.web.proxies import ServerOptions
from tokenissuer.web.routes import check_pages

T = TypeVar("T")

ENVIRONMENT_VARIABLE: Final = "TOKENISSUER_CONFIG"
FILE_NAME: Final = "tokenissuer.toml"
SYSTEM_FILE: Final = Path("/etc/tokenissuer") / FILE_NAME

_log: Final = logging.getLogger("tokenissuer")

#: Requests answered at once by default.
THREADS: Final = 128
#: Seconds: what a token allows cannot be taken back before it ends.
_LONG_LIFETIME: Final = 3600

# A header of an access rule; what looks like one in a text of several lines is rare, and costs a wrong number only.
_ACCESS_TABLE: Final = re.compile(r"^[ \t]*\[\[[ \t]*[\"']?access[\"']?[ \t]*\]\]", re.MULTILINE)

#: What tells one version of a file from the next; empty if there is no file.
Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RefreshConfig:
    """The `[refresh]` table, and the store that its table `store` names."""

    options: RefreshOptions
    store: type[Store]
    store_options: Any


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """One `[[backends]]` table: which backend, and its own options."""

    name: str
    cls: type[Backend]
    options: Any

    def build(self) -> Backend:
        """Make the backend.

        Raises:
            ConfigurationError: if it cannot work with these options.
        """
        return _with_place(f"backend '{self.name}'", lambda: self.cls(self.options))


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a running application that a reload keeps if nothing about it has changed.

    Args:
        source: everything it was made from, to be compared.
        value: the part, with its remembered answers, counts and connections.
        close: closes it.
    """

    source: object = field(repr=False)
    value: Any
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Running:
    """An application, and what it is made of.

    Args:
        application: answers requests.
        health: whether backends and store can be asked.
        key_id: the thumbprint of the signing key.
        parts: what a reload may keep.
    """

    application: Application
    health: Health
    key_id: str
    parts: tuple[Part, ...] = field(repr=False)

    def close(self, keep: Sequence[Running] = ()) -> None:
        """Close every part.

        Args:
            keep: other applications; the parts that they use stay open.
        """
        kept = [part.value for running in keep for part in running.parts]
        for part in self.parts:
            if not any(part.value is value for value in kept):
                try:
                    part.close()
                except Exception as error:
                    # One plug-in's failure must not end the thread that reads the files again.
                    _log.error("a part of the old configuration could not be closed (%s)", type(error).__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that has been read; nothing is built yet.

    Args:
        path: the file; the folder if there is no file.
    """

    path: Path
    issuer: IssuerOptions
    signing: SigningOptions
    backends: tuple[BackendConfig, ...]
    rules: tuple[Rule, ...]
    tests: tuple[TestOptions, ...]
    refresh: RefreshConfig | None
    server: ServerOptions
    cache: CacheOptions
    throttle: ThrottleOptions
    metrics: MetricsOptions | None

    def load_key(self) -> SigningKey:
        """Read key and certificate.

        Raises:
            ConfigurationError: if they cannot be used.
        """
        return load_signing_key(self.signing.key, self.signing.certificate)

    def files(self) -> frozenset[Path]:
        """Return the files that an application is built from."""
        found = {self.path, self.signing.key, self.signing.certificate}
        return frozenset(found.union(*(files_in(backend.options) for backend in self.backends)))

    def key_forms(self) -> dict[str, KeyForm]:
        """Return how tokens name their key, for the services where the configuration says so."""
        return {service: KeyForm(form) for service, form in self.signing.key_forms.items()}

    def make_issuer(self, key: SigningKey, forms: Mapping[str, KeyForm] | None = None) -> Issuer:
        """Return what signs tokens as this configuration says.

        Args:
            key: signs.
            forms: how tokens name their key for each service, if not as the configuration says.
        """
        issuer = self.issuer
        forms = self.key_forms() if forms is None else forms
        return Issuer(issuer.name, key, issuer.lifetime, forms, issuer.reuse, issuer.max_size)

    def open_refresh(self) -> RefreshTokens | None:
        """Open the session store; None if no refresh tokens are issued.

        Raises:
            ConfigurationError: if it cannot be used.
        """
        if self.refresh is None:
            return None
        return RefreshTokens(self.refresh.store(self.refresh.store_options), self.refresh.options)

    def open_chain(self) -> Chain:
        """Make the backends, without a cache.

        Raises:
            ConfigurationError: if one cannot work with its options.
        """
        return Chain([CachedBackend(backend.name, backend.build(), CacheOptions(0, 0)) for backend in self.backends])

    def application(self) -> Application:
        """Build the WSGI application.

        Raises:
            ConfigurationError: if any part cannot be used.
        """
        return self.build().application

    def build(self, threads: int = THREADS, before: Running | None = None) -> Running:
        """Build the WSGI application and everything it needs.

        Args:
            threads: requests that the server answers at once.
            before: the application that this one replaces.

        Raises:
            ConfigurationError: if any part cannot be used.
        """
        if failed := [f"{finding.subject}: {finding.fact}" for finding in self.test_findings()]:
            raise ConfigurationError(f"{self.path}: {'; '.join(failed)}")
        key = self.load_key()
        _with_place(str(self.signing.certificate), lambda: key.expiry(time.time()))
        issuer = self.make_issuer(key)
        with ExitStack() as undo:
            parts = _Parts(before, undo)
            waiting = parts.get(("threads", threads), lambda: Threads(threads))
            refresh = parts.get(
                self.refresh, self.open_refresh, lambda tokens: tokens.store.close() if tokens else None
            )
            # The same in all processes. With another signing key, backends are made again.
            secret = key.derive("tokenissuer refusals")
            backends = [
                parts.backend(backend, self.cache, waiting, secret, refresh, self.groups_wanted(backend.name))
                for backend in self.backends
            ]
            throttle = parts.get((self.throttle, key.thumbprint), lambda: self._throttle(key))
            chain, policy = Chain(backends), Policy(self.rules)
            service = TokenService(issuer, chain, policy, self.issuer.services, refresh, throttle)
            health = parts.get([*backends, refresh], lambda: _health(backends, refresh))
            begin(backend.name for backend in backends)
            self._report(backends)
            CERTIFICATE_END.set(key.certificate.not_valid_after_utc.timestamp())
            application = Application(
                service,
                self.server.proxies(),
                self.issuer.realm,
                health.prove,
                observe_request,
                AllowedOrigins(self.server.allowed_origins) if self.server.allowed_origins else None,
            )
            undo.pop_all()
        return Running(application, health, key.thumbprint, tuple(parts.made))

    def _report(self, backends: Sequence[CachedBackend]) -> None:
        """Write to the log what rules and account files say that cannot be meant."""
        listings = {cached.name: cached.backend.listing() for cached in backends}
        for name, listing in listings.items():
            UNUSABLE_ACCOUNTS.labels(name).set(len(listing.unusable) if listing else 0)
            log_findings(_log, unusable_findings(name, listing))
        log_findings(_log, name_findings(self.rules, known_names(listings)))

    def groups_wanted(self, backend: str) -> WantedGroups:
        """Return the groups that access rules ask for of this backend's accounts."""
        rules = [rule for rule in self.rules if not rule.backends or backend in rule.backends]
        return WantedGroups(
            frozenset().union(*(rule.groups.exact | rule.except_groups.exact for rule in rules)),
            any(rule.needs_all_groups for rule in rules),
            any(rule.spares_who_hides_groups for rule in rules),
        )

    def _throttle(self, key: SigningKey) -> Throttle | None:
        if not self.throttle.account and not self.throttle.address:
            return None
        return Throttle(self.throttle, key.derive("tokenissuer throttle"))

    def findings(self, now: float) -> Findings:
        """Report on key, certificate, realm and rules.

        Args:
            now: seconds since 1970.
        """
        try:
            key = self.load_key()
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, "[signing]", str(error))
        else:
            yield from key.findings(str(self.signing.certificate), now)
            yield from self._rotation_findings()
        yield from self._file_findings()
        yield from self._issuer_findings()
        yield from self._rule_findings()
        yield from self.test_findings()

    def test_findings(self) -> Findings:
        """Report on `[[test]]` tables that the access rules do not meet."""
        policy = Policy(self.rules)
        for number, test in enumerate(self.tests, 1):
            account = Account(test.account, test.groups) if test.account else None
            service, backend = test.service or self.issuer.services[0], test.backend or self.backends[0].name
            caller = Caller(account, service, test.client, backend if account else "")
            found = policy.decide(caller, test.access).grant(test.access, frozenset()).actions
            if found != test.actions:
                yield Finding(
                    Severity.ERROR,
                    f"[[test]] {number}{f' ({test.comment})' if test.comment else ''}",
                    f"{test.account or 'nobody'} gets {_listed(found)} of {test.scope}, and the test wants "
                    f"{_listed(test.actions)}",
                    "correct a rule or the test; `tokenissuer explain` says which rule decides",
                )

    @property
    def rotation(self) -> Rotation:
        """The key files."""
        return Rotation(self.signing.key, self.signing.certificate, self.signing.key)

    def _file_findings(self) -> Findings:
        keys = self.rotation
        for key in (keys.key, keys.next_key, keys.previous_key):
            yield from secret_findings(key, "the private key, and so sign their own tokens")
        for secret in secrets_in([*(backend.options for backend in self.backends), self.throttle, self.refresh]):
            yield from secret_findings(secret, "the secret")
        for store in self.store_files():
            yield from secret_findings(store, "the sessions")
            if not store.parent.is_dir():
                yield Finding(
                    Severity.ERROR,
                    "[refresh.store]",
                    f"there is no folder {store.parent}, so `serve` does not start",
                    f"make it, writable by the user that serves: install -d -o tokenissuer -m 0700 {store.parent}",
                )
        # Backends look at their own files.
        for path in sorted({self.path, self.signing.certificate} | {file.parent for file in self.files()}):
            yield from control_findings(path)

    def store_files(self) -> Sequence[Path]:
        """Return the files of the session store."""
        return tuple(files_in(self.refresh.store_options)) if self.refresh else ()

    def _rotation_findings(self) -> Findings:
        try:
            unfinished = self.rotation.unfinished
        except ConfigurationError as error:
            yield Finding(Severity.WARNING, "[signing]", str(error))
            return
        if unfinished:
            yield Finding(
                Severity.WARNING,
                "[signing]",
                f"`tokenissuer {unfinished}` was ended before it had finished",
                "run `tokenissuer keys list`, which puts the keys in order",
            )

    def _issuer_findings(self) -> Findings:
        realm = urllib.parse.urlsplit(self.issuer.realm)
        if realm.scheme == "http" and not is_loopback(realm.hostname or ""):
            yield Finding(
                Severity.WARNING,
                "[issuer] realm",
                f"clients send their passwords to {self.issuer.realm} in clear text, and some refuse to",
                "put a proxy with TLS in front and use its https address",
            )
        if is_inner_literal(realm.hostname or ""):
            yield Finding(
                Severity.WARNING,
                "[issuer] realm",
                f"its host {realm.hostname} is a loopback or private address, which crane, Helm and oras refuse",
                "use a name, such as localhost",
            )
        if self.issuer.lifetime > _LONG_LIFETIME:
            yield Finding(
                Severity.WARNING,
                "[issuer] lifetime",
                f"a token is valid for {self.issuer.lifetime} seconds, whatever is revoked in that time",
                f"use at most {_LONG_LIFETIME}; a push outlives it only if one layer takes longer",
            )

    def _rule_findings(self) -> Findings:
        grants = any(backend.cls.grants is not Backend.grants for backend in self.backends)
        if not grants and not any(not rule.deny for rule in self.rules):
            yield Finding(
                Severity.WARNING,
                "[[access]]",
                "no rule allows anything; only what a backend itself grants can be pulled or pushed",
                'add one: authenticated = true, repositories = ["{account}/**"], actions = ["pull", "push"]',
            )
        yield from rule_findings(self.rules)
        makers = [backend.name for backend in self.backends if backend.cls.users_make_groups]
        for rule in self.rules:
            subject = f"[[access]] {rule.number}"
            if makers and len(self.backends) > 1 and rule.groups and not rule.backends:
                yield Finding(
                    Severity.WARNING,
                    subject,
                    f"a user of {makers[0]} who makes a group of one of these names is meant as well",
                    f'say whose groups are meant: backends = ["{self.backends[0].name}"]',
                )


class _Parts:
    """The parts of a new application: each is made, or taken from the application that it replaces."""

    def __init__(self, before: Running | None, undo: ExitStack) -> None:
        self._before: Final = before.parts if before else ()
        self._undo: Final = undo
        self.made: Final[list[Part]] = []

    def backend(
        self,
        config: BackendConfig,
        cache: CacheOptions,
        threads: Threads,
        secret: bytes,
        refresh: RefreshTokens | None,
        groups_wanted: WantedGroups,
    ) -> CachedBackend:
        def make() -> CachedBackend:
            built = config.build()
            built.groups_wanted = groups_wanted
            refusals = Refusals(config.name, secret, refresh.store if refresh else None)
            return CachedBackend(config.name, built, cache, threads, observe=observe_backend, refusals=refusals)

        return self.get(
            (config, cache, threads, secret, refresh, groups_wanted, file_stamps(files_in(config.options))),
            make,
            lambda cached: cached.backend.close(),
        )

    def get(self, source: object, make: Callable[[], T], close: Callable[[T], None] = lambda value: None) -> T:
        for part in self._before:
            if part.source == source:
                self.made.append(part)
                kept: T = part.value
                return kept
        value = make()
        self._undo.callback(close, value)
        self.made.append(Part(source, value, lambda: close(value)))
        return value


def unusable_findings(backend: str, listing: Listing | None) -> Findings:
    """Report the accounts of a backend that can never log in, and the lines that are no account's."""
    for line in listing.ignored if listing else ():
        yield Finding(Severity.WARNING, f"backend '{backend}'", f"{line}; until then the line is left out")
    for name, reason in listing.unusable.items() if listing else ():
        yield Finding(Severity.WARNING, f"backend '{backend}'", f"the account '{name}' cannot log in: {reason}")


def known_names(listings: Mapping[str, Listing | None]) -> Mapping[str, KnownNames | None]:
    """Return the names that rules may mean, for each backend; None for a backend that cannot tell."""
    return {name: KnownNames(found.accounts, found.groups) if found else None for name, found in listings.items()}


def _listed(actions: Iterable[str]) -> str:
    return ", ".join(sorted(actions)) or "nothing"


def _health(backends: Sequence[CachedBackend], refresh: RefreshTokens | None) -> Health:
    checks = {backend.name: backend.backend.check for backend in backends}
    return Health(checks if refresh is None else checks | {STORE: refresh.store.check})


def file_stamps(paths: Iterable[Path]) -> tuple[tuple[Path, Stamp], ...]:
    """Return what changes whenever one of these files changes."""
    return tuple((path, _stamp(path)) for path in sorted(paths))


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)


def find_config(given: Path | None) -> Path:
    """Return the configuration file to use.

    Args:
        given: from the command line; if None, the environment variable, the working folder and /etc are tried.

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


def load_config(path: Path | str) -> Config:
    """Read a configuration file.

    Raises:
        ConfigurationError: if anything in it cannot be understood; the text names file, table and key.
    """
    path = Path(path)
    try:
        text = read_text(path)
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None
    return _with_place(str(path), lambda: _decode_config(path, path.absolute().parent, table, text))


def parse_config(table: Mapping[str, Any], folder: Path | str = ".") -> Config:
    """Read a configuration from a table, as the file would hold it.

    Args:
        table: the tables and keys.
        folder: the folder that relative paths start from.

    Raises:
        ConfigurationError: if anything in it cannot be understood.
    """
    return _decode_config(Path(folder), Path(folder).absolute(), table)


def _decode_config(path: Path, folder: Path, table: Mapping[str, Any], text: str = "") -> Config:
    lines = [text.count("\n", 0, found.start()) + 1 for found in _ACCESS_TABLE.finditer(text)]
    known = ("issuer", "signing", "backends", "access", "test", "cache", "metrics", "refresh", "server", "throttle")
    for key in table:
        if key not in known:
            raise ConfigurationError(f"unknown table [{key}]; {near_match(key, known)}")
    for key in ("issuer", "signing"):
        if key not in table:
            raise ConfigurationError(f"the table [{key}] is missing")

    def options(schema: type[T], key: str) -> T:
        return decode(schema, _table(table, key), f"[{key}]", folder)

    issuer, signing = options(IssuerOptions, "issuer"), options(SigningOptions, "signing")
    try:
        check_pages(issuer.realm)
    except ValueError as error:
        raise ConfigurationError(f"[issuer]: {error}") from None
    for service in signing.key_forms:
        _check_service(service, issuer.services, "[signing.key_forms]")
    backends = [_decode_backend(item, f"[[backends]] {n}", folder) for n, item in _tables(table, "backends")]
    if not backends:
        raise ConfigurationError("no backend is configured; add a [[backends]] table")
    return Config(
        path=path,
        issuer=issuer,
        signing=signing,
        backends=tuple(_with_own_names(backends)),
        rules=tuple(
            _decode_rule(item, n, lines, issuer.services, [backend.name for backend in backends], folder)
            for n, item in _tables(table, "access")
        ),
        tests=tuple(
            _decode_test(item, n, issuer.services, [backend.name for backend in backends], folder)
            for n, item in _tables(table, "test")
        ),
        refresh=_decode_refresh(_table(table, "refresh"), issuer.services, folder) if "refresh" in table else None,
        server=options(ServerOptions, "server"),
        cache=options(CacheOptions, "cache"),
        throttle=options(ThrottleOptions, "throttle"),
        metrics=options(MetricsOptions, "metrics") if "metrics" in table else None,
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
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise ConfigurationError(f"'{key}' must be a table: write [{key}]")
    return found


def _tables(table: Mapping[str, Any], key: str) -> Iterable[tuple[int, dict[str, Any]]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConfigurationError(f"'{key}' must be a list of tables: write [[{key}]]")
    return enumerate(found, 1)


def _decode_backend(table: dict[str, Any], where: str, folder: Path) -> BackendConfig:
    rest = dict(table)
    type_ = rest.pop("type", None)
    if not isinstance(type_, str):
        raise ConfigurationError(f"{where}: the key 'type' is missing (for example type = \"htpasswd\")")
    name = rest.pop("name", type_)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: 'name' must be a string that is not empty")
    cls = _with_place(where, lambda: load_backend(type_))
    return BackendConfig(name, cls, decode(cls.Options, rest, f"{where} ({type_})", folder))


def _with_own_names(backends: Sequence[BackendConfig]) -> Iterator[BackendConfig]:
    seen: set[str] = set()
    for number, backend in enumerate(backends, 1):
        if backend.name in seen:
            raise ConfigurationError(
                f"[[backends]] {number}: two backends are called '{backend.name}'; give one its own name = \"…\""
            )
        seen.add(backend.name)
        yield backend


def _decode_rule(
    table: dict[str, Any],
    number: int,
    lines: Sequence[int],
    services: Sequence[str],
    backends: Sequence[str],
    folder: Path,
) -> Rule:
    where = f"[[access]] {number}"
    options = decode(AccessOptions, table, where, folder)
    for service in options.services or ():
        _check_service(service, services, where)
    for backend in options.backends or ():
        if backend not in backends:
            raise ConfigurationError(f"{where}: no backend is called '{backend}'; {near_match(backend, backends)}")
    try:
        return options.rule(number, lines[number - 1] if number <= len(lines) else 0)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _decode_test(
    table: dict[str, Any], number: int, services: Sequence[str], backends: Sequence[str], folder: Path
) -> TestOptions:
    where = f"[[test]] {number}"
    options = decode(TestOptions, table, where, folder)
    if options.service:
        _check_service(options.service, services, where)
    if options.backend and options.backend not in backends:
        raise ConfigurationError(
            f"{where}: no backend is called '{options.backend}'; {near_match(options.backend, backends)}"
        )
    return options


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
