"""Accounts of an Active Directory domain, with conf/ldap-ad.toml as it is shipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.ldap.conftest import Certificates
from tests.integration.ldap.samba import (
    DOMAIN,
    GROUPS,
    LOCKOUT,
    READER,
    SERVICES,
    STAFF,
    Domain,
    entry,
    group,
    password_of,
    user,
)
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.limit import Threads
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import InvalidCredentials, UnknownAccount
from tokenissuer.sessions.sqlite import SqliteOptions, SqliteStore
from tokenissuer_backends.ldap import LdapBackend

pytestmark = pytest.mark.integration

PEOPLE = [f"user{number}" for number in range(100)]
#: 1601 is long ago, and 0 means that the password must be changed.
UNUSABLE: dict[str, dict[str, str | bytes]] = {
    "disabled": {"userAccountControl": "514"},
    "expired": {"accountExpires": "130000000000000000"},
    "must-change": {"pwdLastSet": "0"},
    "at-night": {"logonHours": bytes(21)},
    "at-desk": {"userWorkstations": "DESK1"},
}
#: What the log says at a login with the right password, and `check --account` without one.
REASONS = {
    "disabled": ("is disabled", "is disabled"),
    "expired": ("has expired", "has expired"),
    "must-change": ("must be changed", "must be changed"),
    "at-night": ("data 530", "logonHours"),
    "at-desk": ("data 531", "userWorkstations: DESK1"),
}

NewBackend = Callable[..., LdapBackend]


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    """A domain with people in nested groups, and accounts that cannot be used."""
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    made = Domain(tmp_path_factory.mktemp("samba"), certificates)
    made.provision()
    try:
        made.start()
        made.modify(DOMAIN, lockoutThreshold=str(LOCKOUT))
        made.add(*(entry(unit, "organizationalUnit") for unit in (STAFF, GROUPS, SERVICES)))
        made.add(user("tokenissuer", SERVICES), *map(user, ["alice", "bob", "mallory", "victim", "robot", *PEOPLE]))
        made.add(*map(user, UNUSABLE))
        made.add(
            group("Developers", f"CN=alice,{STAFF}"),
            group("Platform", f"CN=Developers,{GROUPS}"),
            group("Everybody", f"CN=Platform,{GROUPS}", *(f"CN={name},{STAFF}" for name in PEOPLE)),
            *(group(f"project{number}", f"CN=bob,{STAFF}") for number in range(60)),
        )
        for name, attributes in UNUSABLE.items():
            made.modify(f"CN={name},{STAFF}", **attributes)
        yield made
    finally:
        made.stop()


@pytest.fixture
def new_backend(domain: Domain, shipped: Callable[..., LdapBackend]) -> NewBackend:
    """Makes the backend of the file that is shipped, with other lines where the test says so."""
    shown = {
        '"ldaps://dc1.corp.example.com", "ldaps://dc2.corp.example.com"': f'"{domain.tls}"',
        '#server_name = "dc1.corp.example.com"': 'server_name = "localhost"',
        '#ca_file = "/etc/ssl/certs/example-ca.pem"': f'ca_file = "{domain.certificates.ca}"',
    }
    return lambda **changed: shipped("ad", password_of("tokenissuer"), shown | changed)


@pytest.mark.parametrize(
    "typed", ["alice", "ALICE", "CORP\\alice", "corp\\Alice", "alice@corp.example.com", "alice@mail.example"]
)
def test_people_log_in_with_any_of_their_names(new_backend: NewBackend, typed: str) -> None:
    """The account is the same, with nested groups."""
    account = new_backend().authenticate(typed, password_of("alice"))
    assert account.name == "alice"
    assert account.groups == {"developers", "platform", "everybody"}
    with pytest.raises(InvalidCredentials, match="wrong password"):
        new_backend().authenticate(typed, "wrong")


@pytest.mark.parametrize("typed", ["nobody", "OTHER\\alice", "\\alice", "CORP\\", "alice@other.example", "al*ce"])
def test_other_names_are_unknown(new_backend: NewBackend, typed: str) -> None:
    """The next backend may know them."""
    with pytest.raises(UnknownAccount):
        new_backend().authenticate(typed, password_of("alice"))


def test_nobody_takes_a_name_by_writing_it_into_their_mail(domain: Domain, new_backend: NewBackend) -> None:
    """The UPN comes first."""
    domain.modify(f"CN=mallory,{STAFF}", mail="alice@corp.example.com")
    assert new_backend().authenticate("alice@corp.example.com", password_of("alice")).name == "alice"
    with pytest.raises(InvalidCredentials):
        new_backend().authenticate("alice@corp.example.com", password_of("mallory"))
    domain.modify(f"CN=mallory,{STAFF}", mail="mallory@mail.example")


def test_the_primary_group_and_many_groups_count(new_backend: NewBackend) -> None:
    """Domain Users is in no list of members."""
    backend = new_backend(
        **{'base = "OU=Groups,DC=corp,DC=example,DC=com"': f'base = ["{GROUPS}", "CN=Users,{DOMAIN}"]'}
    )
    assert backend.authenticate("bob", password_of("bob")).groups == {
        "domain users",
        *(f"project{number}" for number in range(60)),
    }


def test_only_members_of_a_required_group_log_in(new_backend: NewBackend) -> None:
    """Nested membership is membership."""
    backend = new_backend(**{'#required = ["Registry Users"]': f'required = ["CN=Platform,{GROUPS}", "nothing"]'})
    assert backend.authenticate("alice", password_of("alice")).name == "alice"
    for ask in (backend.authenticate, backend.lookup):
        with pytest.raises(InvalidCredentials, match="in none of the groups"):
            ask("bob", password_of("bob"))


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_account_that_cannot_be_used_is_refused_and_named(new_backend: NewBackend, name: str) -> None:
    """By `check --account` too, and whatever the password."""
    backend = new_backend()
    said, shown = REASONS[name]
    with pytest.raises(InvalidCredentials, match=said):
        backend.authenticate(name, password_of(name))
    with pytest.raises(InvalidCredentials):
        backend.authenticate(name, "wrong")
    (error,) = [finding for finding in backend.diagnose(account=name) if finding.severity is Severity.ERROR]
    assert shown in error.fact


def test_a_locked_account_is_named_and_keeps_its_refresh_tokens(domain: Domain, new_backend: NewBackend) -> None:
    """Strangers can lock it, and would end every login with it."""
    backend = new_backend()
    for number in range(LOCKOUT):
        with pytest.raises(InvalidCredentials, match="52e"):
            backend.authenticate("victim", f"wrong {number}")
    with pytest.raises(InvalidCredentials, match="775"):
        backend.authenticate("victim", password_of("victim"))
    facts = [finding.fact for finding in backend.diagnose(account="victim") if finding.severity is Severity.ERROR]
    assert "locked after too many wrong passwords" in facts[0]
    assert backend.lookup("victim", "").name == "victim"


def test_a_robot_with_a_stale_password_does_not_lock_its_account(
    domain: Domain, new_backend: NewBackend, tmp_path: Path
) -> None:
    """More processes than the lock allows tries, each more than once."""
    stores = [SqliteStore(SqliteOptions(tmp_path / "refresh.sqlite3")) for _ in range(LOCKOUT + 1)]
    processes = []
    for store in stores:
        process = new_backend()
        process.refusals = Refusals("ldap", b"key", store)
        processes.append(process)
    for process in processes * 2:
        with pytest.raises(InvalidCredentials):
            process.authenticate("robot", "stale")
    assert domain.number("robot", "badPwdCount") == 1
    assert processes[0].authenticate("robot", password_of("robot")).name == "robot"
    for store in stores:
        store.close()


@pytest.mark.parametrize("bound_as", ["{user}@corp.example.com", "CORP\\\\{user}"])
def test_a_login_without_an_account_that_searches(new_backend: NewBackend, bound_as: str) -> None:
    """Samba does not answer "Who am I?"."""
    backend = new_backend(
        **{
            'bind_dn = "CN=tokenissuer': '#bind_dn = "CN=tokenissuer',
            'bind_password_file = "': '#bind_password_file = "',
            '#bind_as = "{user}@corp.example.com"': f'bind_as = "{bound_as}"',
        }
    )
    account = backend.authenticate("alice", password_of("alice"))
    assert account.name == "alice"
    assert account.groups == {"developers", "platform", "everybody"}
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", "wrong")


@pytest.mark.parametrize("attribute", ["tokenGroups", "memberOf"])
def test_a_hundred_people_log_in_at_nine_o_clock(new_backend: NewBackend, attribute: str) -> None:
    """Docker waits 15 seconds."""
    backend = CachedBackend(
        "ldap", new_backend(**{'#attribute = "memberOf"': f'attribute = "{attribute}"'}), threads=Threads(128)
    )
    started = time.monotonic()
    with ThreadPoolExecutor(len(PEOPLE)) as threads:
        found = list(threads.map(lambda name: backend.authenticate(name, password_of(name)), PEOPLE))
    assert [account.name for account in found] == PEOPLE
    assert {account.groups for account in found} == {frozenset({"everybody"})}
    assert time.monotonic() - started < 10


def test_check_shows_the_lock_and_how_long_groups_take(new_backend: NewBackend) -> None:
    """Nothing is to be mended."""
    backend = new_backend()
    findings = [*backend.diagnose()]
    assert {finding.severity for finding in findings} == {Severity.INFO}
    assert f"after {LOCKOUT}, as far" in findings[-1].fact
    assert READER in " ".join(finding.fact for finding in findings)
    slow = {'#attribute = "memberOf"': 'filter = "(member:1.2.840.113556.1.4.1941:={dn})"'}
    (warning,) = [finding for finding in new_backend(**slow).diagnose() if finding.severity is Severity.WARNING]
    assert "tokenGroups" in warning.remedy
    (nested,) = [
        finding
        for finding in new_backend(**{'#attribute = "memberOf"': "nested = 3"}).diagnose()
        if finding.severity is Severity.WARNING
    ]
    assert "tokenGroups" in nested.remedy
    (groups,) = [finding for finding in backend.diagnose(account="alice") if finding.fact.startswith("3 groups")]
    assert groups.seconds
