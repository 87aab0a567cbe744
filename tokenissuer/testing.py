"""`BackendContract`: the tests a backend author inherits. Needs pytest.

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

from tokenissuer.backend import Account, Backend
from tokenissuer.errors import BackendUnavailable, InvalidCredentials

#: Names that mean something to a filter, a DN, a path, a pattern or a shell, and are nobody's.
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

    A subclass gives the fixture `backend`, the `username` and `password` of one good account, its canonical `name`
    where that is another than `username`, and, where there is more than one account, `others`.
    """

    username: str
    password: str
    #: The account's canonical name; empty if it is `username`.
    name: str = ""
    #: More good accounts: user name → password, for the mix-up test. Their canonical names are their user names.
    others: Mapping[str, str] = MappingProxyType({})

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test; a subclass must give it."""
        raise NotImplementedError("the test class needs a fixture 'backend'")

    def outages(self, backend: Backend) -> Iterable[AbstractContextManager[object]]:
        """Ways to make the source unavailable for a while; none if it is always there."""
        return ()

    def _login(self, backend: Backend) -> Account:
        return backend.authenticate(self.username, self.password)

    def test_a_good_login_gives_the_canonical_name(self, backend: Backend) -> None:
        """The account's name is the source's own spelling."""
        assert self._login(backend).name == (self.name or self.username)

    @pytest.mark.parametrize("password", ["wrong", "Wrong ", "x" * 5000, "pa\N{SNOWMAN}", "*", "\N{DIGIT ONE}" * 73])
    def test_a_wrong_password_is_refused(self, backend: Backend, password: str) -> None:
        """Whatever it is, a password that is not the account's is a refusal."""
        with pytest.raises(InvalidCredentials):
            backend.authenticate(self.username, password)

    def test_what_comes_near_the_password_is_refused(self, backend: Backend) -> None:
        """Neither a beginning, nor an extension, nor another case of the password will do."""
        near = (self.password[:-1], f"{self.password} ", f" {self.password}", f"{self.password}x", f"{self.password}\0")
        for password in (*near, self.password.swapcase()):
            if password != self.password:
                with pytest.raises(InvalidCredentials):
                    backend.authenticate(self.username, password)

    @pytest.mark.parametrize("unusable", UNUSABLE)
    def test_unusable_names_and_passwords_are_refused(self, backend: Backend, unusable: str) -> None:
        """Empty and control-character values are refused: an empty LDAP password would be an anonymous bind."""
        with pytest.raises(InvalidCredentials):
            backend.authenticate(self.username, unusable)
        with pytest.raises(InvalidCredentials):
            backend.authenticate(unusable, self.password)

    @pytest.mark.parametrize("username", HOSTILE_NAMES)
    def test_hostile_names_are_nobody(self, backend: Backend, username: str) -> None:
        """A name that is a pattern, a filter or a path somewhere is still only an unknown name."""
        with pytest.raises(InvalidCredentials):
            backend.authenticate(username, self.password)

    def test_threads_never_mix_accounts_up(self, backend: Backend) -> None:
        """Every thread gets the account it asked for, with that account's groups."""
        logins = [(self.username, self.password), *self.others.items()]
        alone = {username: backend.authenticate(username, password) for username, password in logins}
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda login: (login[0], backend.authenticate(*login)), logins * 10))
        for username, account in answers:
            assert (account.name, account.groups) == (alone[username].name, alone[username].groups)

    def test_a_good_login_is_good_again_after_a_refusal(self, backend: Backend) -> None:
        """A refusal leaves nothing behind."""
        with pytest.raises(InvalidCredentials):
            backend.authenticate(self.username, "wrong")
        assert self._login(backend) == self._login(backend)

    def test_the_source_can_be_asked(self, backend: Backend) -> None:
        """A backend that answers also says that it is ready."""
        backend.check()

    def test_an_outage_is_no_refusal(self, backend: Backend) -> None:
        """Who cannot be asked has not said no."""
        for outage in self.outages(backend):
            with outage, pytest.raises(BackendUnavailable):
                self._login(backend)
