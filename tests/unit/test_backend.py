"""The chain of backends, and what no backend may ever be asked."""

from __future__ import annotations

from typing import Any

import pytest

from tokenissuer.accounts.backend import Account, Backend, load_backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    TokenIssuerError,
    UnknownAccount,
)
from tokenissuer.scope import Access


class Told(Backend):
    """Answers what it is told to."""

    def __init__(self, answer: Account | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        self.closed = 0

    def authenticate(self, username: str, password: str) -> Account:
        self.asked.append((username, password))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed += 1


def chain(*backends: Told) -> Chain:
    return Chain([CachedBackend(f"b{number}", backend) for number, backend in enumerate(backends)])


@pytest.mark.parametrize(
    ("answers", "expected", "asked"),
    [
        ([Account("a"), Account("b")], "a", [1, 0]),
        ([UnknownAccount(), Account("a")], "a", [1, 1]),
        ([InvalidCredentials(), Account("b")], InvalidCredentials, [1, 0]),
        ([BackendUnavailable("x"), Account("b")], BackendUnavailable, [1, 0]),
        ([UnknownAccount(), BackendUnavailable("x"), Account("c")], BackendUnavailable, [1, 1, 0]),
        ([UnknownAccount(), UnknownAccount()], InvalidCredentials, [1, 1]),
        ([RuntimeError("x"), Account("b")], RuntimeError, [1, 0]),
    ],
)
def test_the_first_that_knows_the_name_decides(
    answers: list[Any], expected: str | type[Exception], asked: list[int]
) -> None:
    """An outage or a defect is no "no": nobody further is asked."""
    backends = [Told(answer) for answer in answers]
    if isinstance(expected, str):
        login = chain(*backends).authenticate("a", "b")
        assert login.account.name == expected
        assert login.backend.backend is backends[len([n for n in asked if n]) - 1]
    else:
        with pytest.raises(expected) as caught:
            chain(*backends).authenticate("a", "b")
        assert caught.type is expected
    assert [len(backend.asked) for backend in backends] == asked


class Letters(Told):
    """Knows accounts only in the spelling that it has."""

    def __init__(self, *names: str) -> None:
        super().__init__(UnknownAccount())
        self.names = names

    def lookup(self, name: str, password: str) -> Account:
        if name not in self.names:
            raise InvalidCredentials
        return Account(name)


def test_another_spelling_is_not_the_way_to_become_an_earlier_backends_account() -> None:
    """A later backend folds names as GitLab and directories do, and users choose them there."""
    robots, people = Letters("robot"), Told(Account("robot"))
    with pytest.raises(InvalidCredentials) as caught:
        chain(Letters(), robots, Told(UnknownAccount()), people).authenticate("ROBOT", "right")
    assert caught.value.reason == "'robot' is an account of the backend 'b1', which comes first"
    assert not caught.value.is_guess
    # The password is not sent under another name than the typed one: it would count there.
    assert robots.asked == [("ROBOT", "right")]
    # A job types one name for all, and rules for its user's name do not apply to it.
    people.answer = Account("robot", delegated=True)
    assert chain(robots, people).authenticate("gitlab-ci-token", "right").backend.backend is people
    people.answer = Account("alice")
    assert chain(robots, people).authenticate("alice@example.com", "right").account.name == "alice"


def test_a_locked_accounts_name_is_no_others() -> None:
    """Where a backend can tell that it is there; one that cannot tell has no account for this purpose."""

    class Locks(Letters):
        def find(self, username: str) -> Account:
            raise InvalidCredentials(reason="it is locked") if username in self.names else UnknownAccount

    people = Told(Account("robot"))
    with pytest.raises(InvalidCredentials, match="comes first"):
        chain(Locks("robot"), people).authenticate("ROBOT", "right")
    assert chain(Locks("other"), people).authenticate("ROBOT", "right").backend.backend is people


def test_a_refresh_token_ends_when_an_earlier_backend_has_the_name() -> None:
    """It may be from before that backend had it."""
    with pytest.raises(InvalidCredentials, match="comes first"):
        chain(Letters("robot"), Letters("robot", "alice")).lookup("b1", "robot", "")
    assert chain(Letters("robot"), Letters("robot", "alice")).lookup("b1", "alice", "").account.name == "alice"


def test_whether_an_earlier_backend_cannot_tell_is_an_outage() -> None:
    """Not a login, and not a refusal."""

    class Down(Letters):
        def lookup(self, name: str, password: str) -> Account:
            raise BackendUnavailable("down")

    with pytest.raises(BackendUnavailable):
        chain(Down(), Told(Account("robot"))).authenticate("ROBOT", "right")


UNUSABLE = {
    "empty": "",
    "nul": "\0",
    "nul-last": "x\0",
    "newline": "x\n",
    "carriage-return": "\rx",
    "tab": "x\tx",
    "escape": "\x1b[0m",
    "delete": "\x7f",
    "c1": "x\x85",
    "surrogate": "\ud800",
    "too-long": "x" * 4097,
}


@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE)
def test_no_backend_is_asked_what_could_never_be_right(value: str) -> None:
    """An empty LDAP password, for one, is an anonymous bind that succeeds."""
    backend = Told(Account("a"))
    for username, password in ((value, "good"), ("good", value), (value, value)):
        with pytest.raises(InvalidCredentials) as caught:
            chain(backend).authenticate(username, password)
        assert caught.type is InvalidCredentials
        assert not value.strip() or value not in caught.value.reason
        assert not caught.value.is_guess
    assert backend.asked == []


