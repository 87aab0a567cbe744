"""What servers can do to us that no well-behaved one does, and what we do then."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import socket
import ssl
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ldap3.core.exceptions import LDAPSocketSendError, communication_exception_factory

import tokenissuer_backends.ldap.backend
import tokenissuer_backends.ldap.server
from tests.support.cli import Run
from tests.support.ldap import (
    BIND,
    EXTENDED,
    READER,
    READER_PASSWORD,
    SEARCH,
    FakeDirectory,
    Message,
    control,
    ending,
    hanging,
    tlv,
)
from tests.support.machine import free_port, wait_until
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.accounts.limit import Deadline, Threads
from tokenissuer.accounts.refusals import Refusals
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, RequestError, UnknownAccount
from tokenissuer.options import Secret
from tokenissuer_backends.ldap import LdapBackend, ppolicy
from tokenissuer_backends.ldap.options import GroupOptions, UserOptions

NewBackend = Callable[..., LdapBackend]
NewDirectory = Callable[..., FakeDirectory]

PPOLICY = "1.3.6.1.4.1.42.2.27.8.5.1"
EXPIRED = "2.16.840.1.113730.3.4.4"
EXPIRING = "2.16.840.1.113730.3.4.5"
ALICE = "uid=alice,dc=test"


def user_bind(answer: Callable[[Message], bytes]) -> dict[int, Callable[[Message], Iterable[bytes]]]:
    """Answers the bind of whoever is not the account that searches."""
    return {BIND: lambda message: [message.result(0) if message.name == READER else answer(message)]}


@pytest.fixture
def short_login(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds for one login, fewer than in earnest."""
    seconds = 0.6
    monkeypatch.setattr(tokenissuer_backends.ldap.backend, "LOGIN_TIME", seconds)
    return seconds


def within(seconds: float, login: Callable[[], object]) -> RequestError:
    """The error a login ends with, in time."""
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        login()
    assert time.monotonic() - started < seconds
    return caught.value


def anybody(message: Message) -> Iterable[bytes]:
    """Whoever is searched for is there."""
    found = re.search(rb"(alice|user\d+)", message.filter)
    if found is None:
        return [message.result(0)]
    name = found[1].decode()
    return [message.entry(f"uid={name},dc=test", uid=[name]), message.result(0)]


def through_the_core(backend: LdapBackend, username: str, password: str) -> Login:
    """Log in as the core does."""
    return Chain([CachedBackend("ldap", backend)]).authenticate(username, password)


@pytest.mark.parametrize(
    "password", ["", "\0", "right\0", "\0right", "x" * 1025, "\N{SNOWMAN}" * 400, "\ud800", "a\nb"]
)
def test_unusable_passwords_open_no_connection(
    new_directory: NewDirectory, new_backend: NewBackend, password: str
) -> None:
    """An empty one would be an anonymous bind, which this server, like many, would let succeed."""
    directory = new_directory(special=user_bind(lambda message: message.result(0)))
    for options in ({}, {"bind_as": "uid={user},dc=test", "bind_dn": "", "bind_password": None}):
        with pytest.raises(InvalidCredentials):
            through_the_core(new_backend(directory, **options), "alice", password)
    assert directory.connections == 0


@pytest.mark.parametrize("name", ["", "\0", "alice\0", "a\x1fb", "x" * 1025, "\ud800", "alice\n"])
def test_unusable_names_open_no_connection(new_directory: NewDirectory, new_backend: NewBackend, name: str) -> None:
    """Nor does a name that no directory could have."""
    directory = new_directory()
    with pytest.raises(InvalidCredentials):
        through_the_core(new_backend(directory), name, "right")
    assert directory.connections == 0


def test_an_entry_without_a_name_is_never_bound_as(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """A bind with an empty name is anonymous and succeeds."""
    directory = new_directory(entries={"": {"uid": ["alice"]}})
    with pytest.raises(InvalidCredentials):
        new_backend(directory).authenticate("alice", "right")
    assert directory.binds == []


@pytest.mark.parametrize(
    ("typed", "wire"),
    [
        ("*", b"*"),
        ("*)(uid=alice", b"*)(uid=alice"),
        ("\\2a", b"\\2a"),
        ("a(b)c\\", b"a(b)c\\"),
        (" alice ", b" alice "),
        ("jürgen\N{NO-BREAK SPACE}", "jürgen\N{NO-BREAK SPACE}".encode()),
    ],
)
def test_a_name_is_one_value_on_the_wire(
    new_directory: NewDirectory, new_backend: NewBackend, typed: str, wire: bytes
) -> None:
    """Exactly one equality with exactly these bytes, whatever the name holds."""
    directory = new_directory(entries={})
    with pytest.raises(UnknownAccount):
        new_backend(directory, user=UserOptions("dc=test", filter="(uid={user})")).authenticate(typed, "right")
    # The second is for the groups of nobody, as for an account.
    search, _ = directory.searches
    assert search.filter == tlv(0xA3, tlv(0x04, b"uid") + tlv(0x04, wire))


def test_a_dn_is_one_value_of_the_group_filter(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Commas, stars and parentheses of a DN are characters and nothing else."""
    dn = "cn=Sm\\2Cith (x)* \\\\ü+uid=alice,dc=test"
    directory = new_directory(entries={dn: {"uid": ["Alice"]}})
    groups = GroupOptions("ou=groups,dc=test", filter="(|(member={dn})(memberUid={name}))")
    assert new_backend(directory, groups=groups).authenticate("alice", "right").name == "alice"
    search = directory.searches[-1]
    member = tlv(0xA3, tlv(0x04, b"member") + tlv(0x04, dn.encode()))
    assert search.filter == tlv(0xA1, member + tlv(0xA3, tlv(0x04, b"memberUid") + tlv(0x04, b"Alice")))


def test_the_password_goes_out_byte_for_byte(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Nothing is normalised: what SASLprep would make of these is another password."""
    directory = new_directory()
    password = "p\N{LATIN SMALL LIGATURE FI}sh\N{SUPERSCRIPT TWO}\N{NO-BREAK SPACE}e\N{COMBINING ACUTE ACCENT} "
    with pytest.raises(InvalidCredentials):
        new_backend(directory).authenticate("alice", password)
    (sent,) = [message for message in directory.requests if message.kind == BIND and message.name == ALICE]
    assert sent.password == password.encode()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        *((code, InvalidCredentials) for code in (49, 48, 53, 19, 32, 34, 50)),
        *((code, BackendUnavailable) for code in (1, 2, 3, 7, 8, 10, 13, 51, 52, 80, 90, 255)),
    ],
)
def test_result_codes_of_a_bind_are_a_refusal_or_an_outage(
    new_directory: NewDirectory, new_backend: NewBackend, code: int, error: type[RequestError]
) -> None:
    """Nothing but what means wrong credentials is told to the client as such, and the server's text to nobody."""
    directory = new_directory(special=user_bind(lambda message: message.result(code, "inner truth")))
    with pytest.raises(error) as caught:
        new_backend(directory).authenticate("alice", "whatever")
    assert caught.value.description == error.description


