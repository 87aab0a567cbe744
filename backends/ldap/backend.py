"""Accounts in an LDAP directory: find the entry, prove the password by a bind, collect the groups."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from tokenissuer.backend import Account, Backend, Finding, Severity, Step, refuse_unusable
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, RequestError, UnknownAccount
from tokenissuer_backends.ldap import standing
from tokenissuer_backends.ldap.deadline import Deadline
from tokenissuer_backends.ldap.directory import Conversation, Directory
from tokenissuer_backends.ldap.failure import DirectoryFailure, Incomplete, Misconfigured, Refused
from tokenissuer_backends.ldap.filter import FilterTemplate
from tokenissuer_backends.ldap.groups import Group, GroupSearch
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import USER, LdapOptions
from tokenissuer_backends.ldap.server import Server
from tokenissuer_backends.ldap.wire import Entry

T = TypeVar("T")

#: Seconds for one login, whatever the servers do. Docker gives up after 15.
LOGIN_TIME: Final = 10.0
#: Bytes: servers drop the connection of whoever sends a longer one.
_MAX_PASSWORD: Final = 1024
_MAX_NAME: Final = 1024

#: Names that are the same in a DN, a UPN and DOMAIN\name, and need no escape in any.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_EVERYTHING: Final = "(objectClass=*)"
#: Attributes that users can often change themselves, and so could take somebody's name with.
_OFTEN_WRITABLE: Final = frozenset({"mail", "displayname", "givenname", "sn", "gecos", "description"})


@dataclass(frozen=True, slots=True)
class LdapAccount(Account):
    """An account of the directory.

    Args:
        dn: its entry.
        group_dns: its groups, by distinguished name.
    """

    dn: str = ""
    group_dns: frozenset[DistinguishedName] = frozenset()

    def belongs_to(self, group: str) -> bool:
        """Whether a group named in an access rule, by its DN or short name, has this account as a member.

        As in the directory case does not matter. A text that is a DN is compared with DNs alone: a group's short name
        must not be able to look like another group's DN.
        """
        try:
            dn = DistinguishedName.parse(group)
        except ValueError:
            return group.lower() in self.groups
        return dn in self.group_dns


@dataclass(frozen=True, slots=True)
class _Stopwatch:
    """Measures steps one after the other."""

    started: list[float] = field(default_factory=lambda: [time.monotonic()])

    def lap(self) -> float:
        """Return the seconds since the last time."""
        self.started.append(time.monotonic())
        return self.started[-1] - self.started.pop(0)


class LdapBackend(Backend):
    """Accounts in an LDAP directory.

    Args:
        options: where it is and what to ask it.

    Raises:
        ConfigurationError: if the CA file cannot be used. A directory that is down does not matter: it may come back.
    """

    Options = LdapOptions

    def __init__(self, options: LdapOptions) -> None:
        self._options: Final = options
        self._directory: Final = Directory(options)
        self._base: Final = options.user.base
        self._filter: Final = FilterTemplate(options.user.filter or options.preset.user_filter, [USER], [USER])
        self._name: Final = options.user.name or options.preset.user_name
        self._groups: Final = GroupSearch(options.groups, options.preset) if options.groups else None
        self._attributes: Final = (
            self._name,
            *(self._groups.attributes if self._groups else ()),
            *standing.ATTRIBUTES,
            *(("sAMAccountName",) if options.directory == "ad" else ()),
        )

    def authenticate(self, username: str, password: str) -> LdapAccount:
        """Prove that the password is this account's.

        Raises:
            UnknownAccount: if the directory has no such account.
            InvalidCredentials: if it refuses, or the account is not in good standing.
            BackendUnavailable: if no server can tell, or the configuration does not fit the directory.
        """
        refuse_unusable(username, password)
        # Not "unknown": nobody may get past this directory to another backend by typing more.
        for kind, text, most in (("user name", username, _MAX_NAME), ("password", password, _MAX_PASSWORD)):
            if len(text.encode("utf-8")) > most:
                raise InvalidCredentials(reason=f"the {kind} has more than {most} bytes")
        if not self._options.bind_as:
            return self._ask(lambda conversation: self._search_then_bind(conversation, username, password))
        if not _PLAIN_NAME.fullmatch(username):
            raise UnknownAccount(reason="with bind_as a user name has letters, digits, dots, hyphens and _ only")
        return self._ask(lambda conversation: self._bind_then_search(conversation, username, password))

    def lookup(self, name: str, keepsake: str) -> LdapAccount:
        """Find an account again without its password: its entry, its standing and its groups as they are now.

        Raises:
            InvalidCredentials: if it is gone or not in good standing, or `bind_as` leaves nobody to search as.
            BackendUnavailable: if no server can tell.
        """
        refuse_unusable(name, name)
        if len(name.encode("utf-8")) > _MAX_NAME:
            raise InvalidCredentials(reason=f"the name has more than {_MAX_NAME} bytes")
        if self._options.bind_as:
            raise InvalidCredentials(reason="with bind_as there is nobody to look accounts up as; use bind_dn")
        return self._ask(lambda conversation: self._look_up(conversation, name))

    def check(self) -> None:
        """Prove that a server lets us search, or with `bind_as` that one can be reached.

        Raises:
            BackendUnavailable: if none does.
        """
        self._ask(Conversation.reach if self._options.bind_as else self._see_base)

    def probe(self) -> Iterator[Step]:
        """Try every server: connection and TLS, login of the account that searches, search base, what entries show."""
        for server in self._directory.servers:
            yield from self._probe(server)

    def trace(self, name: str) -> Iterator[Step]:
        """Look an account up without its password: entry, canonical name, standing, groups."""
        if self._options.bind_as:
            yield Step(name, "look the account up", 0.0, trouble="with bind_as there is nobody to do that as")
            return
        steps: list[Step] = []
        watch = _Stopwatch()
        try:
            account = self._ask(lambda conversation: self._trace(conversation, name, steps, watch))
        except RequestError as error:
            yield from steps
            yield Step(name, "look the account up", watch.lap(), trouble=error.reason)
            return
        yield from steps
        stamp = account.stamp or "not told by the directory, so there are no refresh tokens for this account"
        yield Step(name, "last change of the password", watch.lap(), stamp)

    def findings(self) -> Iterator[Finding]:
        """Say what of the configuration is risky."""
        plain = [address.url for address in self._options.addresses if not address.tls and not self._options.starttls]
        if plain:
            yield Finding(
                Severity.WARNING,
                "'allow_plaintext'",
                f"every password goes to {', '.join(plain)} in clear text",
                "use ldaps://, or starttls = true",
            )
        if self._options.bind_as:
            yield Finding(
                Severity.INFO,
                "'bind_as'",
                "nobody can look accounts up without their password, so there are no refresh tokens for them",
                "use 'bind_dn' if docker shall not keep passwords",
            )
        if self._name.lower() in _OFTEN_WRITABLE:
            yield Finding(
                Severity.WARNING,
                "[backends.user] name",
                f"in many directories people can change their own '{self._name}', and so take another's name",
                "use an attribute that only administrators can change, such as uid",
            )

    def close(self) -> None:
        """End all idle connections."""
        self._directory.close()

    def _ask(self, question: Callable[[Conversation], T]) -> T:
        try:
            return self._directory.ask(question, Deadline.after(LOGIN_TIME))
        except Refused as error:
            raise InvalidCredentials(reason=error.reason) from None
        except DirectoryFailure as error:
            raise BackendUnavailable(error.reason) from None

    def _search_then_bind(self, conversation: Conversation, username: str, password: str) -> LdapAccount:
        entry = self._find(conversation, self._filter.fill({USER: username}))
        name = self._name_of(entry)
        _refuse_fallen(entry)
        state = conversation.prove(entry.dn, password)
        if state.objection:
            # The password is right, and one grace login less is left: the refusal is remembered, which saves the rest.
            raise Refused(state.objection)
        return self._account(conversation, entry, name)

    def _bind_then_search(self, conversation: Conversation, username: str, password: str) -> LdapAccount:
        bound_as = self._options.bind_as.replace(USER, username)
        state = conversation.become(bound_as, password)
        if state.objection:
            raise Refused(state.objection)
        entry = self._find(conversation, self._filter.fill({USER: username}))
        self._prove_identity(conversation, bound_as, entry)
        name = self._name_of(entry)
        _refuse_fallen(entry)
        return self._account(conversation, entry, name)

    def _look_up(self, conversation: Conversation, name: str) -> LdapAccount:
        try:
            entry = self._find(conversation, self._filter.by(self._name, USER).fill({USER: name}))
        except UnknownAccount:
            # Some servers show nothing to who may not look any more. That would end everybody's logins.
            self._see_base(conversation)
            raise
        spelled = self._name_of(entry)
        if spelled.lower() != name:
            raise UnknownAccount(reason="the entry has another name by now")
        if self._options.directory == "ad" and not entry.texts("userAccountControl"):
            raise Misconfigured("'bind_dn' may not read userAccountControl, so nobody can tell who is disabled")
        _refuse_fallen(entry)
        return self._account(conversation, entry, spelled)

    def _trace(self, conversation: Conversation, username: str, steps: list[Step], watch: _Stopwatch) -> LdapAccount:
        steps.clear()
        watch.lap()
        subject = conversation.server.address.url
        entry = self._find(conversation, self._filter.fill({USER: username}))
        steps.append(Step(subject, "find the entry", watch.lap(), entry.dn))
        name = self._name_of(entry)
        steps.append(Step(subject, "account name", watch.lap(), f"{name.lower()} (from '{self._name}')"))
        _refuse_fallen(entry)
        steps.append(Step(subject, "standing", watch.lap(), "neither disabled nor locked nor expired"))
        account = self._account(conversation, entry, name)
        groups = ", ".join(sorted(account.groups)) or "none"
        steps.append(Step(subject, "groups", watch.lap(), f"{len(account.group_dns)}: {groups}"))
        return account

    def _probe(self, server: Server) -> Iterator[Step]:
        url, deadline, watch = server.address.url, Deadline.after(LOGIN_TIME), _Stopwatch()
        attempt = "connect"
        try:
            session = server.connect(deadline)
            version = session.tls_version
            session.close()
            said = f"{version}, the certificate is trusted and this host's" if version else "plain text, no TLS"
            yield Step(url, attempt, watch.lap(), said)
            if self._options.bind_as:
                return
            attempt = "log in"
            with self._directory.converse(server, deadline) as conversation:
                pooled = server.make(deadline)
                server.give_back(pooled)
                yield Step(url, attempt, watch.lap(), self._options.bind_dn or "anonymously")
                attempt = f"see the base {self._base}"
                self._see_base(conversation)
                yield Step(url, attempt, watch.lap(), "it is there")
                attempt = "see when a password changed"
                said = self._sees_changes(conversation)
                yield Step(url, attempt, watch.lap(), said)
        except DirectoryFailure as error:
            yield Step(url, attempt, watch.lap(), trouble=error.reason)

    def _see_base(self, conversation: Conversation) -> None:
        if not conversation.search(self._base, _EVERYTHING, ["1.1"], below=False):
            raise Misconfigured(f"it shows nothing at {self._base}; correct the base, or what 'bind_dn' may read")

    def _sees_changes(self, conversation: Conversation) -> str:
        anything = "".join(f"({attribute}=*)" for attribute in standing.PASSWORD_CHANGED)
        try:
            found = conversation.search(self._base, f"(|{anything})", ["1.1"], limit=1)
        except Incomplete:
            return "entries show it"
        except DirectoryFailure as error:
            # Large directories refuse to search without an index, or take too long; no login asks this.
            return f"cannot be told: {error.reason}"
        return "entries show it" if found else "no entry shows it, so there are no refresh tokens for these accounts"

    def _find(self, conversation: Conversation, filter_: str) -> Entry:
        try:
            # Two, not one: with one, an ambiguous name would look like a certain one on some servers.
            found = conversation.search(self._base, filter_, self._attributes, limit=2)
        except Incomplete:
            raise Refused("the name fits several entries") from None
        if not found:
            raise UnknownAccount(reason="the directory has no such account")
        if len(found) > 1:
            raise Refused(f"the name fits several entries: {' and '.join(entry.dn for entry in found)}")
        (entry,) = found
        if not entry.dn:
            raise Refused("the entry has no name")  # a bind as nobody would succeed
        return entry

    def _name_of(self, entry: Entry) -> str:
        """Return the account's name as the directory spells it."""
        values = entry.texts(self._name)
        if len(values) != 1:
            raise Refused(f"{entry.dn} has {len(values)} values of '{self._name}', and an account has one name")
        (name,) = values
        if name != name.strip() or not name or any(unicodedata.category(character) == "Cc" for character in name):
            raise Refused(f"'{self._name}' of {entry.dn} cannot be the name of an account")
        return name

    def _account(self, conversation: Conversation, entry: Entry, name: str) -> LdapAccount:
        groups: frozenset[Group] = frozenset()
        if self._groups is not None:
            groups = self._groups.of(entry, name, conversation)
        return LdapAccount(
            name.lower(),
            frozenset(group.name for group in groups if group.name),
            # Without somebody who can search, no refresh token could ever be used.
            stamp="" if self._options.bind_as else standing.password_stamp(entry),
            dn=entry.dn,
            group_dns=frozenset(group.dn for group in groups),
        )

    def _prove_identity(self, conversation: Conversation, bound_as: str, entry: Entry) -> None:
        """Prove that who logged in is who was found: Active Directory takes one text for several accounts' names."""
        try:
            bound = DistinguishedName.parse(bound_as)
        except ValueError:
            kind, _, who = conversation.identity().partition(":")
            if kind == "u":
                spelled = who.rpartition("\\")[2].lower()
                if spelled in (value.lower() for value in entry.texts("sAMAccountName")):
                    return
                raise Refused(f"{who} has logged in, but {entry.dn} was found") from None
            bound = DistinguishedName.given(who)
        if bound != DistinguishedName.given(entry.dn):
            raise Refused(f"{bound_as} has logged in, but {entry.dn} was found")


def _refuse_fallen(entry: Entry) -> None:
    if reason := standing.objection(entry, datetime.now(UTC)):
        raise Refused(reason)