@pytest.mark.parametrize("value", ["x", " ", "x" * 1024, "\N{SNOWMAN}", "\N{NO-BREAK SPACE}", ":", "*", "a b", "'\"\\"])
def test_everything_else_is_for_the_backend_to_judge(value: str) -> None:
    """A password may be anything that can be typed."""
    assert chain(Told(Account("a"))).authenticate(value, value).account.name == "a"


def test_a_password_may_be_longer_than_a_name() -> None:
    """A CI job's token is a JWT."""
    one = chain(Told(Account("a")))
    one.authenticate("x" * 1024, "x" * 4096)
    with pytest.raises(InvalidCredentials):
        one.authenticate("x" * 1025, "x")


def test_closing_closes_every_backend() -> None:
    """Once each."""
    backends = [Told(Account("a")), Told(Account("b"))]
    chain(*backends).close()
    assert [backend.closed for backend in backends] == [1, 1]


def test_a_backend_needs_only_one_method_of_its_own() -> None:
    """The rest grants nothing, finds nobody and keeps nothing."""
    backend = Told(Account("a"))
    access = Access("repository", "x", frozenset({"pull"}))
    assert backend.grants(Account("a"), access) == frozenset()
    assert backend.grants(None, access) == frozenset()
    assert list(backend.diagnose()) == []
    with pytest.raises(InvalidCredentials, match="cannot look up"):
        backend.lookup("a", "")
    backend.check()
    with pytest.raises(TokenIssuerError, match="keeps no passwords"):
        backend.set_password("a", "b")
    # Told by a comparison that mypy cannot see through.
    cls: Any = Backend
    with pytest.raises(TypeError, match="abstract"):
        cls(None)


@pytest.mark.parametrize(
    ("type_", "says"),
    [
        ("htpaswd", "did you mean 'htpasswd'?"),
        ("", "no installed package has a backend of type ''"),
        ("os", "no installed package has a backend of type 'os'"),
        ("../x", "no installed package"),
        ("tokenissuer_backends.htpasswd:HtpasswdBackend", "no installed package"),
    ],
)
def test_only_entry_points_are_backends(type_: str, says: str) -> None:
    """No module is imported by a name in a configuration."""
    with pytest.raises(ConfigurationError) as caught:
        load_backend(type_)
    assert says in str(caught.value)


def test_an_account_is_equal_by_value_and_cannot_be_changed() -> None:
    """Identity is a value that is returned, never a state."""
    account = Account("a", frozenset({"x"}))
    assert account == Account("a", frozenset({"x"}))
    assert account.group_named("x") is not None
    assert account.group_named("X") == "x"
    assert account.group_named("y") is None
    with pytest.raises(AttributeError):
        account.name = "b"  # type: ignore[misc]


def test_an_account_without_a_name_is_nobody_to_issue_a_token_for() -> None:
    """It would pass for an anonymous caller who may do what accounts may."""
    with pytest.raises(BackendUnavailable):
        chain(Told(Account(""))).authenticate("a", "good")