@pytest.mark.parametrize("code", [1, 3, 4, 10, 11, 32, 50, 51, 52, 80])
def test_result_codes_of_a_search_for_groups_are_an_outage(
    new_directory: NewDirectory, new_backend: NewBackend, code: int
) -> None:
    """Fewer groups than there are would be fewer denials."""

    def say(message: Message) -> Iterable[bytes]:
        if message.name == "dc=test":
            return [message.entry(ALICE, uid=["alice"]), message.result(0)]
        return [message.entry("cn=some,ou=groups,dc=test", cn=["some"]), message.result(code)]

    with pytest.raises(BackendUnavailable):
        new_backend(new_directory(special={SEARCH: say})).authenticate("alice", "right")


def test_active_directorys_reason_is_for_the_log(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Its code is translated, and the rest of its text left out."""
    text = "80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 533, v4563"
    directory = new_directory(special=user_bind(lambda message: message.result(49, text)))
    with pytest.raises(InvalidCredentials, match=r"data 533 \(the account is disabled\)$"):
        new_backend(directory).authenticate("alice", "right")


def test_a_server_that_repeats_the_password_brings_it_into_no_log(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """Whatever a server says of it is left out."""
    directory = new_directory(
        special=user_bind(lambda message: message.result(49, f"no such password: {message.password.decode()}"))
    )
    with pytest.raises(InvalidCredentials) as caught:
        new_backend(directory).authenticate("alice", "planted-secret")
    assert "planted-secret" not in caught.value.reason


LOCKED = tlv(0x30, tlv(0x81, b"\1"))
GRACE = tlv(0x30, tlv(0xA0, tlv(0x81, b"\2")))
NO_GRACE = tlv(0x30, tlv(0xA0, tlv(0x81, b"\0")))
MUST_CHANGE = tlv(0x30, tlv(0x81, b"\2"))
SOON = tlv(0x30, tlv(0xA0, tlv(0x80, b"\x0e\x10")))


@pytest.mark.parametrize(
    ("code", "oid", "value", "reason"),
    [
        (49, PPOLICY, LOCKED, "the account is locked"),
        (49, PPOLICY, tlv(0x30, tlv(0x81, b"\0")), "the password has expired"),
        (0, PPOLICY, GRACE, "2 grace logins"),
        (0, PPOLICY, NO_GRACE, "0 grace logins"),
        (0, PPOLICY, MUST_CHANGE, "must be changed"),
        (0, PPOLICY, LOCKED, "locked"),
        (0, EXPIRED, b"0", "expired"),
    ],
)
def test_a_password_that_must_not_be_used_any_more_is_refused_even_after_success(
    new_directory: NewDirectory, new_backend: NewBackend, code: int, oid: str, value: bytes, reason: str
) -> None:
    """Grace logins and passwords to be changed come as success."""
    directory = new_directory(special=user_bind(lambda message: message.result(code, controls=control(oid, value))))
    with pytest.raises(InvalidCredentials, match=reason) as caught:
        new_backend(directory).authenticate("alice", "right")
    assert caught.value.description == InvalidCredentials.description


@pytest.mark.parametrize(("oid", "value"), [(PPOLICY, tlv(0x30, b"")), (PPOLICY, SOON), (EXPIRING, b"86400")])
def test_a_password_that_expires_soon_is_good(
    new_directory: NewDirectory, new_backend: NewBackend, oid: str, value: bytes
) -> None:
    """A warning is no refusal."""
    directory = new_directory(special=user_bind(lambda message: message.result(0, controls=control(oid, value))))
    assert new_backend(directory).authenticate("alice", "right").name == "alice"


@pytest.mark.parametrize("value", [b"", b"\x30", b"\x30\x05\x81", b"\x04\x00", b"\x30\x82\x00\x05"])
def test_a_password_whose_policy_cannot_be_read_is_refused(
    new_directory: NewDirectory, new_backend: NewBackend, value: bytes
) -> None:
    """As a wrong one is: an outage would tell that it is right."""
    directory = new_directory(special=user_bind(lambda message: message.result(0, controls=control(PPOLICY, value))))
    with pytest.raises(InvalidCredentials, match="cannot be read") as caught:
        new_backend(directory).authenticate("alice", "right")
    assert caught.value.description == InvalidCredentials.description


@pytest.mark.parametrize(
    ("answer", "objection", "expires_in"),
    [
        # OpenLDAP: lengths in one octet.
        ("3003810101", "the account is locked", 0),
        ("3005a003800164", "", 100),
        ("3005a003810102", "2 grace logins left", 0),
        ("3000", "", 0),
        # 389 Directory Server: each length in four octets, and one that says how many.
        ("308400000003810101", "the account is locked", 0),
        ("308400000003810100", "the password has expired", 0),
        ("30840000000aa0840000000480020e10", "", 3600),
        ("308400000009a08400000003810102", "2 grace logins left", 0),
        ("308400000000", "", 0),
        # Active Directory sends none, but BER has other ways to write the same.
        ("30810381 0101".replace(" ", ""), "the account is locked", 0),
        ("30820003810101", "the account is locked", 0),
    ],
)
def test_every_length_that_ber_allows_is_read(answer: str, objection: str, expires_in: int) -> None:
    """Else a right password is an outage where the policy has something to say."""
    state = ppolicy.read({ppolicy.CONTROL: bytes.fromhex(answer)})
    assert objection in state.objection
    assert bool(objection) is bool(state.objection)
    assert state.expires_in == expires_in


@pytest.mark.parametrize("username", ["alice", "nobody"])
def test_a_fault_that_comes_with_the_groups_tells_nothing_of_name_or_password(
    new_directory: NewDirectory, new_backend: NewBackend, username: str
) -> None:
    """Right, wrong and unknown: all are the same outage, and no password is tried."""

    def search(message: Message) -> Iterable[bytes]:
        if message.name == "ou=groups,dc=test":
            return [message.result(52)]
        found = [message.entry(ALICE, uid=["alice"])] if username == "alice" else []
        return [*found, message.result(0)]

    directory = new_directory(special={SEARCH: search})
    backend = new_backend(directory, groups=GroupOptions("ou=groups,dc=test"))
    for password in ("right", "wrong"):
        with pytest.raises(BackendUnavailable):
            backend.authenticate(username, password)
    assert directory.binds == []


def test_with_bind_as_no_fault_after_the_bind_tells_that_the_password_is_right(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """A wrong password is refused before anything is searched."""
    directory = new_directory(special={SEARCH: lambda message: [message.result(52)]})
    backend = new_backend(directory, bind_dn="", bind_password=None, bind_as="uid={user},dc=test", groups=None)
    for password in ("right", "wrong"):
        with pytest.raises(InvalidCredentials) as caught:
            backend.authenticate("alice", password)
        assert caught.value.description == InvalidCredentials.description


@pytest.mark.parametrize(
    ("template", "names", "is_proven"),
    [
        ("{user}@corp.test", {"userPrincipalName": ["Alice@corp.test"]}, True),
        ("{user}@corp.test", {"userPrincipalName": ["other@corp.test"]}, False),
        ("{user}@corp.test", {"sAMAccountName": ["alice"]}, False),
        ("CORP\\{user}", {"sAMAccountName": ["Alice"]}, True),
        ("CORP\\{user}", {"sAMAccountName": ["mallory"]}, False),
    ],
)
def test_where_the_server_does_not_tell_who_has_logged_in_the_entrys_own_names_do(
    new_directory: NewDirectory, new_backend: NewBackend, template: str, names: dict[str, list[str]], is_proven: bool
) -> None:
    """Samba has no "Who am I?"; a right password must not be an outage there."""
    directory = new_directory(
        special={EXTENDED: lambda message: [message.result(2)]},
        entries={ALICE: {"sAMAccountName": ["alice"], "userAccountControl": ["512"], **names}},
    )
    backend = new_backend(directory, bind_dn="", bind_password=None, directory="ad", groups=None, bind_as=template)
    if is_proven:
        assert backend.authenticate("alice", "right").name == names.get("sAMAccountName", ["alice"])[0].lower()
    else:
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", "right")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"userAccountControl": ["514"]}, "disabled"),
        ({"nsAccountLock": ["TRUE"]}, "disabled"),
        ({"pwdAccountLockedTime": ["000001010000Z"]}, "locked"),
        ({"accountExpires": ["132000000000000000"]}, "account has expired"),
        ({"krbPrincipalExpiration": ["20200101000000Z"]}, "account has expired"),
        ({"krbPasswordExpiration": ["20200101000000Z"]}, "password has expired"),
        ({"pwdReset": ["TRUE"]}, "must be changed"),
        ({"pwdEndTime": ["20200101000000Z"]}, "account has expired"),
        ({"pwdStartTime": ["29990101000000Z"]}, "not valid yet"),
        ({"msDS-User-Account-Control-Computed": ["8388608"]}, "password has expired"),
        ({"pwdLastSet": ["0"]}, "must be changed"),
    ],
)
def test_an_entry_that_shows_why_not_is_refused_without_trying_its_password(
    new_directory: NewDirectory, new_backend: NewBackend, attributes: dict[str, list[str]], reason: str
) -> None:
    """Also where the server itself would let the bind succeed, and at a later look without password."""
    directory = new_directory(entries={ALICE: {"uid": ["alice"], **attributes}})
    backend = new_backend(directory)
    with pytest.raises(InvalidCredentials, match=reason):
        backend.authenticate("alice", "right")
    with pytest.raises(InvalidCredentials, match=reason):
        backend.lookup("alice", "")
    # In its place somebody's who does not exist: the time of the answer tells nothing.
    assert len(directory.binds) == 1
    assert ALICE not in directory.binds


NO_HOUR, EVERY_HOUR = b"\0" * 21, b"\xff" * 21


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"userAccountControl": ["512"], "msDS-User-Account-Control-Computed": ["16"]}, "is locked after too many"),
        ({"pwdAccountLockedTime": ["20260101000000Z"]}, "was locked at 20260101000000Z"),
        ({"userAccountControl": ["512"], "logonHours": [NO_HOUR]}, "may not log in at this hour"),
        ({"userAccountControl": ["512"], "userWorkstations": ["PC1,PC2"]}, "from some computers only"),
    ],
)
def test_check_names_what_stops_an_account_now_and_its_refresh_token_stays_good(
    new_directory: NewDirectory, new_backend: NewBackend, attributes: dict[str, list[str | bytes]], words: str
) -> None:
    """Strangers could else end everybody's logins with a few wrong passwords."""
    directory = new_directory(entries={ALICE: {"uid": ["alice"], "pwdChangedTime": ["20250101000000Z"], **attributes}})
    backend = new_backend(directory)
    errors = [finding.fact for finding in backend.diagnose(account="alice") if finding.severity is Severity.ERROR]
    assert len(errors) == 1
    assert words in errors[0]
    assert backend.lookup("alice", "").name == "alice"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"userAccountControl": ["512"], "logonHours": [EVERY_HOUR]}, "msDS-User-Account-Control-Computed"),
        ({"userAccountControl": ["512"], "msDS-User-Account-Control-Computed": ["0"]}, ""),
        ({"krbPasswordExpiration": ["29990101000000Z"]}, "a lock after wrong passwords is not shown"),
        ({}, "the age that its policy allows a password is not shown"),
    ],
)
def test_check_says_what_it_cannot_see(
    new_directory: NewDirectory, new_backend: NewBackend, attributes: dict[str, list[str | bytes]], words: str
) -> None:
    """It never says that nothing is wrong where only a login finds out."""
    backend = new_backend(new_directory(entries={ALICE: {"uid": ["alice"], **attributes}}))
    (standing,) = (finding.fact for finding in backend.diagnose(account="alice") if "standing" in finding.fact)
    assert standing.endswith(words or "shows nothing against it")


