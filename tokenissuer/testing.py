"""`BackendContract`: the tests that a backend's author inherits. Needs pytest.

class TestMine(BackendContract):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        ...

    username, password = "alice", "right"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import MappingProxyType

import pytest

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend, CacheOptions
from tokenissuer.accounts.chain import Chain
from tokenissuer.errors import BackendUnavailable, InvalidCredentials

#: Names that mean something to a filter, a DN, a path, a pattern or a shell, and that no account has.
HOSTILE_NAMES = (
    "*",
    "a*",
    "*)(uid=*",
    "a)(|(uid=*",
    "\\2a",
    "x,ou=admins",
    "x+cn=y",
    "../../etc/passwd",
    "a/b",
    "a:b",
    "%00",
    "{account}",
    "' or '1'='1",
    "$(id)",
    "nobody\N{ZERO WIDTH SPACE}",
    "\N{FULLWIDTH LATIN SMALL LETTER A}dmin",
    "\N{SNOWMAN}" * 50,
    "x" * 5000,
)
UNUSABLE = ("", "\0", "\0x", "x\0", "\n", "a\rb", "\x1b[0m", "\x7f", "\ud800")


class BackendContract:
    """What holds for every backend.

    A subclass has the fixture `backend`, the `username` and `password` of one account, its canonical `name` if that is
    not `username`, and, if there are more accounts, `others`. The backend is asked as the core asks it.
    """

    username: str
    password: str
    #: The account's canonical name; empty if it is `username`.
    name: str = ""
    #: More accounts: user name → password. Their canonical names are their user names.
    others: Mapping[str, str] = MappingProxyType({})

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test; a subclass must define it."""
        raise NotImplementedError("the test class needs a fixture 'backend'")

    def outages(self, backend: Backend) -> Iterable[AbstractContextManager[object]]:
        """Ways to make the backend unavailable for a while; none if it always answers."""
        return ()

    def _ask(self, backend: Backend, username: str, password: str) -> Account:
        return Chain([CachedBackend("tested", backend, CacheOptions(0, 0))]).authenticate(username, password).account

    def _login(self, backend: Backend) -> Account:
        return self._ask(backend, self.username, self.password)

    def test_a_good_login_gives_the_canonical_name(self, backend: Backend) -> None:
        """The account's name is the backend's own spelling."""
        assert self._login(backend).name == (self.name or self.username)

    @pytest.mark.parametrize("password", ["wrong", "Wrong ", "x" * 5000, "pa\N{SNOWMAN}", "*", "\N{DIGIT ONE}" * 73])
    def test_a_wrong_password_is_refused(self, backend: Backend, password: str) -> None:
        """Any password that is not the account's is refused."""
        with pytest.raises(InvalidCredentials):
            self._ask(backend, self.username, password)

    def test_similar_passwords_are_refused(self, backend: Backend) -> None:
        """A beginning, an extension or another case of the password is wrong."""
        near = (self.password[:-1], f"{self.password} ", f" {self.password}", f"{self.password}x", f"{self.password}\0")
        for password in (*near, self.password.swapcase()):
            if password != self.password:
                with pytest.raises(InvalidCredentials):
                    self._ask(backend, self.username, password)

    @pytest.mark.parametrize("unusable", UNUSABLE)
    def test_unusable_names_and_passwords_are_refused(self, backend: Backend, unusable: str) -> None:
        """Empty and control-character values are refused: an empty LDAP password would be an anonymous bind."""
        with pytest.raises(InvalidCredentials):
            self._ask(backend, self.username, unusable)
        with pytest.raises(InvalidCredentials):
            self._ask(backend, unusable, self.password)

    @pytest.mark.parametrize("username", HOSTILE_NAMES)
    def test_hostile_names_are_unknown(self, backend: Backend, username: str) -> None:
        """A name that is a pattern, a filter or a path somewhere is only an unknown name."""
        with pytest.raises(InvalidCredentials):
            self._ask(backend, username, self.password)

    def test_threads_never_mix_up_accounts(self, backend: Backend) -> None:
        """Every thread gets the account it asked for, with that account's groups."""
        logins = [(self.username, self.password), *self.others.items()]
        alone = {username: self._ask(backend, username, password) for username, password in logins}
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda login: (login[0], self._ask(backend, *login)), logins * 10))
        for username, account in answers:
            assert (account.name, account.groups) == (alone[username].name, alone[username].groups)

    def test_a_good_login_is_good_again_after_a_refusal(self, backend: Backend) -> None:
        """A refusal changes nothing."""
        with pytest.raises(InvalidCredentials):
            backend.authenticate(self.username, "wrong")
        assert self._login(backend) == self._login(backend)

    def test_it_is_ready(self, backend: Backend) -> None:
        """A backend that answers also says that it is ready."""
        backend.check()

    def test_an_outage_is_not_a_refusal(self, backend: Backend) -> None:
        """A backend that cannot answer has refused nobody."""
        for outage in self.outages(backend):
            with outage, pytest.raises(BackendUnavailable):
                self._login(backend)
