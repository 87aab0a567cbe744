"""The configuration as values, and the application that is built from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenissuer.accounts.backend import Account, Backend, WantedGroups
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.limit import Threads
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions
from tokenissuer.config.running import Parts, Running, file_stamps
from tokenissuer.diagnosis import Finding, Findings, Severity, log_findings
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
from tokenissuer.options import files_in, near_match, with_place
from tokenissuer.policy import Caller, Policy, Rule
from tokenissuer.policy.expectation import TestOptions
from tokenissuer.policy.findings import allowance_findings, name_findings
from tokenissuer.service import TokenService
from tokenissuer.sessions.store import Store
from tokenissuer.sessions.tokens import RefreshOptions, RefreshTokens
from tokenissuer.signing.issuer import Issuer, IssuerOptions
from tokenissuer.signing.keys import KeyForm, SigningKey, SigningOptions, load_signing_key
from tokenissuer.signing.rotation import Rotation
from tokenissuer.web.app import Application
from tokenissuer.web.browsers import AllowedOrigins
from tokenissuer.web.proxies import ServerOptions

_log: Final = logging.getLogger("tokenissuer")

#: Requests answered at once by default.
THREADS: Final = 128


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
        return with_place(f"backend '{self.name}'", lambda: self.cls(self.options))


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

    def service(self, given: str | None) -> str:
        """Return the registry that an option names; the first one if it names none.

        Raises:
            ConfigurationError: if none of that name is served.
        """
        services = self.issuer.services
        if given is None or given in services:
            return given or services[0]
        raise ConfigurationError(f"--service: '{given}' is not in [issuer] services; {near_match(given, services)}")

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
        with_place(str(self.signing.certificate), lambda: key.expiry(time.time()))
        issuer = self.make_issuer(key)
        with ExitStack() as undo:
            parts = Parts(before, undo)
            waiting = parts.get(("threads", threads), lambda: Threads(threads))
            refresh = parts.get(
                self.refresh, self.open_refresh, lambda tokens: tokens.store.close() if tokens else None
            )
            # The same in all processes. With another signing key, backends are made again.
            secret = key.derive("tokenissuer refusals")
            backends = [self._cached(backend, parts, waiting, secret, refresh) for backend in self.backends]
            chain, policy = Chain(backends), Policy(self.rules)
            throttle = parts.get(
                (self.throttle, key.thumbprint, chain.bans_servers), lambda: self._throttle(key, chain)
            )
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

    def _cached(
        self, config: BackendConfig, parts: Parts, threads: Threads, secret: bytes, refresh: RefreshTokens | None
    ) -> CachedBackend:
        groups_wanted = self.groups_wanted(config.name)

        def make() -> CachedBackend:
            backend = config.build()
            backend.groups_wanted = groups_wanted
            refusals = Refusals(config.name, secret, refresh.store if refresh else None)
            return CachedBackend(config.name, backend, self.cache, threads, observe=observe_backend, refusals=refusals)

        return parts.get(
            (config, self.cache, threads, secret, refresh, groups_wanted, file_stamps(files_in(config.options))),
            make,
            lambda cached: cached.backend.close(),
        )

    def _report(self, backends: Sequence[CachedBackend]) -> None:
        """Write to the log what rules and account files say that cannot be meant."""
        listings = {cached.name: cached.backend.listing() for cached in backends}
        for name, listing in listings.items():
            UNUSABLE_ACCOUNTS.labels(name).set(len(listing.unusable) if listing else 0)
            if listing:
                log_findings(_log, listing.findings(name))
        may_grant = any(cached.backend.may_grant for cached in backends)
        log_findings(_log, allowance_findings(self.rules, may_grant=may_grant))
        log_findings(_log, name_findings(self.rules, listings))

    def groups_wanted(self, backend: str) -> WantedGroups:
        """Return the groups that access rules ask for of this backend's accounts."""
        rules = [rule for rule in self.rules if not rule.backends or backend in rule.backends]
        return WantedGroups(
            frozenset().union(*(rule.groups.exact | rule.except_groups.exact for rule in rules)),
            any(rule.needs_all_groups for rule in rules),
            any(rule.spares_who_hides_groups for rule in rules),
        )

    def _throttle(self, key: SigningKey, chain: Chain) -> Throttle | None:
        if not self.throttle.account and not self.throttle.address and not chain.bans_servers:
            return None
        return Throttle(self.throttle, key.derive("tokenissuer throttle"))

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

    def store_files(self) -> Sequence[Path]:
        """Return the files of the session store."""
        return tuple(files_in(self.refresh.store_options)) if self.refresh else ()


def _listed(actions: Iterable[str]) -> str:
    return ", ".join(sorted(actions)) or "nothing"


def _health(backends: Sequence[CachedBackend], refresh: RefreshTokens | None) -> Health:
    checks = {backend.name: backend.backend.check for backend in backends}
    return Health(checks if refresh is None else checks | {STORE: refresh.store.check})
