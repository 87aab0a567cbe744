"""Accounts of a 389 Directory Server, whose password policy answers in a form of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.ldap.conftest import GROUPS, PEOPLE, SUFFIX, person
from tests.integration.ldap.dirsrv import MANAGER, MANAGER_PASSWORD, DirectoryServer
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import InvalidCredentials
from tokenissuer.options import Secret
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.options import GroupOptions, LdapOptions, UserOptions

pytestmark = pytest.mark.integration

LOCKOUT = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectoryServer]:
    """A directory in which every password expires within the warning time, and three wrong ones lock."""
    made = DirectoryServer(tmp_path_factory.mktemp("dirsrv"))
    try:
        made.start()
        made.modify(
            "cn=config",
            passwordExp="on",
            passwordMaxAge="80000",
            passwordWarning="86400",
            passwordLockout="on",
            passwordMaxFailure=str(LOCKOUT),
            passwordTrackUpdateTime="on",
        )
        units = (f"dn: {unit}\nobjectClass: organizationalUnit\n" for unit in (PEOPLE, GROUPS))
        people = (person(uid) + "\n" for uid in ("alice", "inactive", "expired", "victim"))
        group = f"dn: cn=Developers,{GROUPS}\nobjectClass: groupOfNames\nmember: uid=alice,{PEOPLE}\n"
        made.change("ldapadd", "\n".join([*units, *people, group]))
        made.modify(f"uid=inactive,{PEOPLE}", nsAccountLock="true")
        made.modify(f"uid=expired,{PEOPLE}", passwordExpirationTime="20200101000000Z")
        yield made
    finally:
        made.remove()


@pytest.fixture
def backend(directory: DirectoryServer) -> Iterator[LdapBackend]:
    """The backend, with the usual preset."""
    made = LdapBackend(
        LdapOptions(
            servers=(directory.plain,),
            user=UserOptions(PEOPLE),
            groups=GroupOptions(GROUPS),
            bind_dn=MANAGER,
            bind_password=Secret(MANAGER_PASSWORD),
            allow_plaintext=True,
        )
    )
    yield made
    made.close()


def test_a_password_that_expires_soon_is_right(backend: LdapBackend) -> None:
    """The answer says so in four octets of length, and for two years it was an outage."""
    account = backend.authenticate("alice", "pw-alice")
    assert account.name == "alice"
    assert account.groups == {"developers"}
    with pytest.raises(InvalidCredentials, match="bind result 49"):
        backend.authenticate("alice", "wrong")


@pytest.mark.parametrize("name", ["inactive", "expired"])
def test_an_account_that_cannot_be_used_is_refused(backend: LdapBackend, name: str) -> None:
    """Whatever the password."""
    for password in (f"pw-{name}", "wrong"):
        with pytest.raises(InvalidCredentials):
            backend.authenticate(name, password)


def test_a_locked_account_is_refused(backend: LdapBackend) -> None:
    """And is no outage."""
    for number in range(LOCKOUT):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("victim", f"wrong {number}")
    for password in ("pw-victim", "wrong"):
        with pytest.raises(InvalidCredentials, match="bind result 19"):
            backend.authenticate("victim", password)


def test_a_changed_password_is_another_version(directory: DirectoryServer, backend: LdapBackend) -> None:
    """Refresh tokens end with it."""
    versions = set()
    for password in ("another", "a third", "pw-alice"):
        directory.modify(f"uid=alice,{PEOPLE}", userPassword=password)
        versions.add(backend.lookup("alice", "").password_version)
        # The directory counts whole seconds.
        time.sleep(1.1)
    assert len(versions) == 3


def test_check_has_nothing_against_it(backend: LdapBackend) -> None:
    """And names whoever cannot be used."""
    assert not [finding for finding in backend.diagnose() if finding.severity is Severity.ERROR]
    severities = [finding.severity for finding in backend.diagnose(account="inactive")]
    assert severities.count(Severity.ERROR) == 1
    assert SUFFIX in " ".join(finding.fact for finding in backend.diagnose(account="alice"))
