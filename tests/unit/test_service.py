"""Request → account → granted → response, without HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.accounts import Directory, Person
from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions
from tokenissuer.errors import (
    AccessDenied,
    BackendUnavailable,
    InvalidCredentials,
    InvalidRequest,
    QuotaExceeded,
    UnknownAccount,
)
from tokenissuer.policy import NOBODY, Glob, Policy, Rule
from tokenissuer.scope import Access
from tokenissuer.service import MAX_ANONYMOUS_REPOSITORIES, Password, TokenRequest, TokenService
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import SigningKey


class Fixed(Backend):
    """`alice` with the password `right`, and grants of its own."""

    def __init__(self, *own: str) -> None:
        self.own = frozenset(own)
        self.down = False

    def authenticate(self, username: str, password: str) -> Account:
        if username.lower() != "alice":
            raise UnknownAccount
        if password != "right":
            raise InvalidCredentials
        return Account("alice")

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        if account is None:
            return frozenset()
        if self.down:
            raise BackendUnavailable("down")
        return self.own


def rule(actions: str, *, deny: bool = False, everyone: bool = False) -> Rule:
    return Rule(
        number=1,
        accounts=NOBODY,
        groups=NOBODY,
        authenticated=not everyone,
        everyone=everyone,
        repositories=(Glob("a/**"),),
        catalog=False,
        actions=frozenset(actions.split(",")),
        services=frozenset(),
        networks=(),
        deny=deny,
    )


def service(key: SigningKey, backend: Backend, *rules: Rule, services: tuple[str, ...] = ("one",)) -> TokenService:
    return TokenService(Issuer("x", key, 900, {}), Chain([CachedBackend("memory", backend)]), Policy(rules), services)


def asked(*scopes: Access, login: Password | None = None, to: str = "one", **more: Any) -> TokenRequest:
    return TokenRequest(credentials=login, service=to, requested=scopes, address=None, client_id="", **more)


def repository(name: str, *actions: str) -> Access:
    return Access("repository", name, frozenset(actions))


ALICE = Password("ALICE", "right")


def test_the_subject_is_the_backends_spelling(key: SigningKey) -> None:
    """Never what was typed."""
    response = service(key, Fixed(), rule("pull")).respond(asked(repository("a/b", "pull"), login=ALICE))
    assert (response.subject, response.backend) == ("alice", "memory")
    assert response.granted == (repository("a/b", "pull"),)


def test_rules_and_the_backends_own_grants_add_up_and_a_denial_takes_from_both(key: SigningKey) -> None:
    """And of that, no more than was asked for."""
    rules = (rule("pull"), rule("push", deny=True))
    answered = service(key, Fixed("push", "delete"), *rules).respond(
        asked(repository("a/b", "pull", "push", "delete"), repository("c", "push", "pull"), login=ALICE)
    )
    assert answered.granted == (repository("a/b", "pull", "delete"), repository("c", "push"))


@pytest.mark.parametrize("login", [Password("alice", "wrong"), Password("bob", "right"), Password("", "")])
def test_wrong_credentials_are_never_anonymous(key: SigningKey, login: Password) -> None:
    """Even where anonymous would get it all."""
    one = service(key, Fixed(), rule("pull", everyone=True))
    assert one.respond(asked(repository("a/b", "pull"))).subject == ""
    with pytest.raises(InvalidCredentials):
        one.respond(asked(repository("a/b", "pull"), login=login))


def test_an_outage_while_granting_is_no_lesser_grant(key: SigningKey) -> None:
    """Who cannot be asked has not said no."""
    backend = Fixed("push")
    backend.down = True
    with pytest.raises(BackendUnavailable):
        service(key, backend, rule("pull")).respond(asked(repository("a/b", "pull", "push"), login=ALICE))


def test_nobody_is_denied_only_if_nothing_at_all_is_granted(key: SigningKey) -> None:
    """And never for asking nothing."""
    one = service(key, Fixed("pull"), rule("pull", everyone=True))
    assert one.respond(asked()).granted == ()
    assert one.respond(asked(repository("b", "pull"), repository("a/b", "pull"))).granted == (
        repository("a/b", "pull"),
    )
    with pytest.raises(AccessDenied):
        one.respond(asked(repository("b", "pull")))


def test_who_can_do_something_about_it_is_told_what(key: SigningKey) -> None:
    """Only if nothing is granted at all, and something was requested."""

    class Advising(Fixed):
        def authenticate(self, username: str, password: str) -> Account:
            return Account("alice", advice="log in with another token")

    one = service(key, Advising(), rule("pull"))
    assert one.respond(asked(login=ALICE)).granted == ()
    assert one.respond(asked(repository("a/b", "pull", "push"), login=ALICE)).granted == (repository("a/b", "pull"),)
    with pytest.raises(AccessDenied) as caught:
        one.respond(asked(repository("b", "pull"), login=ALICE))
    assert caught.value.description == "log in with another token"


@pytest.mark.parametrize("to", ["three", "ONE", " one", "one,two", "*"])
def test_a_service_that_is_not_served_is_refused_before_anybody_is_asked(key: SigningKey, to: str) -> None:
    """So that a wrong address costs no login."""

    class Never(Fixed):
        def authenticate(self, username: str, password: str) -> Account:
            raise AssertionError("asked")

    with pytest.raises(InvalidRequest, match="one, two"):
        service(key, Never(), services=("one", "two")).respond(asked(login=ALICE, to=to))


ACTIONS = st.frozensets(st.sampled_from(["pull", "push", "delete", "*", "admin", ""]))
NAMES = st.sampled_from(["a/b", "a", "b", "a//b", "a/../b", "A/b", "a/b/", "", "catalog"])
SCOPES = st.builds(Access, st.sampled_from(["repository", "registry", "x"]), NAMES, ACTIONS)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(SCOPES, max_size=4, unique_by=lambda access: (access.type, access.name)),
    ACTIONS,
    st.sampled_from(["pull", "pull,push", "pull,push,delete"]),
    st.sampled_from(["pull", "push,delete"]),
    st.booleans(),
)
def test_a_token_holds_what_is_asked_and_allowed(
    key: SigningKey, scopes: list[Access], own: frozenset[str], allowed: str, denied: str, logged_in: bool
) -> None:
    """Whatever a backend grants and whatever is asked; and every name in a token is one a registry takes."""
    one = service(key, Fixed(*own), rule(allowed, everyone=True), rule(denied, deny=True, everyone=True))
    try:
        granted = one.respond(asked(*scopes, login=ALICE if logged_in else None)).granted
    except AccessDenied:
        assert not logged_in
        granted = ()
    wanted = {(access.type, access.name): access.actions for access in scopes}
    expected = {}
    for (type_, name), actions in wanted.items():
        if type_ != "repository" or name not in ("a/b", "a", "b", "catalog"):
            continue
        below = name == "a/b"
        may = (set(allowed.split(",")) if below else set()) | (set(own) if logged_in else set())
        may = (may & {"pull", "push", "delete"}) - (set(denied.split(",")) if below else set())
        if got := may if "*" in actions else may & actions:
            expected[name] = got
    assert {access.name: set(access.actions) for access in granted} == expected
    assert all(access.type == "repository" for access in granted)


class Open(Fixed):
    """Knows nobody, and lets everyone pull."""

    def authenticate(self, username: str, password: str) -> Account:
        raise UnknownAccount

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        return frozenset({"pull"}) if account is None else frozenset()


@pytest.mark.parametrize("login", [None, ALICE], ids=["not logged in", "logged in with another source"])
def test_what_a_source_opens_to_everyone_is_open_to_all(key: SigningKey, login: Password | None) -> None:
    """Logging in never takes a right away."""
    chain = Chain([CachedBackend("memory", Fixed()), CachedBackend("open", Open())])
    one = TokenService(Issuer("x", key, 900, {}), chain, Policy([]), ["one"])
    assert one.respond(asked(repository("a/b", "pull", "push"), login=login)).granted == (repository("a/b", "pull"),)


def test_a_source_is_asked_about_few_repositories_for_an_anonymous_caller(key: SigningKey) -> None:
    """Forty invented names would have all of its time. Who has logged in may ask about as many as a token holds."""

    class Counting(Open):
        asked = 0

        def grants(self, account: Account | None, access: Access) -> frozenset[str]:
            self.asked += 1
            return super().grants(account, access)

    wanted = [repository(f"a/b{number}", "pull") for number in range(40)]
    source = Counting()
    assert len(service(key, source).respond(asked(*wanted)).granted) == source.asked == MAX_ANONYMOUS_REPOSITORIES
    chain = Chain([CachedBackend("memory", Fixed()), CachedBackend("open", Counting())])
    one = TokenService(Issuer("x", key, 900, {}), chain, Policy([]), ["one"])
    assert len(one.respond(asked(*wanted, login=ALICE)).granted) == 40


class Limited(Fixed):
    """Has answered too many questions on nobody's behalf."""

    def authenticate(self, username: str, password: str) -> Account:
        raise UnknownAccount

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        raise QuotaExceeded("enough")


