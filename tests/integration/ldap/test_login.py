"""Logins against a real slapd: names, passwords, groups, TLS, password policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from tokenissuer.accounts.backend import Backend
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, UnknownAccount
from tokenissuer.options import Secret
from tokenissuer.testing import BackendContract
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.options import GroupOptions, UserOptions

if TYPE_CHECKING:
    from tests.integration.ldap.conftest import Slapd

    NewBackend = Callable[..., LdapBackend]

pytestmark = pytest.mark.integration

PEOPLE = "ou=people,dc=example,dc=test"
GROUPS = "ou=groups,dc=example,dc=test"
NOBODY: dict[str, Any] = {"bind_dn": "", "bind_password": None}
BIND_AS: dict[str, Any] = {"bind_as": f"uid={{user}},{PEOPLE}", "bind_dn": "", "bind_password": None}

OTHERS = {"bob": "pw-bob", "carol": "pw-carol", "dave": "pw-dave", "erin": "pw-erin"}


class LdapContract(BackendContract, ABC):
    """What holds for every backend holds for this one in every way of connecting."""

    username, password = "alice", "pw-alice"
    others = OTHERS

    @pytest.fixture
    def backend(self, slapd: Slapd, new_backend: NewBackend) -> Backend:
        """A backend for the directory that stays up."""
        self.slapd = slapd
        return self.connected(slapd, new_backend)

    @abstractmethod
    def connected(self, slapd: Slapd, new_backend: NewBackend) -> LdapBackend:
        """The backend under test."""

    def outages(self, backend: Backend) -> Iterable[AbstractContextManager[object]]:
        """The server hangs, or is down and its connections with it."""
        return (self.slapd.hanging(),)


class TestPlain(LdapContract):
    """Over ldap:// without TLS."""

    def connected(self, slapd: Slapd, new_backend: NewBackend) -> LdapBackend:
        """Plain."""
        return new_backend(slapd.plain)


class TestStartTls(LdapContract):
    """Over ldap:// with StartTLS."""

    def connected(self, slapd: Slapd, new_backend: NewBackend) -> LdapBackend:
        """StartTLS."""
        return new_backend(slapd.plain, starttls=True, allow_plaintext=False)


class TestLdaps(LdapContract):
    """Over ldaps://."""

    def connected(self, slapd: Slapd, new_backend: NewBackend) -> LdapBackend:
        """TLS from the beginning."""
        return new_backend(slapd.tls, allow_plaintext=False)


class TestBindAs(LdapContract):
    """Logging in without a search before."""

    def connected(self, slapd: Slapd, new_backend: NewBackend) -> LdapBackend:
        """Direct bind; an account sees only itself, and no groups."""
        return new_backend(slapd.tls, groups=None, **BIND_AS)


ALICES = frozenset({"developers", "unique", "posix"})


@pytest.mark.parametrize("typed", ["alice", "ALICE", "Alice", "alice ", " alice", "\uff41\uff4c\uff49\uff43\uff45"])
def test_the_name_is_the_entrys_and_not_what_was_typed(slapd: Slapd, new_backend: NewBackend, typed: str) -> None:
    """The directory finds all these spellings, and every one is the same account with the same groups."""
    account = new_backend(slapd.plain).authenticate(typed, "pw-alice")
    assert account.name == "alice"
    assert account.groups == ALICES


def test_names_are_lower_cased_and_groups_found_by_the_directorys_spelling(
    slapd: Slapd, new_backend: NewBackend
) -> None:
    """`memberUid` is compared letter by letter, so it is searched by the entry's own spelling."""
    account = new_backend(slapd.plain).authenticate("mixed", "pw-Mixed")
    assert account.name == "mixed"
    assert account.groups == {"posix"}


@pytest.mark.parametrize(
    ("typed", "password", "groups"),
    [
        ("jürgen", "pw-jürgen", frozenset()),
        ("JÜRGEN", "pw-jürgen", frozenset()),
        ("jsmith", "pw-jsmith", frozenset({"comma, inc"})),
        ("paren", "pw-paren", frozenset({"parens"})),
    ],
)
def test_special_characters_of_names_and_dns_are_only_characters(
    slapd: Slapd, new_backend: NewBackend, typed: str, password: str, groups: frozenset[str]
) -> None:
    """Commas, plus signs, parentheses and stars of a DN stand in the bind and in the group filter."""
    account = new_backend(slapd.plain).authenticate(typed, password)
    assert account.name == typed.lower()
    assert account.groups == groups


