"""Read this first: request → account → granted → response. No HTTP in it.

A `TokenRequest` says who asks and for what. The chain of backends proves who it is, the access rules and the backend
say what is allowed, and the issuer signs what is both asked and allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tokenissuer.backend import Authenticated, Chain
from tokenissuer.errors import (
    AccessDenied,
    BackendUnavailable,
    InvalidCredentials,
    InvalidRequest,
    NotFound,
    UnsupportedGrantType,
)
from tokenissuer.health import Health
from tokenissuer.issuer import AccessToken, Issuer
from tokenissuer.policy import REPOSITORY_ACTIONS, Caller, Decision, IPAddress, Policy
from tokenissuer.refresh import Refresh, RefreshTokens
from tokenissuer.scope import Access
from tokenissuer.throttle import Throttle

#: Seconds for all questions about rights in one request, after which no further one is asked: docker waits 15 for the
#: whole, and there may be 40 repositories.
PATIENCE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Password:
    """A user name and password as the client sent them."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as the client sent it.

    Args:
        text: the token.
        by_grant: whether it came with `grant_type=refresh_token`; else in place of a password.
    """

    text: str = field(repr=False)
    by_grant: bool


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request for a token, understood.

    Args:
        credentials: None if none were sent.
        service: the registry's name; empty if the client does not say.
        asked: what the token shall allow.
        address: where the request comes from; None if that cannot be told.
        client_id: what the client calls itself; never an identity.
        agent: its User-Agent; for lists only.
        offline: whether it wants a refresh token.
    """

    credentials: Password | RefreshToken | None
    service: str
    asked: tuple[Access, ...]
    address: IPAddress | None
    client_id: str
    agent: str = ""
    offline: bool = False


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A token, and how it came about.

    Args:
        token: the access token.
        subject: the account's name; empty for anonymous.
        source: the backend that vouches for the account; empty for anonymous.
        service: the registry it is for.
        granted: what it allows.
        reason: for the log, which rules decided.
        refresh_token: empty unless asked for and given.
    """

    token: AccessToken
    subject: str
    source: str
    service: str
    granted: tuple[Access, ...]
    reason: str
    refresh_token: str = field(default="", repr=False)


class TokenService:
    """Answers token requests.

    Args:
        issuer: signs.
        chain: knows the accounts.
        policy: knows the access rules.
        services: the registries served; at least one.
        refresh: knows the refresh tokens; None to issue none.
        realm: the URL clients are sent to.
        throttle: slows guessing down; None to let everybody guess.
    """

    def __init__(
        self,
        issuer: Issuer,
        chain: Chain,
        policy: Policy,
        services: Sequence[str],
        refresh: RefreshTokens | None = None,
        realm: str = "",
        throttle: Throttle | None = None,
    ) -> None:
        self.issuer: Final = issuer
        self.chain: Final = chain
        self.policy: Final = policy
        self.services: Final = tuple(services)
        self.refresh: Final = refresh
        self.realm: Final = realm
        self._throttle: Final = throttle
        self.health: Final = Health(self._checks())

    def respond(self, request: TokenRequest) -> TokenResponse:
        """Answer one request.

        Raises:
            InvalidRequest: for a registry that is not served here.
            InvalidCredentials: if credentials were sent and are wrong; they are never taken for none.
            AccessDenied: if nobody is logged in and nothing of what was asked for is open to everyone.
            UnsupportedGrantType: for a refresh token, if none are issued here.
            TooManyAttempts: if there were too many wrong passwords before.
            BackendUnavailable: if an account source cannot tell.
        """
        service = self._service(request.service)
        client = Refresh(service, request.client_id, request.agent, str(request.address or ""))
        login = self._login(request, client)
        caller = Caller(login.account if login else None, service, request.address)
        granted, reason = self._authorize(caller, login, request.asked)
        if login is None and request.asked and not granted:
            raise AccessDenied(reason=reason)
        subject = login.account.name if login else ""
        valid_until = login.account.valid_until if login else None
        token = self.issuer.issue(subject, service, granted, valid_until=valid_until)
        refresh_token = self._refresh_token(request, login, client) if request.offline and login else ""
        source = login.source.name if login else ""
        return TokenResponse(token, subject, source, service, granted, reason, refresh_token)

    def revoke(self, token: str) -> None:
        """End a refresh token.

        Raises:
            NotFound: if none are issued here.
            BackendUnavailable: if that cannot be kept.
        """
        if self.refresh is None:
            raise NotFound
        self.refresh.revoke(token)

    def close(self) -> None:
        """Let go of what the backends and the store hold."""
        self.chain.close()
        if self.refresh is not None:
            self.refresh.store.close()

    def _checks(self) -> dict[str, Callable[[], None]]:
        checks = {source.name: source.backend.check for source in self.chain.sources}
        return checks if self.refresh is None else checks | {"refresh.store": self.refresh.store.check}

    def _service(self, asked: str) -> str:
        if asked in self.services:
            return asked
        served = ", ".join(self.services)
        if asked:
            raise InvalidRequest(f"unknown service '{asked[:100]}'; served here: {served}")
        if len(self.services) == 1:
            return self.services[0]
        raise InvalidRequest(f"the parameter service is missing; served here: {served}")

    def _login(self, request: TokenRequest, client: Refresh) -> Authenticated | None:
        credentials = request.credentials
        if credentials is None:
            return None
        if isinstance(credentials, Password):
            return self._authenticate(credentials, request.address)
        if self.refresh is not None:
            return self.refresh.redeem(credentials.text, self.chain, client)
        if credentials.by_grant:
            raise UnsupportedGrantType("this server issues no refresh tokens; log in again with your password")
        raise InvalidCredentials(reason="a refresh token, but none are issued here")

    def _authenticate(self, credentials: Password, address: IPAddress | None) -> Authenticated:
        if self._throttle is None:
            return self.chain.authenticate(credentials.username, credentials.password)
        name, password = credentials.username, credentials.password
        with self._throttle.attempt(name, password, address, self.chain.is_guessable(name, password)):
            return self.chain.authenticate(name, password)

    def _refresh_token(self, request: TokenRequest, login: Authenticated, client: Refresh) -> str:
        """Return the refresh token for the answer: a new one after a password, else the same one again."""
        if isinstance(request.credentials, RefreshToken):
            return request.credentials.text
        if self.refresh is None or request.credentials is None:
            return ""
        keepsake = login.source.backend.keepsake(login.account, request.credentials.password)
        if not self.refresh.offers(login, keepsake, client):
            return ""
        return self.refresh.issue(login, keepsake, client)

    def _authorize(
        self, caller: Caller, login: Authenticated | None, asked: Sequence[Access]
    ) -> tuple[tuple[Access, ...], str]:
        granted, reasons, spent = [], [], 0.0
        for access in asked:
            decision = self.policy.decide(caller, access)
            more: frozenset[str] = frozenset()
            # What the rules have settled no source is asked: it may be down, or slow.
            if access.is_repository and not access.actions <= decision.allowed | decision.denied:
                if spent > PATIENCE:
                    raise BackendUnavailable("the account source is too slow for all that is asked")
                begun = time.monotonic()
                # A plug-in may grant what a registry knows, and nothing else.
                more = self._backend_grants(login, access) & REPOSITORY_ACTIONS
                spent += time.monotonic() - begun
            grant = decision.grant(access, more)
            if grant.actions:
                granted.append(grant)
            granted_by = login.source.name if login else "a backend"
            reasons.append(_reason(access, decision, grant, granted_by))
        # Too little access is no error: https://distribution.github.io/distribution/spec/auth/token/#requesting-a-token
        return tuple(granted), "; ".join(reasons)

    def _backend_grants(self, login: Authenticated | None, access: Access) -> frozenset[str]:
        granted: frozenset[str] = frozenset()
        if login is not None:
            with login.source.named():
                granted = login.source.backend.grants(login.account, access)
        # What is open to everyone is open to those who have logged in, too, whichever source knows them.
        for source in self.chain.sources:
            if access.actions <= granted:
                break
            if login is None or source is not login.source:
                with source.named():
                    granted |= source.backend.public_grants(access)
        return granted


def _reason(access: Access, decision: Decision, grant: Access, source: str) -> str:
    """Say for the log what decided on one resource, and for what is not granted what stood against it."""
    said = [f"{access.type}:{access.name} {decision.reason}"]
    if by_source := grant.actions - decision.allowed:
        said.append(f"{_listed(by_source)}: granted by {source}")
    missing = access.actions - grant.actions - ({"*"} if grant.actions else set())
    if forbidden := missing & decision.denied:
        said.append(f"{_listed(forbidden)}: a rule denies it")
    if ungranted := missing - decision.denied:
        said.append(f"{_listed(ungranted)}: nothing grants it")
    return ", ".join(said)


def _listed(actions: Iterable[str]) -> str:
    return "+".join(sorted(actions))