@pytest.mark.parametrize(
    "attributes",
    [
        {
            "userAccountControl": ["512"],
            "accountExpires": ["9223372036854775807"],
            "pwdLastSet": ["133000000000000000"],
        },
        {"userAccountControl": ["66048"], "accountExpires": ["0"], "pwdLastSet": ["0"]},
        {"nsAccountLock": ["FALSE"], "krbPasswordExpiration": ["20990101000000Z"]},
        {"accountExpires": ["9000000000000000000"], "krbPrincipalExpiration": ["whenever"]},
    ],
)
def test_an_entry_in_good_standing_is_not_refused(
    new_directory: NewDirectory, new_backend: NewBackend, attributes: dict[str, list[str]]
) -> None:
    """Never is written in several ways."""
    directory = new_directory(entries={ALICE: {"uid": ["alice"], **attributes}})
    assert new_backend(directory).authenticate("alice", "right").name == "alice"


def test_active_directory_must_show_who_is_disabled_to_a_look_without_password(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """What cannot be read must not pass for good."""
    directory = new_directory(entries={ALICE: {"sAMAccountName": ["Alice"], "pwdLastSet": ["133000000000000000"]}})
    backend = new_backend(directory, directory="ad", groups=None)
    with pytest.raises(BackendUnavailable, match="userAccountControl"):
        backend.lookup("alice", "")
    directory.entries[ALICE]["userAccountControl"] = ["512"]
    assert backend.lookup("alice", "").password_version == "pwdLastSet=133000000000000000"


def test_a_directory_that_shows_nothing_at_all_has_removed_nobody(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """Whoever may not look any more is told of no error by some servers; every login would end."""
    shown: list[str] = []

    def search(message: Message) -> Iterable[bytes]:
        yield from (message.entry("dc=test") for _ in shown if b"alice" not in message.filter)
        yield message.result(0)

    backend = new_backend(new_directory(special={SEARCH: search}))
    with pytest.raises(BackendUnavailable, match="shows nothing at dc=test"):
        backend.lookup("alice", "")
    shown.append("the base")
    with pytest.raises(UnknownAccount):
        backend.lookup("alice", "")


@pytest.mark.parametrize(
    "attributes",
    [{}, {"shadowLastChange": ["19000"]}, {"sambaPwdLastSet": ["1700000000"]}],
    ids=["nothing", "shadow", "samba"],
)
def test_what_need_not_change_with_the_password_is_no_stamp(
    new_directory: NewDirectory, new_backend: NewBackend, attributes: dict[str, list[str]]
) -> None:
    """A refresh token would outlive the password: whoever changes it need not change these."""
    backend = new_backend(new_directory(entries={ALICE: {"uid": ["alice"], **attributes}}))
    assert backend.authenticate("alice", "right").password_version == ""
    *_, last = backend.diagnose(account="alice")
    assert "no refresh tokens" in last.fact


def test_explain_finds_an_account_whose_password_has_no_stamp(
    new_directory: NewDirectory, set_up: Path, run: Run
) -> None:
    """As `check` does, by what somebody types: such an account gets no refresh token, and can log in all the same."""
    directory = new_directory(entries={ALICE: {"uid": ["Bertha"], "memberOf": ["cn=dev,ou=groups,dc=test"]}})
    path = set_up / "tokenissuer.toml"
    ldap = f"""
        [[backends]]
        type = "ldap"
        servers = ["{directory.url}"]
        allow_plaintext = true
        user.base = "dc=test"
        groups = {{ base = "ou=groups,dc=test", attribute = "memberOf" }}

        [[access]]
        groups = ["dev"]
        repositories = ["team/**"]
        actions = ["pull"]
    """
    path.write_text(path.read_text() + textwrap.dedent(ldap))
    for more in ([], ["--backend", "ldap"]):
        code, out, err = run("explain", "--account", "BERTHA", *more, "repository:team/app:pull", "--config", path)
        assert (code, err) == (0, "")
        assert "account 'bertha' of backend 'ldap', groups: dev" in out
    _, checked, _ = run("check", "--account", "BERTHA", "--config", path)
    assert "account name: bertha" in checked
    assert "1 groups: dev" in checked
    # The password file, which comes first, has an alice too.
    directory.entries[ALICE]["uid"] = ["Alice"]
    code, out, _ = run("explain", "--account", "ALICE", "repository:team/app:pull", "--config", path)
    assert code == 1
    assert "'alice' is an account of the backend 'htpasswd', which comes first" in out


@pytest.mark.parametrize(
    ("shown", "code", "fact"),
    [
        (0, 0, "no entry shows it, so these accounts get no refresh tokens"),
        (1, 0, "some entries show it"),
        (1, 4, "some entries show it"),
    ],
    ids=["none", "one", "more than one"],
)
def test_a_directory_that_shows_no_change_of_a_password_is_named_by_check(
    new_directory: NewDirectory, new_backend: NewBackend, shown: int, code: int, fact: str
) -> None:
    """One search, whoever has such an entry."""

    def search(message: Message) -> Iterable[bytes]:
        if b"pwdChangedTime" not in message.filter:
            return [message.entry("dc=test"), message.result(0)]
        return [*[message.entry(ALICE)] * shown, message.result(code)]

    *_, last, _ = new_backend(new_directory(special={SEARCH: search})).diagnose()
    assert last.fact.startswith(f"last change of passwords: {fact}")


def test_a_direct_bind_gives_no_stamp(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Nobody could look the account up again: a refresh token would end at its first use."""
    directory = new_directory(entries={ALICE: {"uid": ["alice"], "pwdChangedTime": ["20240101000000Z"]}})
    backend = new_backend(directory, bind_as="uid={user},dc=test", bind_dn="", bind_password=None, groups=None)
    assert backend.authenticate("alice", "right").password_version == ""
    assert "no refresh tokens" in " ".join(finding.fact for finding in backend.diagnose())


@pytest.mark.parametrize("tls", [False, True])
def test_a_directory_that_is_down_is_told_once(set_up: Path, run: Run, tls: bool) -> None:
    """Not by the log as well, and not of each account. A port without TLS is named as what it may be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=ending_all, args=(listener,), daemon=True).start()
        url = f"{'ldaps' if tls else 'ldap'}://127.0.0.1:{listener.getsockname()[1]}"
        more = "" if tls else "allow_plaintext = true\n"
        table = f'\n[[backends]]\ntype = "ldap"\nservers = ["{url}"]\n{more}user.base = "dc=test"\n'
        path = set_up / "tokenissuer.toml"
        path.write_text(path.read_text() + table)
        code, out, err = run("check", "--account", "alice", "--config", path)
    assert (code, err) == (1, "")
    errors = [line for line in out.splitlines() if line.startswith("error")]
    assert [url in line for line in errors] == [True, False]
    assert "error: backend 'ldap': it does not answer, see above; until it does" in out
    assert ("this port may speak no TLS (then use ldap:// with starttls = true)" in out) is tls


def ending_all(listener: socket.socket) -> None:
    """Read something on each connection, and end it."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)


def test_long_lists_of_groups_are_fetched_to_their_end(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Active Directory gives out 1500 values at a time."""
    values = [f"cn=group-{number},ou=groups,dc=test" for number in range(10)]

    def say(message: Message) -> Iterable[bytes]:
        (ranged,) = (name for name in message.attributes if name.lower().startswith("memberof"))
        first = int(ranged.partition("=")[2].partition("-")[0] or 0)
        part = values[first : first + 4]
        last = "*" if first + 4 >= len(values) else str(first + 3)
        yield message.entry_of(ALICE, {"uid": ["alice"], "memberOf": [], f"memberOf;range={first}-{last}": part})
        yield message.result(0)

    backend = new_backend(new_directory(special={SEARCH: say}), groups=GroupOptions(attribute="memberOf"))
    assert backend.authenticate("alice", "right").groups == {f"group-{number}" for number in range(10)}


def test_a_letter_that_is_not_ascii_makes_nobody_somebody_else(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """U+212A looks like K, and other software makes a `k` of it."""
    groups = ["cn=\u212aeepers,dc=test", "cn=Straße,dc=test", "cn=OPS,dc=test"]
    entries = {ALICE: {"uid": ["\u212aevin"], "memberOf": groups}}
    backend = new_backend(new_directory(entries=entries), groups=GroupOptions(attribute="memberOf"))
    account = backend.authenticate("alice", "right")
    assert account.name == "\u212aevin"
    assert account.group_named("keepers") is None
    assert account.groups == {"\u212aeepers", "straße", "ops"}
    assert account.group_named("CN=straße,dc=test") == account.group_named("Straße") == "straße"


def test_a_list_of_groups_that_never_ends_is_an_outage(
    new_directory: NewDirectory, new_backend: NewBackend, short_login: float
) -> None:
    """Neither a loop nor a list cut short."""

    def endless(message: Message) -> Iterable[bytes]:
        yield message.entry_of(ALICE, {"uid": ["alice"], "memberOf;range=0-0": ["cn=x,dc=test"]})
        yield message.result(0)

    def empty(message: Message) -> Iterable[bytes]:
        ranged = "memberOf;range=0-0" if "memberOf" in message.attributes else "memberOf;range=1-*"
        yield message.entry_of(ALICE, {"uid": ["alice"], ranged: ["cn=x,dc=test"] if "0-0" in ranged else []})
        yield message.result(0)

    for say in (endless, empty):
        backend = new_backend(new_directory(special={SEARCH: say}), groups=GroupOptions(attribute="memberOf"))
        error = within(short_login + 1, lambda backend=backend: backend.authenticate("alice", "right"))  # type: ignore[misc]
        assert isinstance(error, BackendUnavailable)


def test_no_referral_is_followed(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Neither a result nor a reference makes us send anything to another server, least of all a password."""
    trap = new_directory()

    def referral(message: Message) -> Iterable[bytes]:
        return [message.result(10, referral=f"{trap.url}/dc=test")]

    def reference(message: Message) -> Iterable[bytes]:
        return [message.reference(f"{trap.url}/dc=test"), message.entry(ALICE, uid=["alice"]), message.result(0)]

    for kind in (SEARCH, BIND):
        with pytest.raises(BackendUnavailable):
            new_backend(new_directory(special={kind: referral})).authenticate("alice", "right")
    account = new_backend(new_directory(special={SEARCH: reference}), groups=None).authenticate("alice", "right")
    assert account.name == "alice"
    assert trap.connections == 0


@pytest.mark.parametrize(
    "say",
    [
        lambda message: [message.result(52)],
        lambda message: [message.result(2)],
        lambda message: [message.result(0)],
        lambda message: [message.result(0) + message.result(0)],
        lambda message: [message.result(0) + b"\x30\x84\x00"],
        lambda message: [b"garbage that is no LDAP"],
        ending,
        hanging,
    ],
    ids=["unavailable", "unknown", "then-plain", "injected", "injected-in-part", "garbage", "ended", "hanging"],
)
def test_without_tls_nothing_is_said(
    new_directory: NewDirectory,
    new_backend: NewBackend,
    short_login: float,
    say: Callable[[Message], Iterable[bytes]],
) -> None:
    """StartTLS refused, broken off, or plain text behind its success: no bind is sent."""
    directory = new_directory(special={EXTENDED: say})
    backend = new_backend(directory, starttls=True, allow_plaintext=False)
    error = within(short_login + 1, lambda: backend.authenticate("alice", "right"))
    assert isinstance(error, BackendUnavailable)
    assert {message.kind for message in directory.requests} <= {EXTENDED}


def test_plain_text_on_a_tls_port_is_an_outage_and_leaks_nothing(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """Five hundred failed handshakes later, no descriptor is left behind."""
    directory = new_directory(greeting=b"this is not TLS\r\n")
    backend = new_backend(directory.url.replace("ldap://", "ldaps://"))

    def fail() -> None:
        with pytest.raises(BackendUnavailable, match="TLS"):
            backend.authenticate("alice", "right")

    fail()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(500):
        fail()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before + 5 and time.monotonic() < deadline:
        time.sleep(0.05)  # the fake's own side closes a little later
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    assert directory.requests == []


BROKEN: dict[str, Callable[[Message], Iterable[bytes]]] = {
    "hanging": hanging,
    "ended": ending,
    "garbage": lambda message: [b"\x30\x03\x02\x01"],
    "no LDAP": lambda message: [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "another message": lambda message: [Message(999, message.kind, b"").result(0)],
    "an empty message": lambda message: [b"\x30\x00"],
    "a strange result": lambda message: [message.reply(0x61, tlv(0x0A, b"\x00"))],
    "notice of disconnection": lambda message: [
        Message(0, EXTENDED, b"").reply(
            0x78, tlv(0x0A, b"\x34") + tlv(0x04, b"") * 2 + tlv(0x8A, b"1.3.6.1.4.1.1466.20036")
        )
    ],
    "unsolicited": lambda message: [
        Message(0, EXTENDED, b"").reply(0x78, tlv(0x0A, b"\x00") + tlv(0x04, b"") * 2 + tlv(0x8A, b"1.2.3"))
    ],
    "a huge message": lambda message: [b"\x30\x84\x7f\xff\xff\xff" + b"x" * 6_000_000],
}


@pytest.mark.parametrize("say", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("kind", [BIND, SEARCH])
def test_a_broken_server_is_left_for_the_next_one(
    new_directory: NewDirectory,
    new_backend: NewBackend,
    short_login: float,
    kind: int,
    say: Callable[[Message], Iterable[bytes]],
) -> None:
    """The login succeeds through the second server, and alone the first one is an outage in time."""
    broken, well = new_directory(special={kind: say}), new_directory()
    assert new_backend(broken, well).authenticate("alice", "right").name == "alice"
    error = within(short_login + 1, lambda: new_backend(broken).authenticate("alice", "right"))
    assert isinstance(error, BackendUnavailable)


def test_a_search_that_takes_too_long_is_given_up_on_the_server(
    new_directory: NewDirectory, new_backend: NewBackend, short_login: float
) -> None:
    """Servers go on with it for minutes unless somebody tells them."""
    directory = new_directory(special={SEARCH: lambda message: []})
    with pytest.raises(BackendUnavailable):
        new_backend(directory).authenticate("alice", "right")
    assert wait_until(lambda: directory.unbinds == 1)


def test_one_byte_a_second_ends_in_time(
    new_directory: NewDirectory, new_backend: NewBackend, short_login: float
) -> None:
    """Every single byte comes within every timeout; the login as a whole does not."""
    dripping, well = new_directory(seconds_per_byte=0.2), new_directory()
    error = within(short_login + 0.5, lambda: new_backend(dripping).authenticate("alice", "right"))
    assert isinstance(error, BackendUnavailable)
    assert new_backend(dripping, well).authenticate("alice", "right").name == "alice"


def test_one_byte_now_and_then_in_a_tls_handshake_ends_in_time(
    new_directory: NewDirectory, new_backend: NewBackend, short_login: float
) -> None:
    """A record is begun that never ends."""
    dripping = new_directory(seconds_per_byte=0.1, greeting=b"\x16\x03\x03\x10\x00\x02" + b"\0" * 1000)
    backend = new_backend(dripping.url.replace("ldap://", "ldaps://"))
    error = within(short_login + 0.5, lambda: backend.authenticate("alice", "right"))
    assert isinstance(error, BackendUnavailable)


def test_many_hanging_servers_take_no_longer_than_one(
    new_directory: NewDirectory, new_backend: NewBackend, short_login: float
) -> None:
    """Each gets its share of the time, and the last one is asked."""
    hanging_ones = [new_directory(special={BIND: hanging}) for _ in range(4)]
    error = within(short_login + 0.5, lambda: new_backend(*hanging_ones).authenticate("alice", "right"))
    assert isinstance(error, BackendUnavailable)
    assert new_backend(*hanging_ones, new_directory()).authenticate("alice", "right").name == "alice"


def test_the_time_for_a_login_is_well_below_dockers() -> None:
    """Docker waits 15 seconds."""
    assert tokenissuer_backends.ldap.backend.LOGIN_TIME <= 10


def test_a_resolver_that_hangs_ends_in_time(
    new_backend: NewBackend, short_login: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's resolver knows no deadline."""
    real, is_over = socket.getaddrinfo, threading.Event()

    def slow(host: str, *more: object, **named: object) -> object:
        if host == "directory.test" and not named.get("flags"):
            is_over.wait(30)
            raise socket.gaierror("too late")
        return real(host, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        backend = new_backend("ldap://directory.test")
        error = within(short_login + 0.5, lambda: backend.authenticate("alice", "right"))
        assert isinstance(error, BackendUnavailable)
    finally:
        is_over.set()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SEARCH, {}),
        (BIND, {}),
        (SEARCH, {"bind_dn": "", "bind_password": None}),
    ],
    ids=["search", "bind", "anonymous"],
)
def test_only_the_first_login_waits_for_a_server_that_is_silent(
    new_directory: NewDirectory,
    new_backend: NewBackend,
    monkeypatch: pytest.MonkeyPatch,
    kind: int,
    options: dict[str, Any],
) -> None:
    """A second; the later ones ask the next server at once, until a probe in the background has succeeded."""
    monkeypatch.setattr(tokenissuer_backends.ldap.server, "PROBE_INTERVAL", 0.2)
    first, second = new_directory(special={kind: hanging}), new_directory()
    backend = new_backend(first, second, timeout=5, **options)
    started = time.monotonic()
    backend.authenticate("alice", "right")
    assert 0.9 < time.monotonic() - started < 3
    started = time.monotonic()
    while time.monotonic() < started + 1:
        asked = time.monotonic()
        backend.authenticate("alice", "right")
        assert time.monotonic() - asked < 0.8
    first.special.clear()
    assert wait_until(lambda: backend.authenticate("alice", "right").name == "alice" and ALICE in first.binds)
    count = len(second.binds)
    backend.authenticate("alice", "right")
    assert len(second.binds) == count


def test_a_name_that_nobody_has_is_an_answer_too(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """The second server is not asked after it."""
    first, second = new_directory(entries={}), new_directory()
    backend = new_backend(first, second)
    for _ in range(2):
        with pytest.raises(UnknownAccount):
            backend.authenticate("alice", "right")
    assert not second.requests


def test_a_probe_does_not_try_a_refused_password(
    new_directory: NewDirectory, new_backend: NewBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would lock the account that searches, though nobody logs in."""
    monkeypatch.setattr(tokenissuer_backends.ldap.server, "PROBE_INTERVAL", 0.02)
    monkeypatch.setattr(tokenissuer_backends.ldap.server, "RETRY_INTERVAL", 0.02)
    first, second = new_directory(special={BIND: lambda message: [message.result(49)]}), new_directory()
    assert new_backend(first, second).authenticate("alice", "right").name == "alice"
    assert wait_until(lambda: len(first.searches) >= 1)
    time.sleep(0.2)
    assert [message.kind for message in first.requests].count(BIND) == 1


def test_check_looks_at_the_base_of_groups_too(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """With a wrong one every login is an outage."""

    def search(message: Message) -> Iterable[bytes]:
        if message.name == "ou=groups,dc=test":
            return [message.result(32)]
        return [message.entry("dc=test"), message.result(0)]

    backend = new_backend(new_directory(special={SEARCH: search}))
    (finding,) = [each for each in backend.diagnose() if each.severity is Severity.ERROR]
    assert finding.fact.startswith("read the base ou=groups,dc=test: ")
    with pytest.raises(BackendUnavailable, match="ou=groups"):
        backend.check()


@pytest.mark.parametrize(
    ("counts", "age", "tries"),
    [(True, 60, 1), (False, 60, 3), (True, 1, 3)],
    ids=["counted", "not counted", "just changed"],
)
def test_a_password_is_known_to_be_wrong_only_if_the_directory_has_counted_it(
    new_directory: NewDirectory, new_backend: NewBackend, counts: bool, age: int, tries: int
) -> None:
    """A lock that nobody shows refuses the right password with the same code, and counts nothing. A change of the
    password within the second of another one does not show either.
    """
    changed = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() - age))
    entry: dict[str, Iterable[str | bytes]] = {"uid": ["alice"], "pwdChangedTime": [changed]}
    directory = new_directory(entries={ALICE: entry})

    def refuse(message: Message) -> bytes:
        if counts:
            entry["pwdFailureTime"] = [f"{len(directory.binds)}Z"]
        return message.result(49)

    directory.special = user_bind(refuse)
    backend = new_backend(directory, groups=None)
    backend.refusals = Refusals("ldap", b"key")
    for _ in range(3):
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice", "wrong")
    assert directory.binds.count(ALICE) == tries
    # Neither the number of questions nor their kind tells an unknown name, or a password that was wrong before.
    assert len(directory.binds) == 3


def test_a_known_address_costs_as_many_questions_as_an_unknown_one(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """Account name, UPN and mail are asked for, whichever of them is found."""
    asked = set()
    for known in (b"userPrincipalName", b"mail", b"sAMAccountName", b"none of them"):

        def search(message: Message, known: bytes = known) -> Iterable[bytes]:
            found = [message.entry(ALICE, sAMAccountName=["alice"])] if known in message.filter else []
            return [*found, message.result(0)]

        directory = new_directory(special={SEARCH: search})
        backend = new_backend(directory, directory="ad", groups=None)
        with pytest.raises(InvalidCredentials):
            backend.authenticate("alice@example.com", "wrong")
        asked.add((len(directory.searches), len(directory.binds)))
    assert len(asked) == 1


Attributes = dict[str, Iterable[str | bytes]]
TOKEN: Attributes = {"sAMAccountName": ["alice"], "tokenGroups": [b"\x01", b"\x02"]}
AD_GROUPS: dict[str, Any] = {"directory": "ad", "groups": GroupOptions("ou=groups,dc=test")}


def domain(groups: dict[bytes, Attributes]) -> Callable[[Message], Iterable[bytes]]:
    """What a domain controller answers: alice is in two groups, and here is what it shows of groups."""

    def search(message: Message) -> Iterable[bytes]:
        if message.name == "ou=groups,dc=test":
            for sid, attributes in groups.items():
                if tlv(0x04, b"objectSid") + tlv(0x04, sid) in message.filter:
                    yield message.entry_of(f"cn={sid.hex()},ou=groups,dc=test", attributes)
        else:
            yield message.entry_of(ALICE, TOKEN)
        yield message.result(0)

    return search


def test_groups_are_those_that_the_domain_names(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Below the base; each is asked for once in five minutes."""
    shown: dict[bytes, Attributes] = {b"\x01": {"sAMAccountName": ["Developers"], "objectSid": [b"\x01"]}}
    directory = new_directory(special={SEARCH: domain(shown)})
    backend = new_backend(directory, **AD_GROUPS)
    for _ in range(3):
        assert backend.authenticate("alice", "right").groups == {"developers"}
    assert [message.name for message in directory.searches].count("ou=groups,dc=test") == 1


def test_what_one_user_sees_of_groups_is_not_anothers(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """With bind_as everybody searches as themselves."""
    shown: dict[bytes, Attributes] = {}
    directory = new_directory(special={SEARCH: domain(shown)})
    direct = {"bind_as": "uid={user},dc=test", "bind_dn": "", "bind_password": None}
    backend = new_backend(directory, **AD_GROUPS, **direct)
    assert backend.authenticate("alice", "right").groups == set()
    shown[b"\x02"] = {"sAMAccountName": ["denied"], "objectSid": [b"\x02"]}
    assert backend.authenticate("alice", "right").groups == {"denied"}


@pytest.mark.parametrize("missing", ["objectSid", "tokenGroups"])
def test_groups_that_cannot_be_read_are_an_outage(
    new_directory: NewDirectory, new_backend: NewBackend, missing: str
) -> None:
    """Without them a denial would not apply."""
    answer = domain({b"\x01": {"sAMAccountName": ["denied"]}})

    def search(message: Message) -> Iterable[bytes]:
        if missing == "tokenGroups" and "tokenGroups" in message.attributes:
            return [message.entry(ALICE, cn=["alice"]), message.result(0)]
        return answer(message)

    with pytest.raises(BackendUnavailable, match=missing):
        new_backend(new_directory(special={SEARCH: search}), **AD_GROUPS).authenticate("alice", "right")


@pytest.mark.parametrize(
    "root",
    [{}, {"defaultNamingContext": ["dc=test"], "configurationNamingContext": ["cn=configuration,dc=test"]}],
    ids=["no contexts", "no partitions"],
)
def test_a_domain_that_shows_no_short_name_is_an_outage(
    new_directory: NewDirectory, new_backend: NewBackend, root: dict[str, Iterable[str | bytes]]
) -> None:
    """Not an unknown name: no other backend is asked."""

    def search(message: Message) -> Iterable[bytes]:
        return [*([message.entry_of("", root)] if not message.name else []), message.result(0)]

    with pytest.raises(BackendUnavailable, match="short name"):
        new_backend(new_directory(special={SEARCH: search}), directory="ad").authenticate("CORP\\alice", "right")


def test_a_probe_leaks_no_connection_of_a_direct_bind(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """The question itself reaches the server once more."""
    first, second = new_directory(), new_directory()
    backend = new_backend(first, second, bind_as="uid={user},dc=test", bind_dn="", bind_password=None)
    backend.check()
    assert wait_until(lambda: first.connections == 1 and not first.open)


def test_no_probe_outlives_the_backend(
    new_directory: NewDirectory, new_backend: NewBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload makes another backend, and this one ends."""
    monkeypatch.setattr(tokenissuer_backends.ldap.server, "PROBE_INTERVAL", 0.05)
    before = set(threading.enumerate())
    first, second = new_directory(special={SEARCH: ending}), new_directory()
    backend = new_backend(first, second)
    backend.authenticate("alice", "right")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("probe of ")]
    backend.close()
    assert wait_until(lambda: not [each for each in set(threading.enumerate()) - before if "probe" in each.name])


def test_a_direct_bind_is_checked_by_reaching_a_server(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """There is nobody to search as, but a directory that is down is seen."""
    directory = new_directory()
    backend = new_backend(directory, bind_as="uid={user},dc=test", bind_dn="", bind_password=None)
    backend.check()
    assert not [finding for finding in backend.diagnose() if finding.severity is Severity.ERROR]
    (finding,) = backend.diagnose(account="alice")
    assert finding.severity is Severity.ERROR
    assert "with bind_as no account can search for others" in finding.fact
    directory.close()
    with pytest.raises(BackendUnavailable):
        backend.check()


def test_when_all_servers_have_failed_all_are_still_asked(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """A cool-down must not make an outage longer."""
    first, second = new_directory(special={SEARCH: ending}), new_directory(special={SEARCH: ending})
    backend = new_backend(first, second)
    with pytest.raises(BackendUnavailable):
        backend.authenticate("alice", "right")
    second.special.clear()
    assert backend.authenticate("alice", "right").name == "alice"


def test_a_directory_that_is_down_at_the_start_is_found_when_it_comes(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """Nothing but the first login needs it."""
    port = free_port()
    backend = new_backend(f"ldap://127.0.0.1:{port}")
    with pytest.raises(BackendUnavailable) as caught:
        backend.authenticate("alice", "right")
    assert caught.value.retry_after > 0
    directory = new_directory()
    forward = threading.Thread(target=_forward_once, args=(port, directory), daemon=True)
    forward.start()
    end = time.monotonic() + 5
    while True:
        try:
            assert backend.authenticate("alice", "right").name == "alice"
            break
        except BackendUnavailable:
            assert time.monotonic() < end
            time.sleep(0.05)


def _forward_once(port: int, directory: FakeDirectory) -> None:
    """Let the fake directory be found at another port as well."""
    directory.listener.close()
    directory.listener = socket.create_server(("127.0.0.1", port))
    directory._listen()


def test_connections_of_the_account_that_searches_are_used_again(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """As many as are configured are kept, whatever went on, and those of users never."""
    directory = new_directory()
    backend = new_backend(directory, pool_size=3)

    def log_in(number: int) -> None:
        if number % 3:
            backend.authenticate("alice", "right")
        else:
            with pytest.raises(InvalidCredentials):
                backend.authenticate("alice", f"wrong-{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(log_in, range(200)))
    end = time.monotonic() + 5
    while len(directory.open) != 3 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(directory.open) == 3
    services = sum(message.name == READER for message in directory.requests if message.kind == BIND)
    assert services < 100
    backend.close()
    while directory.open and time.monotonic() < end + 5:
        time.sleep(0.02)
    assert not directory.open


def test_a_connection_that_died_while_idle_is_replaced(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """A restart, and an end that shows only when the connection is used."""
    directory = new_directory()
    backend = new_backend(directory)
    backend.authenticate("alice", "right")
    directory.close_connections()
    assert backend.authenticate("alice", "right").name == "alice"
    searches = len(directory.searches)

    def end_once(message: Message) -> Iterable[bytes]:
        directory.special.clear()
        return ending(message)

    directory.special[SEARCH] = end_once
    assert backend.authenticate("alice", "right").name == "alice"
    assert len(directory.searches) == searches + 3
    for _ in range(2):
        backend.authenticate("alice", "right")


def test_a_connection_that_only_hangs_costs_one_timeout(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """A firewall has dropped the idle connection and tells nobody."""
    directory = new_directory()
    backend = new_backend(directory)
    backend.authenticate("alice", "right")

    def hang_once(message: Message) -> Iterable[bytes]:
        directory.special.clear()
        return hanging(message)

    directory.special[SEARCH] = hang_once
    started = time.monotonic()
    assert backend.authenticate("alice", "right").name == "alice"
    assert 0.9 < time.monotonic() - started < 3


def test_an_idle_connection_is_not_used_after_a_minute(
    new_directory: NewDirectory, new_backend: NewBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor any that is ten minutes old."""
    directory = new_directory()
    backend = new_backend(directory)
    backend.authenticate("alice", "right")
    for constant in ("_MAX_IDLE", "_MAX_AGE"):
        before = sum(message.name == READER for message in directory.requests)
        backend.authenticate("alice", "right")
        assert sum(message.name == READER for message in directory.requests) == before
        with monkeypatch.context() as patch:
            patch.setattr(tokenissuer_backends.ldap.server, constant, 0.0)
            backend.authenticate("alice", "right")
        assert sum(message.name == READER for message in directory.requests) == before + 1


def test_a_refused_account_that_searches_is_not_locked_by_our_trying(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """One try for each server in each cool-down."""
    directory = new_directory()
    backend = new_backend(directory, bind_password=Secret("outdated"))
    for _ in range(10):
        with pytest.raises(BackendUnavailable, match="correct 'bind_dn' or its password"):
            backend.authenticate("alice", "right")
    assert len([message for message in directory.requests if message.kind == BIND]) == 1


@pytest.mark.parametrize("password", ["right", "planted-secret-ü"])
def test_no_secret_reaches_log_or_error(
    new_directory: NewDirectory,
    new_backend: NewBackend,
    caplog: pytest.LogCaptureFixture,
    password: str,
    short_login: float,
) -> None:
    """Neither the user's password nor that of the account that searches, in any kind of failure."""
    caplog.set_level(logging.DEBUG)
    texts = []
    for special in ({}, {BIND: hanging}, {SEARCH: ending}, user_bind(lambda message: b"\x30\x05xxxxx"), {BIND: ending}):
        backend = new_backend(new_directory(special=dict(special)))
        try:
            texts.append(repr(backend.authenticate("alice", password)))
        except RequestError as error:
            texts.append("".join(traceback.format_exception(error)) + repr(error.__dict__))
        texts += [
            repr(vars(backend)),
            repr(vars(backend._directory)),
            *map(repr, backend._directory.servers(Deadline.after(1))),
        ]
        for server in backend._directory.servers(Deadline.after(1)):
            texts += [repr(server._idle), repr([vars(pooled.session) for pooled in server._idle])]
            for pooled in server._idle:
                texts.append(repr(pooled.session._connection))
    text = "\n".join([*texts, caplog.text])
    assert READER_PASSWORD not in text
    if password != "right":
        assert password not in text
    assert "(&(objectClass" not in caplog.text


def test_who_has_logged_in_directly_must_be_who_was_found(new_directory: NewDirectory, new_backend: NewBackend) -> None:
    """Active Directory tries several meanings of a name in a bind."""
    identity = "u:CORP\\alice"

    def who_am_i(message: Message) -> Iterable[bytes]:
        body = tlv(0x0A, b"\0") + tlv(0x04, b"") * 2 + tlv(0x8B, identity.encode())
        return [message.reply(0x78, body)]

    directory = new_directory(
        special={EXTENDED: who_am_i}, entries={ALICE: {"sAMAccountName": ["Alice"], "userAccountControl": ["512"]}}
    )
    options = {"bind_dn": "", "bind_password": None, "directory": "ad", "groups": None}
    for template in ("{user}@corp.test", "CORP\\{user}"):
        backend = new_backend(directory, bind_as=template, **options)
        identity = "u:CORP\\alice"
        assert backend.authenticate("alice", "right").name == "alice"
        identity = f"dn:{ALICE}"
        assert backend.authenticate("alice", "right").name == "alice"
        identity = "u:CORP\\mallory"
        with pytest.raises(InvalidCredentials, match="mallory has logged in, but"):
            backend.authenticate("alice", "right")
        for unclear in ("", "dn:", "who knows"):
            identity = unclear
            with pytest.raises(RequestError):
                backend.authenticate("alice", "right")
    with pytest.raises(UnknownAccount):
        new_backend(directory, bind_as="CORP\\{user}", **options).authenticate("OTHER\\alice", "right")


@pytest.mark.parametrize("code", [11, 3, 50])
def test_a_directory_that_refuses_a_wide_search_is_no_finding(
    new_directory: NewDirectory, new_backend: NewBackend, code: int
) -> None:
    """Only `check` asks for any entry at all that shows a change of its password."""

    def say(message: Message) -> Iterable[bytes]:
        if b"pwdChangedTime" in message.filter:
            return [message.result(code)]
        return [message.entry("dc=test"), message.result(0)]

    steps = [*new_backend(new_directory(special={SEARCH: say})).diagnose()]
    assert not [step for step in steps if step.severity is Severity.ERROR]
    assert "unknown: " in steps[-2].fact


@pytest.mark.parametrize(
    "met", [ssl.SSLEOFError(8, "EOF"), ConnectionResetError(104, "reset"), TimeoutError("timed out")]
)
def test_what_the_library_makes_of_a_broken_connection_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, new_directory: NewDirectory, new_backend: NewBackend, met: OSError
) -> None:
    """Its exceptions are of two classes at once, and lack what one of them promises."""
    backend = new_backend(new_directory())

    def broken(*_: object, **__: object) -> None:
        raise communication_exception_factory(LDAPSocketSendError, met)("socket sending error")

    monkeypatch.setattr("ldap3.Connection.search", broken)
    with pytest.raises(BackendUnavailable) as caught:
        backend.authenticate("alice", "pw-alice")
    assert "the connection broke" in caught.value.reason


@pytest.mark.parametrize("names", [["alice"] * 5, [f"user{number}" for number in range(100)]], ids=["push", "morning"])
def test_whoever_comes_at_the_same_moment_is_served(
    new_directory: NewDirectory, new_backend: NewBackend, names: list[str]
) -> None:
    """A docker push sends one password five times, a hundred people come at nine o'clock; an answer takes 200 ms."""

    def answer(message: Message) -> bytes:
        time.sleep(0.2)
        return message.result(0)

    directory = new_directory(special={**user_bind(answer), SEARCH: anybody})
    backend = CachedBackend("ldap", new_backend(directory, groups=None), threads=Threads(128))
    started = time.monotonic()
    with ThreadPoolExecutor(len(names)) as threads:
        found = list(threads.map(lambda name: backend.authenticate(name, "right").name, names))
    assert found == names
    # Docker waits 15 seconds.
    assert time.monotonic() - started < 10
    assert len(directory.binds) == len(set(names))


def test_a_hundred_people_log_in_while_one_server_of_two_is_silent(
    new_directory: NewDirectory, new_backend: NewBackend
) -> None:
    """It has just begun to hang, and nobody knows yet."""
    first, second = (new_directory(special={SEARCH: anybody}) for _ in range(2))
    backend = CachedBackend("ldap", new_backend(first, second, groups=None, timeout=5), threads=Threads(128))
    backend.authenticate("alice", "right")
    first.special[SEARCH] = first.special[BIND] = hanging
    names = [f"user{number}" for number in range(100)]
    started = time.monotonic()
    with ThreadPoolExecutor(len(names)) as threads:
        assert list(threads.map(lambda name: backend.authenticate(name, "right").name, names)) == names
    assert time.monotonic() - started < 5