@pytest.mark.parametrize(
    "typed", ["*", "a*", "*)(uid=alice", "alice)(|(uid=*", "\\2a", "al\\69ce", "alice)", "(alice", "alice\\"]
)
def test_a_filter_in_a_name_finds_nobody(slapd: Slapd, new_backend: NewBackend, typed: str) -> None:
    """Unescaped, each of these would find alice."""
    with pytest.raises(UnknownAccount):
        new_backend(slapd.plain).authenticate(typed, "pw-alice")


@pytest.mark.parametrize("typed", ["jsmith+cn=Smith\\, John", "alice,ou=people", "alice\\", "al ice", "älice"])
def test_a_direct_bind_takes_plain_names_only(slapd: Slapd, new_backend: NewBackend, typed: str) -> None:
    """A name with DN syntax would be another way to write somebody."""
    with pytest.raises(UnknownAccount):
        new_backend(slapd.plain, groups=None, **BIND_AS).authenticate(typed, "pw-alice")


def test_a_direct_bind_that_finds_another_entry_is_refused(slapd: Slapd, new_backend: NewBackend) -> None:
    """Who logged in and who was found must be one: here the search always finds the one readable entry."""
    user = UserOptions(PEOPLE, filter="(|(uid={user})(objectClass=organizationalUnit)(cn=bob))", name="cn")
    backend = new_backend(slapd.plain, groups=None, user=user, bind_as=f"uid={{user}},{PEOPLE}", **NOBODY)
    with pytest.raises(InvalidCredentials):
        backend.authenticate("alice", "pw-bob")
    reader: dict[str, Any] = {"bind_as": "cn={user},ou=services,dc=example,dc=test", **NOBODY}
    user = UserOptions(PEOPLE, filter="(|(&(uid=alice)(!(cn={user})))(uid={user}x))")
    with pytest.raises(InvalidCredentials, match="but uid=alice"):
        new_backend(slapd.plain, groups=None, user=user, **reader).authenticate("reader", "reader-secret")


@pytest.mark.parametrize("typed", ["dup", "triple"])
def test_a_name_of_several_entries_is_refused(slapd: Slapd, new_backend: NewBackend, typed: str) -> None:
    """Two show as two; three end at the size limit."""
    with pytest.raises(InvalidCredentials, match="several entries"):
        new_backend(slapd.plain).authenticate(typed, f"pw-{typed}")


def test_an_entry_with_two_names_or_none_is_refused(slapd: Slapd, new_backend: NewBackend) -> None:
    """An account has exactly one name."""
    with pytest.raises(InvalidCredentials, match="2 values"):
        new_backend(slapd.plain).authenticate("two", "pw-two")
    user = UserOptions(PEOPLE, filter="(&(objectClass=person)(cn={user}))")
    with pytest.raises(InvalidCredentials, match="0 values"):
        new_backend(slapd.plain, user=user).authenticate("nameless", "pw-nameless")


def test_a_wrong_base_is_an_outage_and_not_an_unknown_name(slapd: Slapd, new_backend: NewBackend) -> None:
    """A mistake in the configuration must not look like a wrong password, or let the next backend decide."""
    backend = new_backend(slapd.plain, user=UserOptions("ou=peple,dc=example,dc=test"))
    with pytest.raises(BackendUnavailable, match="no such base"):
        backend.authenticate("alice", "pw-alice")
    with pytest.raises(BackendUnavailable, match="no such base"):
        backend.check()


def test_a_referral_is_not_followed(slapd: Slapd, new_backend: NewBackend) -> None:
    """The base is on another server: nobody can tell."""
    backend = new_backend(slapd.plain, user=UserOptions("ou=elsewhere,dc=example,dc=test"))
    with pytest.raises(BackendUnavailable, match="referral"):
        backend.authenticate("alice", "pw-alice")


