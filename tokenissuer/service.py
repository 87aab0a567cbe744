"""Read this first: request → account → granted access → response.

A `TokenRequest` says who asks and for what. The chain of backends proves who it is, the access rules and the backend
say what is allowed, and the issuer signs what is both requested and allowed. There is no HTTP in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.accounts.throttle import Throttle
from tokenissuer.errors import (
    AccessDenied,
    BackendUnavailable,
    InvalidCredentials,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    RequestError,
    TooManyAttempts,
    UnsupportedGrantType,
)
from tokenissuer.net import IPAddress
from tokenissuer.policy import Caller, Decision, Policy
from tokenissuer.scope import Access
from tokenissuer.sessions.tokens import Client, RefreshTokens, is_refresh_token
from tokenissuer.signing.issuer import AccessToken, Issuer

#: Seconds for all questions about grants in one request, after which no further one is asked: docker waits 15 for
#: everything, and there may be 40 repositories.
MAX_GRANTS_SECONDS: Final = 3.0
#: Repositories about which the backends are asked in one request of an anonymous caller.
MAX_ANONYMOUS_REPOSITORIES: Final = 5


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
    """One request for a token.

    Args:
        credentials: None if none were sent.
        service: the registry's name; empty if the client does not say.
        requested: what the token shall allow.
        address: the client's address; None if it is unknown.
        client_id: what the client calls itself; never an identity.
        agent: its User-Agent; only for lists.
        offline: whether it wants a refresh token.
    """

    credentials: Password | RefreshToken | None
    service: str
    requested: tuple[Access, ...]
    address: IPAddress | None
    client_id: str
    agent: str = ""
    offline: bool = False


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A token, and why it is as it is.

    Args:
        token: the access token.
        subject: the account's name; empty for anonymous.
        backend: the name of the backend that vouches for the account; empty for anonymous.
        service: the registry that it is for.
        granted: what it allows.
        reason: for the log, which rules decided.
        refresh_token: empty unless asked for and issued.
    """

    token: AccessToken
    subject: str
    backend: str
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
        services: the registries served, at least one.
        refresh: knows the refresh tokens; None to issue none.
        throttle: limits guessing; None for no limit.
    """

    def __init__(
        self,
        issuer: Issuer,
        chain: Chain,
        policy: Policy,
        services: Sequence[str],
        refresh: RefreshTokens | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.issuer: Final = issuer
        self.chain: Final = chain
        self.policy: Final = policy
        self.services: Final = tuple(services)
        self.refresh: Final = refresh
        self._throttle: Final = throttle

    def respond(self, request: TokenRequest) -> TokenResponse:
        """Answer one request.

        Raises:
            InvalidRequest: for a registry that is not served here.
            InvalidCredentials: if credentials were sent and are wrong; they never count as none.
            AccessDenied: if nothing of what was requested is granted, and nobody is logged in or the account's backend
                knows what to do about it.
            UnsupportedGrantType: for a refresh token, if none are issued here.
            TooManyAttempts: if there were too many wrong passwords before.
            BackendUnavailable: if a backend cannot answer.
        """
        service = self._service(request.service)
        login = self._login(request, service)
        if login is None:
            caller = Caller(None, service, request.address)
        else:
            caller = Caller(login.account, service, request.address, login.backend.name)
        allowed, reason = self._authorize(caller, login, request.requested)
        if request.requested and not allowed:
            if login is None:
                raise AccessDenied(reason=reason)
            if login.account.advice:
                raise AccessDenied(login.account.advice, reason=reason)
        subject, backend = (login.account.name, login.backend.name) if login else ("", "")
        granted = self.issuer.fitting(subject, service, allowed)
        if len(granted) < len(allowed):
            reason += f"; the last {len(allowed) - len(granted)} are left out, for which the token has no room"
        valid_until = login.account.valid_until if login else None
        token = self.issuer.issue(subject, service, granted, backend=backend, valid_until=valid_until)
        refresh_token = self._refresh_token(request, service, login) if login and request.offline else ""
        return TokenResponse(token, subject, backend, service, granted, reason, refresh_token)

    def revoke(self, token: str) -> None:
        """End a refresh token.

        Raises:
            NotFound: if none are issued here.
            BackendUnavailable: if the end cannot be written.
        """
        if self.refresh is None:
            raise NotFound("/revoke")
        self.refresh.revoke(token)

    def _service(self, requested: str) -> str:
        if requested in self.services:
            return requested
        served = ", ".join(self.services)
        if requested:
            raise InvalidRequest(f"unknown service '{requested[:100]}'; served here: {served}")
        if len(self.services) == 1:
            return self.services[0]
        raise InvalidRequest(f"the parameter service is missing; served here: {served}")

    def _login(self, request: TokenRequest, service: str) -> Login | None:
        credentials = request.credentials
        if credentials is None:
            return None
        if isinstance(credentials, Password):
            return self._authenticate(credentials, request.address)
        if self.refresh is not None:
            return self.refresh.redeem(credentials.text, self.chain, _client(request, service))
        if credentials.by_grant:
            raise UnsupportedGrantType("this server issues no refresh tokens; log in again with your password")
        raise InvalidCredentials(reason="a refresh token, but none are issued here")

    def _authenticate(self, credentials: Password, address: IPAddress | None) -> Login:
        name, password = credentials.username, credentials.password
        if is_refresh_token(password):
            # It is nobody's password, and no backend may see it.
            raise InvalidCredentials(
                "this password is a refresh token; log in with your password",
                reason="a refresh token in the place of the password",
                is_guess=False,
            )
        if self._throttle is None:
            return self.chain.authenticate(name, password)
        return self._throttle.run(name, password, address, lambda turn: self.chain.authenticate(name, password, turn))

    def _refresh_token(self, request: TokenRequest, service: str, login: Login) -> str:
        """Return the refresh token for the answer: a new one after a password, else the same one again."""
        if isinstance(request.credentials, RefreshToken):
            return request.credentials.text
        if self.refresh is None or request.credentials is None:
            return ""
        return self.refresh.issue(login, request.credentials.password, _client(request, service))

    def _authorize(
        self, caller: Caller, login: Login | None, requested: Sequence[Access]
    ) -> tuple[tuple[Access, ...], str]:
        granted, reasons, spent, asked = [], [], 0.0, 0
        refusal: RequestError | None = None
        for access in requested:
            decision = self.policy.decide(caller, access)
            more: frozenset[str] = frozenset()
            # No backend is asked about what the rules have decided: it may be down, or slow. For an anonymous caller it
            # is asked about a few repositories only: else anybody could take all of its time.
            is_open = access.is_repository and not access.actions <= decision.allowed | decision.denied
            if self.chain.may_grant and is_open and (login is not None or asked < MAX_ANONYMOUS_REPOSITORIES):
                asked += 1
                if spent > MAX_GRANTS_SECONDS:
                    raise BackendUnavailable("the account source is too slow for all that is requested")
                started = time.monotonic()
                try:
                    more = self._ask_backends(caller, login, access)
                except (TooManyAttempts, QuotaExceeded) as error:
                    # What the rules allow is granted in any case.
                    refusal = error
                spent += time.monotonic() - started
            grant = decision.grant(access, more)
            if grant.actions:
                granted.append(grant)
            reasons.append(_reason(access, decision, grant, login))
        if refusal is not None and not granted:
            raise refusal
        # Too little access is not an error:
        # https://distribution.github.io/distribution/spec/auth/token/#requesting-a-token
        return tuple(granted), "; ".join(reasons)

    def _ask_backends(self, caller: Caller, login: Login | None, access: Access) -> frozenset[str]:
        if login is None and self._throttle is not None:
            question = f"{access.name}:{sorted(access.actions)}"
            ask = self._throttle.ask_for_anonymous
            return ask(question, caller.address, lambda: self.chain.grants(None, access))
        return self.chain.grants(login, access)


def _client(request: TokenRequest, service: str) -> Client:
    return Client(service, request.client_id, request.agent, str(request.address or ""))


def _reason(access: Access, decision: Decision, grant: Access, login: Login | None) -> str:
    """Say for the log what decided on one resource, and why the rest is not granted."""
    decided = f"{access.type}:{access.name} {decision.reason}"
    if grant.actions == access.actions <= decision.allowed:
        return decided
    parts = [decided]
    if by_backend := grant.actions - decision.allowed:
        parts.append(f"{_listed(by_backend)}: granted by {login.backend.name if login else 'a backend'}")
    missing = access.actions - grant.actions - ({"*"} if grant.actions else set())
    if denied := missing & decision.denied:
        unknown = "" if login is None or login.account.groups_known else ", and the groups of this login are not known"
        parts.append(f"{_listed(denied)}: a rule denies it{unknown}")
    if not_granted := missing - decision.denied:
        parts.append(f"{_listed(not_granted)}: nothing grants it")
    return ", ".join(parts)


def _listed(actions: Iterable[str]) -> str:
    return "+".join(sorted(actions))
