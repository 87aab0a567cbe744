"""Accounts of a 389 Directory Server, alone and with the tree of FreeIPA, with the files that are shipped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.ldap.conftest import READER, READER_PASSWORD, SUFFIX, person
from tests.integration.ldap.dirsrv import DirectoryServer
from tests.support.machine import wait_until
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import InvalidCredentials
from tokenissuer_backends.ldap import LdapBackend

pytestmark = pytest.mark.integration

LOCKOUT = 3
PEOPLE, IPA_PEOPLE = f"ou=people,{SUFFIX}", f"cn=users,cn=accounts,{SUFFIX}"
GROUPS, IPA_GROUPS = f"ou=groups,{SUFFIX}", f"cn=groups,cn=accounts,{SUFFIX}"
IPA_READER = f"uid=tokenissuer,cn=sysaccounts,cn=etc,{SUFFIX}"
SCHEMA = """dn: cn=schema
changetype: modify
add: objectClasses
objectClasses: ( 2.16.840.1.113730.3.8.4.99 NAME 'ipaUserGroup' SUP top AUXILIARY )
"""
READING = f"""dn: {SUFFIX}
changetype: modify
add: aci
aci: (targetattr="* || nsAccountLock || passwordExpirationTime || pwdUpdateTime")(version 3.0; acl "reader";
 allow (read, search, compare) userdn="ldap:///{READER} || ldap:///{IPA_READER}";)
"""


def unit(dn: str) -> str:
    """The LDIF of a container."""
    return f"dn: {dn}\nobjectClass: {'organizationalUnit' if dn.startswith('ou') else 'nsContainer'}\n"


def group(dn: str, *members: str, kind: str = "top") -> str:
    """The LDIF of a group."""
    listed = "".join(f"member: {member}\n" for member in members)
    return f"dn: {dn}\nobjectClass: groupOfNames\nobjectClass: {kind}\n{listed}"


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
        made.change("ldapmodify", SCHEMA)
        made.change("ldapmodify", READING)
        reader = f"objectClass: simpleSecurityObject\nuserPassword: {READER_PASSWORD}\n"
        posix = "objectClass: posixAccount\nuidNumber: 1\ngidNumber: 1\nhomeDirectory: /"
        made.change(
            "ldapadd",
            "\n".join(
                [
                    *map(unit, (PEOPLE, GROUPS, f"ou=services,{SUFFIX}", f"cn=accounts,{SUFFIX}", IPA_PEOPLE)),
                    *map(unit, (IPA_GROUPS, f"cn=etc,{SUFFIX}", f"cn=sysaccounts,cn=etc,{SUFFIX}")),
                    f"dn: {READER}\nobjectClass: organizationalRole\n{reader}",
                    f"dn: {IPA_READER}\nobjectClass: account\n{reader}",
                    *(person(uid) + "\n" for uid in ("alice", "inactive", "expired", "victim")),
                    person("alice", dn=f"uid=alice,{IPA_PEOPLE}") + f"\n{posix}\n",
                    group(f"cn=developers,{GROUPS}", f"uid=alice,{PEOPLE}"),
                    group(f"cn=developers,{IPA_GROUPS}", f"uid=alice,{IPA_PEOPLE}", kind="ipaUserGroup"),
                    group(f"cn=everybody,{IPA_GROUPS}", f"cn=developers,{IPA_GROUPS}", kind="ipaUserGroup"),
                ]
            ),
        )
        made.modify(f"uid=inactive,{PEOPLE}", nsAccountLock="true")
        made.modify(f"uid=expired,{PEOPLE}", passwordExpirationTime="20200101000000Z")
        yield made
    finally:
        made.remove()


@pytest.fixture
def new_backend(directory: DirectoryServer, shipped: Callable[..., LdapBackend]) -> Callable[[str], LdapBackend]:
    """Makes the backend of a file in conf/."""
    plain = {"dc=example,dc=com": SUFFIX, "#allow_plaintext = false": "allow_plaintext = true"}
    servers = {"openldap": '"ldaps://ldap1.example.com", "ldaps://ldap2.example.com"'}
    servers["freeipa"] = '"ldaps://ipa1.example.com", "ldaps://ipa2.example.com"'
    return lambda name: shipped(name, READER_PASSWORD, plain | {servers[name]: f'"{directory.plain}"'})


@pytest.fixture
def backend(new_backend: Callable[[str], LdapBackend]) -> LdapBackend:
    """The backend of the file that is also for this server."""
    return new_backend("openldap")


@pytest.mark.parametrize(("name", "groups"), [("openldap", {"developers"}), ("freeipa", {"developers", "everybody"})])
def test_a_password_that_expires_soon_is_right(
    new_backend: Callable[[str], LdapBackend], name: str, groups: set[str]
) -> None:
    """The answer says so in lengths of four octets."""
    backend = new_backend(name)
    account = backend.authenticate("alice", "pw-alice")
    assert account.name == "alice"
    assert account.groups == groups
    with pytest.raises(InvalidCredentials, match="bind result 49"):
        backend.authenticate("alice", "wrong")


@pytest.mark.parametrize(("name", "reason"), [("inactive", "is disabled"), ("expired", "password has expired")])
def test_an_account_that_cannot_be_used_is_refused(backend: LdapBackend, name: str, reason: str) -> None:
    """Whatever the password."""
    with pytest.raises(InvalidCredentials, match=reason):
        backend.authenticate(name, f"pw-{name}")
    with pytest.raises(InvalidCredentials):
        backend.authenticate(name, "wrong")


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

    def version() -> str:
        with contextlib.suppress(InvalidCredentials):
            return backend.lookup("alice", "").password_version
        return ""

    versions = [""]
    for password in ("another", "a third", "pw-alice"):
        directory.modify(f"uid=alice,{PEOPLE}", userPassword=password)
        # The server notes the time just after it has answered.
        assert wait_until(lambda: version() not in versions)
        versions.append(version())
        # It counts whole seconds, and its clock may be one behind.
        time.sleep(2.1)


def test_check_has_nothing_against_it(backend: LdapBackend) -> None:
    """And names whoever cannot be used."""
    assert not [finding for finding in backend.diagnose() if finding.severity is Severity.ERROR]
    severities = [finding.severity for finding in backend.diagnose(account="inactive")]
    assert severities.count(Severity.ERROR) == 1
    assert f"uid=alice,{PEOPLE}" in " ".join(finding.fact for finding in backend.diagnose(account="alice"))