def test_references_among_the_results_are_skipped(slapd: Slapd, new_backend: NewBackend) -> None:
    """A search from the top meets the reference to another server, and finds the account nevertheless."""
    backend = new_backend(slapd.plain, user=UserOptions("dc=example,dc=test"))
    assert backend.authenticate("alice", "pw-alice").name == "alice"


@pytest.mark.parametrize(
    ("user", "nested", "groups"),
    [
        ("alice", 0, {"developers", "unique", "posix"}),
        ("alice", 1, {"developers", "unique", "posix", "ops"}),
        ("alice", 10, {"developers", "unique", "posix", "ops", "all-staff"}),
        ("dave", 0, {"loop-a"}),
        ("dave", 10, {"loop-a", "loop-b"}),
        ("nobody-in-groups", 10, set()),
        # A group named like a user does not make its members that user.
        ("bob", 10, {"developers", "alice", "ops", "all-staff"}),
    ],
)
def test_groups_in_groups_are_followed_to_the_given_depth(
    slapd: Slapd, new_backend: NewBackend, user: str, nested: int, groups: set[str]
) -> None:
    """Groups that contain each other end the walk."""
    backend = new_backend(slapd.plain, groups=GroupOptions(GROUPS, nested=nested))
    assert backend.authenticate(user, f"pw-{user}").groups == groups


def test_groups_come_from_an_attribute_of_the_entry(slapd: Slapd, new_backend: NewBackend) -> None:
    """`memberOf` lists groups everywhere; with a base only those below it count."""
    everywhere = new_backend(slapd.plain, groups=GroupOptions(attribute="memberOf"))
    assert everywhere.authenticate("carol", "pw-carol").groups == {"ops", "developers"}
    backend = new_backend(slapd.plain, groups=GroupOptions(GROUPS, attribute="memberOf"))
    assert backend.authenticate("carol", "pw-carol").groups == {"ops"}
    assert backend.authenticate("erin", "pw-erin").groups == {"comma, inc"}


@pytest.mark.parametrize("options", [GroupOptions(GROUPS), GroupOptions(attribute="memberOf")])
def test_rules_name_groups_by_short_name_or_dn_in_any_spelling(
    slapd: Slapd, new_backend: NewBackend, options: GroupOptions
) -> None:
    """The directory writes `Comma\\2C Inc`, people write `Comma\\, Inc`."""
    account = new_backend(slapd.plain, groups=options).authenticate("erin", "pw-erin")
    for group in (
        "Comma, Inc",
        "comma, inc",
        r"cn=Comma\, Inc,ou=groups,dc=example,dc=test",
        r"CN=comma\2C Inc, OU=Groups, DC=example, DC=test",
    ):
        assert account.group_named(group) is not None, group
    for group in ("Comma", "cn=Comma", r"cn=Comma\, Inc,ou=other,dc=example,dc=test", "", r"cn=Comma\, Inc"):
        assert account.group_named(group) is None, group


def test_equal_names_in_two_branches_are_told_apart_by_dn(slapd: Slapd, new_backend: NewBackend) -> None:
    """Both groups are called Developers."""
    account = new_backend(slapd.plain, groups=GroupOptions("dc=example,dc=test")).authenticate("carol", "pw-carol")
    assert account.group_named("Developers") is not None
    assert account.group_named("cn=Developers,ou=other,dc=example,dc=test") is not None
    assert account.group_named(f"cn=Developers,{GROUPS}") is None


def test_too_many_groups_are_an_error_and_not_fewer_groups(
    new_slapd: Callable[..., Slapd], new_backend: NewBackend
) -> None:
    """A denial for the group that was cut off would not hold; `memberOf` is not limited."""
    slapd = new_slapd(more="sizelimit 3")
    backend = new_backend(slapd.plain, groups=GroupOptions(GROUPS, filter="(|(objectClass=*)(member={dn}))"))
    with pytest.raises(BackendUnavailable, match="size limit"):
        backend.authenticate("alice", "pw-alice")
    assert new_backend(slapd.plain, groups=GroupOptions(attribute="memberOf")).authenticate("bob", "pw-bob").groups


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("locked", "the account is locked"),
        ("locked-awhile", "the account is locked"),
        ("reset", "the password must be changed"),
        ("grace", "grace logins left"),
    ],
)
def test_accounts_that_must_not_be_used_are_refused_with_the_reason_in_the_log_only(
    slapd: Slapd, new_backend: NewBackend, user: str, reason: str
) -> None:
    """The client hears one sentence for all of them."""
    with pytest.raises(InvalidCredentials, match=reason) as caught:
        new_backend(slapd.plain).authenticate(user, f"pw-{user}")
    assert caught.value.description == InvalidCredentials.description


