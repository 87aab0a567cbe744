"""How far a login goes: in time, for a credential made for one purpose, and what everyone may without one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jwt
import pytest

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.errors import AccessDenied, BackendUnavailable
from tokenissuer.policy import Glob, Names, Policy, Rule
from tokenissuer.scope import Access
from tokenissuer.service import Password, TokenRequest, TokenResponse, TokenService
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import SigningKey

NOW = 1_700_000_000.0
ALICE = Account("alice", frozenset({"dev"}))
OWN = "alice/app"


@dataclass(frozen=True)
class Grants:
    """What a source says."""

    account: Account = ALICE
    own: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()
    is_down: bool = False


class Vouching(Backend):
    """A source that takes every password for one account's."""

    options: Grants
    asked = 0

    def authenticate(self, username: str, password: str) -> Account:
        """Say yes."""
        return self.options.account

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        """Say what is configured."""
        actions = self.options.public if account is None else self.options.own
        self.asked += 1
        if self.options.is_down:
            raise BackendUnavailable("down")
        return actions


def rule(*names: str, deny: bool = False, actions: str = "pull push", **who: Any) -> Rule:
    """A rule about these repositories."""
    everybody: dict[str, Any] = {"authenticated": False, "everyone": False, **who}
    everybody |= {key: Names(who.get(key, ())) for key in ("accounts", "groups")}
    return Rule(
        number=1,
        **everybody,
        repositories=tuple(map(Glob, names)),
        catalog=False,
        actions=frozenset(actions.split()),
        services=frozenset(),
        networks=(),
        deny=deny,
    )


def respond(
    key: SigningKey, rules: list[Rule], *options: Grants, login: bool = True, asked: str = OWN
) -> TokenResponse:
    """The answer to one request."""
    issuer = Issuer("test", key, 900, {}, clock=lambda: NOW)
    chain = Chain([CachedBackend(f"source{number}", Vouching(option)) for number, option in enumerate(options)])
    service = TokenService(issuer, chain, Policy(rules), ["registry"])
    credentials = Password("alice", "right") if login else None
    access = Access("repository", asked, frozenset({"pull", "push"}))
    return service.respond(TokenRequest(credentials, "registry", (access,), None, "test"))


def granted(response: TokenResponse) -> frozenset[str]:
    """The actions on the one repository asked for."""
    return frozenset(action for access in response.granted for action in access.actions)


@pytest.mark.parametrize(
    "who",
    [{"accounts": frozenset({"alice"})}, {"groups": frozenset({"dev"})}, {"authenticated": True}],
    ids=["account", "group", "logged in"],
)
@pytest.mark.parametrize("name", [OWN, "{account}/**", "**"])
def test_rules_for_an_account_do_not_serve_a_credential_made_for_one_purpose(
    key: SigningKey, who: dict[str, Any], name: str
) -> None:
    """Else any CI job in the account's name could write where the account may."""
    rules = [rule(name, **who)]
    assert granted(respond(key, rules, Grants())) == {"pull", "push"}
    assert not granted(respond(key, rules, Grants(replace(ALICE, delegated=True))))


def test_what_the_source_grants_and_everyone_may_holds_for_it(key: SigningKey) -> None:
    """That is its purpose."""
    job = replace(ALICE, delegated=True)
    assert granted(respond(key, [], Grants(job, own=frozenset({"push"})))) == {"push"}
    assert granted(respond(key, [rule("**", actions="pull", everyone=True)], Grants(job))) == {"pull"}


@pytest.mark.parametrize("who", [{"accounts": frozenset({"alice"})}, {"groups": frozenset({"dev"})}])
def test_denials_for_an_account_hold_for_it_too(key: SigningKey, who: dict[str, Any]) -> None:
    """It never gets more than the account itself."""
    job = Grants(replace(ALICE, delegated=True), own=frozenset({"pull", "push"}))
    assert granted(respond(key, [rule("**", actions="push", deny=True, **who)], job)) == {"pull"}


@pytest.mark.parametrize(("left", "lifetime"), [(None, 900), (5000, 900), (900, 900), (120, 120), (60, 60)])
def test_no_token_outlives_what_its_source_vouches_for(key: SigningKey, left: float | None, lifetime: int) -> None:
    """In the claim and in the answer."""
    valid_until = None if left is None else NOW + left
    response = respond(key, [], Grants(replace(ALICE, valid_until=valid_until)))
    assert response.token.expires_in == lifetime
    claims = jwt.decode(response.token.text, options={"verify_signature": False})
    assert claims["exp"] == NOW + lifetime


def test_everyone_may_what_any_source_grants_to_everyone(key: SigningKey) -> None:
    """Whoever is not logged in belongs to no source."""
    pull = Grants(public=frozenset({"pull"}))
    assert granted(respond(key, [], Grants(), pull, login=False)) == {"pull"}
    with pytest.raises(AccessDenied):
        respond(key, [], Grants(), Grants(), login=False)


def test_a_grant_to_everyone_does_not_get_past_a_denial(key: SigningKey) -> None:
    """Denials win."""
    pull = Grants(public=frozenset({"pull"}))
    with pytest.raises(AccessDenied):
        respond(key, [rule("**", actions="pull push", deny=True, everyone=True)], pull, login=False)


@pytest.mark.parametrize("login", [True, False])
def test_what_the_rules_have_settled_does_not_need_the_source(key: SigningKey, login: bool) -> None:
    """An outage of it stops only what depends on it."""
    down = Grants(is_down=True)
    assert granted(respond(key, [rule("**", everyone=True)], down, login=login)) == {"pull", "push"}
    with pytest.raises(BackendUnavailable):
        respond(key, [rule("**", actions="pull", everyone=True)], down, login=login)


def test_a_slow_source_is_not_asked_about_every_repository(key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may name forty, and a client waits fifteen seconds."""
    monkeypatch.setattr("tokenissuer.service.MAX_GRANTS_SECONDS", -1.0)
    with pytest.raises(BackendUnavailable):
        respond(key, [], Grants(own=frozenset({"pull"})))
    assert granted(respond(key, [rule("**", everyone=True)], Grants())) == {"pull", "push"}