@pytest.mark.parametrize("login", [None, ALICE], ids=["not logged in", "logged in with another source"])
def test_what_rules_allow_does_not_depend_on_a_limit_for_questions(key: SigningKey, login: Password | None) -> None:
    """Only who gets nothing at all is told to wait."""
    chain = Chain([CachedBackend("memory", Fixed()), CachedBackend("limited", Limited())])
    one = TokenService(Issuer("x", key, 900, {}), chain, Policy([rule("pull", everyone=True)]), ["one"])
    wanted = [repository("a/b", "pull", "push"), repository("other", "pull")]
    assert one.respond(asked(*wanted, login=login)).granted == (repository("a/b", "pull"),)
    with pytest.raises(QuotaExceeded):
        one.respond(asked(repository("other", "pull"), login=login))


def test_what_ones_own_source_grants_does_not_depend_on_it_either(key: SigningKey) -> None:
    """Strangers use up the questions on nobody's behalf."""

    class Own(Fixed):
        def grants(self, account: Account | None, access: Access) -> frozenset[str]:
            return frozenset({"pull"}) if account else frozenset()

    chain = Chain([CachedBackend("memory", Own()), CachedBackend("limited", Limited())])
    one = TokenService(Issuer("x", key, 900, {}), chain, Policy([]), ["one"])
    granted = one.respond(asked(repository("a/b", "pull", "push"), login=ALICE)).granted
    assert granted == (repository("a/b", "pull"),)


def test_a_source_that_grants_nothing_itself_is_not_asked(key: SigningKey) -> None:
    """And nobody is counted for it."""

    class Asked(Throttle):
        def ask_for_anonymous(self, *_: object) -> frozenset[str]:
            raise AssertionError

    directory = CachedBackend("people", Directory(Person()))
    one = TokenService(
        *(Issuer("x", key, 900, {}), Chain([directory]), Policy([]), ["one"]),
        throttle=Asked(ThrottleOptions(), b"k" * 32),
    )
    with pytest.raises(AccessDenied):
        one.respond(asked(repository("a/b", "pull")))


def test_no_backend_sees_a_refresh_token(key: SigningKey) -> None:
    """A directory of somebody else would have it in its log."""
    directory = Directory(Person())
    with pytest.raises(InvalidCredentials):
        service(key, directory).respond(asked(login=Password("alice", "tir_" + "A" * 43)))
    assert directory.asked == []