def test_without_grace_logins_an_expired_password_is_refused(slapd: Slapd, new_backend: NewBackend) -> None:
    """The directory itself refuses when the grace logins are used up."""
    backend = new_backend(slapd.plain)
    for _ in range(3):
        with pytest.raises(InvalidCredentials, match="expired"):
            backend.authenticate("grace", "pw-grace")


def test_a_password_that_expires_soon_is_still_good(slapd: Slapd, new_backend: NewBackend) -> None:
    """A warning is no refusal."""
    assert new_backend(slapd.plain).authenticate("expiring", "pw-expiring").name == "expiring"


def test_five_wrong_passwords_lock_an_account_and_the_right_one_is_refused_then(
    slapd: Slapd, new_backend: NewBackend
) -> None:
    """This is what the memory of refusals is for."""
    backend = new_backend(slapd.plain)
    for number in range(6):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("victim", f"wrong-{number}")
    with pytest.raises(InvalidCredentials, match="locked"):
        backend.authenticate("victim", "pw-victim")


def test_a_lookup_finds_the_account_as_it_is_now(new_slapd: Callable[..., Slapd], new_backend: NewBackend) -> None:
    """Groups are fresh, a changed password shows, and what is locked or gone is refused."""
    slapd = new_slapd()
    backend = new_backend(slapd.tls)
    before = backend.authenticate("alice", "pw-alice")
    assert backend.lookup("alice", "") == before
    alice = f"uid=alice,{PEOPLE}"
    slapd.change("ldapmodify", f"dn: cn=Developers,{GROUPS}\nchangetype: modify\ndelete: member\nmember: {alice}\n")
    assert backend.lookup("alice", "").groups == ALICES - {"developers"}
    assert backend.authenticate("alice", "pw-alice").groups == ALICES - {"developers"}
    slapd.change("ldapmodify", f"dn: {alice}\nchangetype: modify\nreplace: userPassword\nuserPassword: new\n")
    after = backend.lookup("alice", "")
    assert after.password_version
    assert after.password_version != before.password_version
    slapd.change("ldapmodify", f"dn: {alice}\nchangetype: delete\n")
    with pytest.raises(UnknownAccount):
        backend.lookup("alice", "")
    for name in ("locked", "reset", "dup", "*", "unknown", "ALICE"):
        with pytest.raises(InvalidCredentials):
            backend.lookup(name, "")


def test_a_lookup_keeps_the_conditions_of_the_filter_and_searches_by_the_name(
    slapd: Slapd, new_backend: NewBackend
) -> None:
    """People may log in by another attribute; a later look is by the account's name, under the same conditions."""
    user = UserOptions(PEOPLE, filter=f"(&(memberOf=cn=Developers,{GROUPS})(cn={{user}}))")
    backend = new_backend(slapd.plain, user=user)
    assert backend.authenticate("alice", "pw-alice").name == "alice"
    assert backend.lookup("alice", "").name == "alice"
    with pytest.raises(UnknownAccount):
        backend.authenticate("erin", "pw-erin")
    with pytest.raises(UnknownAccount):
        backend.lookup("erin", "")


def test_a_direct_bind_leaves_nobody_to_look_up_as(slapd: Slapd, new_backend: NewBackend) -> None:
    """There is no account that could search."""
    with pytest.raises(InvalidCredentials, match="bind_as"):
        new_backend(slapd.plain, groups=None, **BIND_AS).lookup("alice", "")


@pytest.mark.parametrize("certificate", ["untrusted", "elsewhere", "expired"])
@pytest.mark.parametrize("starttls", [False, True])
def test_a_server_that_does_not_prove_who_it_is_gets_no_password(
    new_slapd: Callable[..., Slapd], new_backend: NewBackend, certificate: str, starttls: bool
) -> None:
    """Wrong CA, wrong host, expired: no bind is sent, and the answer is 503."""
    slapd = new_slapd(certificate=certificate)
    before = slapd.binds()
    backend = new_backend(slapd.plain if starttls else slapd.tls, starttls=starttls, allow_plaintext=False)
    with pytest.raises(BackendUnavailable, match="certificate is not trusted") as raised:
        backend.authenticate("alice", "pw-alice")
    assert ("set 'ca_file' to" in raised.value.reason) is (certificate == "untrusted")
    # The two questions to the monitor bind, and nobody else.
    assert slapd.binds() == before + 1


def test_the_host_may_be_an_address_or_a_name(slapd: Slapd, new_backend: NewBackend) -> None:
    """The certificate has both."""
    for host in ("127.0.0.1", "localhost"):
        backend = new_backend(f"ldaps://{host}:{slapd.tls_port}", allow_plaintext=False)
        assert backend.authenticate("alice", "pw-alice").name == "alice"


def test_tls_and_plain_text_mixed_up_is_an_outage(slapd: Slapd, new_backend: NewBackend) -> None:
    """ldaps:// to the plain port, and ldap:// to the TLS port."""
    for url in (f"ldaps://127.0.0.1:{slapd.port}", f"ldap://127.0.0.1:{slapd.tls_port}"):
        with pytest.raises(BackendUnavailable):
            new_backend(url).authenticate("alice", "pw-alice")


def test_a_wrong_password_of_the_account_that_searches_is_an_outage_and_tried_once(
    slapd: Slapd, new_backend: NewBackend
) -> None:
    """Nobody can log in then, but the account that searches must not be locked by trying with every login."""
    backend = new_backend(slapd.plain, bind_password=Secret("wrong"))
    before = slapd.binds()
    for _ in range(5):
        with pytest.raises(BackendUnavailable, match="'bind_dn' cannot log in"):
            backend.authenticate("alice", "pw-alice")
    assert slapd.binds() == before + 2


def test_every_step_of_finding_an_account_is_shown(slapd: Slapd, new_backend: NewBackend) -> None:
    """No password is needed."""
    backend = new_backend(slapd.tls, f"ldaps://127.0.0.1:{slapd.port}")
    good = [finding for finding in backend.diagnose() if finding.severity is Severity.INFO]
    assert [finding.subject for finding in good] == [slapd.tls] * 6
    assert "TLSv1.3" in good[0].fact
    assert [step.fact for step in good[2:4]] == [f"read the base {base}: good" for base in (PEOPLE, GROUPS)]
    assert good[4].fact.endswith("some entries show it")
    assert "after 5, as far" in good[5].fact
    (bad,) = (finding for finding in backend.diagnose() if finding.severity is Severity.ERROR)
    assert bad.subject == f"ldaps://127.0.0.1:{slapd.port}"
    findings = [*backend.diagnose(account="ALICE")]
    assert {finding.severity for finding in findings} == {Severity.INFO}
    text = " ".join(finding.fact for finding in findings)
    for wanted in (f"uid=alice,{PEOPLE}", "alice (from 'uid')", "developers", "pwdChangedTime="):
        assert wanted in text
    for name, trouble in (("unknown", "no such account"), ("locked", "is locked"), ("dup", "several entries")):
        (failed,) = (found for found in backend.diagnose(account=name) if found.severity is Severity.ERROR)
        assert trouble in failed.fact
    backend.check()


def test_an_anonymous_search_is_possible_where_the_directory_allows_it(slapd: Slapd, new_backend: NewBackend) -> None:
    """Here it does not: nothing is found at the base."""
    with pytest.raises(BackendUnavailable, match="does not show"):
        new_backend(slapd.plain, **NOBODY).authenticate("alice", "pw-alice")
    with pytest.raises(BackendUnavailable):
        new_backend(slapd.plain, **NOBODY).check()
