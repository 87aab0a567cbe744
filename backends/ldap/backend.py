"""Accounts in an LDAP directory: find the entry, prove the password by a bind, collect the groups."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from tokenissuer import (
    Account,
    Backend,
    BackendUnavailable,
    Deadline,
    Finding,
    Findings,
    InvalidCredentials,
    RequestError,
    Severity,
    Stopwatch,
    UnknownAccount,
)
from tokenissuer_backends.ldap import standing
from tokenissuer_backends.ldap.directory import Conversation, Directory
from tokenissuer_backends.ldap.failure import DirectoryFailure, Incomplete, Misconfigured, Refused, Unreachable
from tokenissuer_backends.ldap.filter import EVERYTHING, FilterTemplate
from tokenissuer_backends.ldap.groups import REMEMBERED_SECONDS, Group, GroupSearch
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import CHAIN_RULE, DN, USER, LdapOptions
from tokenissuer_backends.ldap.server import Server
from tokenissuer_backends.ldap.wire import Entry

T = TypeVar("T")

#: Seconds for one login, all servers together. Docker gives up after 15.
LOGIN_TIME: Final = 10.0
#: Bytes: servers close the connection if a longer one is sent.
_MAX_PASSWORD: Final = 1024
_MAX_NAME: Final = 1024

#: Names that need no escape in a DN, a UPN or DOMAIN\name.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_UNKNOWN: Final = "the directory has no such account"
# Of a refused bind: https://www.rfc-editor.org/rfc/rfc4511#appendix-A.2
_INVALID_CREDENTIALS: Final = 49
#: The only code of Active Directory that is about the password alone.
_AD_WRONG_PASSWORD: Final = "52e"
#: Active Directory's description of its domains.
_CROSS_REFERENCE: Final = FilterTemplate("(&(objectClass=crossRef)(nCName={dn}))", [DN], [DN])
#: How many wrong passwords lock an account: Active Directory, OpenLDAP's policy, FreeIPA.
_LOCKOUT: Final = ("lockoutThreshold", "pwdMaxFailure", "krbPwdMaxFailure")
#: Attributes that users can often change themselves, and with them take another's name.
_OFTEN_WRITABLE: Final = frozenset({"mail", "displayname", "givenname", "sn", "gecos", "description"})


@dataclass(frozen=True, slots=True)
class LdapAccount(Account):
    """An account of the directory.

    Args:
        dn: its entry.
        group_names: the short names of its groups, by distinguished name; empty if a name is not certain.
    """

    dn: str = ""
    group_names: Mapping[DistinguishedName, str] = field(default_factory=dict, compare=False)

    def group_named(self, text: str) -> str | None:
        """Return the short name of its group that an access rule means by a DN or short name.

        A text that is a DN is compared only with DNs: a group's short name must not be able to look like another
        group's DN.
        """
        try:
            dn = DistinguishedName.parse(text)
        except ValueError:
            return Account.group_named(self, text)
        return self.group_names.get(dn)


class LdapBackend(Backend):
    """Accounts in an LDAP directory.

    Args:
        options: where it is and what to ask it.

    Raises:
        ConfigurationError: if the CA file cannot be used. A directory may be down: it may come back.
    """

    Options = LdapOptions

    def __init__(self, options: LdapOptions) -> None:
        self._options: Final = options
        self._directory: Final = Directory(options)
        self._bases: Final = options.user.bases
        self._filter: Final = FilterTemplate(options.user.filter or options.preset.user_filter, [USER], [USER])
        # Whoever writes a filter says all that is wanted.
        addresses = () if options.user.filter else options.preset.address_filters
        self._address_filters: Final = tuple(FilterTemplate(text, [USER], [USER]) for text in addresses)
        self._name: Final = options.user.name or options.preset.user_name
        # What one user is shown of groups does not count for another.
        remembered = 0.0 if options.bind_as else REMEMBERED_SECONDS
        self._groups: Final = GroupSearch(options.groups, options.preset, remembered) if options.groups else None
        self._attributes: Final = (
            self._name,
            *(self._groups.attributes if self._groups else ()),
            *standing.ATTRIBUTES,
            *standing.COUNTERS,
            *(("sAMAccountName", "userPrincipalName") if options.directory == "ad" else ()),
        )
        self._nobody: Final = f"cn=nobody-{secrets.token_hex(16)},{self._bases[0]}"

    def authenticate(self, username: str, password: str) -> LdapAccount:
        """Prove that the password is this account's.

        Raises:
            UnknownAccount: if the directory has no such account.
            InvalidCredentials: if it refuses, or the account is not in good standing.
            BackendUnavailable: if no server can tell, or the configuration does not fit the directory.
        """
        # Not "unknown": nobody may get past this directory to another backend by typing more.
        for kind, text, most in (("user name", username, _MAX_NAME), ("password", password, _MAX_PASSWORD)):
            if len(text.encode("utf-8")) > most:
                raise InvalidCredentials(reason=f"the {kind} has more than {most} bytes")
        if not self._options.bind_as:
            return self._ask(lambda conversation: self._search_then_bind(conversation, username, password))
        if not _PLAIN_NAME.fullmatch(username):
            raise UnknownAccount(reason="with bind_as a user name has letters, digits, dots, hyphens and _ only")
        return self._ask(lambda conversation: self._bind_then_search(conversation, username, password))

    def lookup(self, name: str, password: str) -> LdapAccount:
        """Find an account again, for a refresh token: its entry, its standing and its groups as they are now.

        Raises:
            InvalidCredentials: if it is gone, locked or expired, or nothing tells when its password changed.
            BackendUnavailable: if no server can tell.
        """
        if self._options.bind_as:
            raise InvalidCredentials(reason="with bind_as no account can search for others; use bind_dn")
        account = self._ask(lambda conversation: self._look_up(conversation, name))
        if not account.password_version:
            raise InvalidCredentials(reason="the directory does not show when the password changed")
        return account

    def check(self) -> None:
        """Prove that a server lets us search, or with `bind_as` that one can be reached.

        Raises:
            BackendUnavailable: if none does.
        """
        self._ask(self._see_bases)

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report on the configuration and every server, or find an account without its password."""
        if account:
            yield from self._trace(account)
        elif not repository:
            yield from self._option_findings()
            try:
                servers = self._directory.servers(Deadline.after(LOGIN_TIME))
            except DirectoryFailure as error:
                yield Finding(Severity.ERROR, "'servers'", error.reason)
                return
            for server in servers:
                yield from self._server_findings(server)

    def _option_findings(self) -> Findings:
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
                "no account can look up others without their password, so no refresh tokens are issued",
                "use 'bind_dn' if docker shall not store passwords",
            )
        groups = self._options.groups
        if groups is not None and self._options.directory == "ad":
            if CHAIN_RULE in (groups.filter or ""):
                slow = "'filter' lets the server follow nested groups for each login, which can take seconds"
            elif groups.nested:
                slow = "'nested' asks once for each level and fifty groups, which can take seconds"
            else:
                slow = ""
            if slow:
                remedy = "leave it out: the server then names all groups of the account at once (tokenGroups)"
                yield Finding(Severity.WARNING, "[backends.groups]", slow, remedy)
        if self._name.lower() in _OFTEN_WRITABLE:
            yield Finding(
                Severity.WARNING,
                "[backends.user] name",
                f"in many directories people can change their own '{self._name}', and so take another's name",
                "use an attribute that only administrators can change, such as uid",
            )

    def _server_findings(self, server: Server) -> Findings:
        url, deadline, watch = server.address.url, Deadline.after(LOGIN_TIME), Stopwatch()
        step = "connect"

        def done(fact: str) -> Finding:
            return Finding(Severity.INFO, url, f"{step}: {fact}", seconds=watch.lap())

        try:
            session = server.connect(deadline)
            version = session.tls_version
            session.close()
            yield done(f"{version}, certificate and host name are verified" if version else "plain text, no TLS")
            if self._options.bind_as:
                return
            step = "log in"
            with self._directory.converse(server, deadline) as conversation:
                server.give_back(server.make(deadline))
                yield done(self._options.bind_dn or "anonymously")
                for base in (*self._bases, *(self._options.groups.bases if self._options.groups else ())):
                    step = f"read the base {base}"
                    _see(conversation, base)
                    yield done("good")
                step = "last change of passwords"
                yield done(self._sees_changes(conversation))
                step = "lock after wrong passwords"
                yield done(self._lockout(conversation))
        except DirectoryFailure as error:
            yield Finding(Severity.ERROR, url, f"{step}: {error.reason}", seconds=watch.lap())

    def _trace(self, name: str) -> Findings:
        found: list[Finding] = []
        watch = Stopwatch()
        try:
            if self._options.bind_as:
                raise InvalidCredentials(reason="with bind_as no account can search for others")
            account = self._ask(lambda conversation: self._trace_on(conversation, name, found, watch))
        except RequestError as error:
            yield from found
            yield Finding(Severity.ERROR, name, f"look up the account: {error.reason}", seconds=watch.lap())
            return
        yield from found
        version = account.password_version or "unknown to the directory, so this account gets no refresh tokens"
        yield Finding(Severity.INFO, name, f"last change of the password: {version}", seconds=watch.lap())

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
        try:
            entry = self._find_typed(conversation, username)
        except UnknownAccount:
            # The same questions and a bind that cannot succeed: neither the time of the answer nor its kind tells an
            # unknown name from a known one.
            if self._groups is not None:
                # The base, not a name that nobody has: some questions are about an entry that exists.
                self._groups.of(Entry(self._bases[0], {}), self._nobody, conversation)
            self._bind_as_nobody(conversation, password)
            raise
        try:
            name = self._name_of(entry)
            _refuse_unusable(entry)
            # Before the bind: a failure that came after it would tell that the password is right.
            account = self._account(conversation, entry, name)
            if self.refusals is not None and self.refusals.holds(account, password):
                raise Refused("the password was wrong before, and the account's has not changed since")
        except Refused:
            self._bind_as_nobody(conversation, password)
            raise
        try:
            state = conversation.prove(entry.dn, password)
        except Refused as error:
            if self._is_wrong(conversation, entry, error) and self.refusals is not None:
                self.refusals.add(account, password)
            raise
        if state.objection:
            # The password is right and has cost a grace login. The core remembers the refusal, which saves the others.
            raise Refused(state.objection)
        return account

    def _bind_as_nobody(self, conversation: Conversation, password: str) -> None:
        """Do what a wrong password costs."""
        try:
            conversation.prove(self._nobody, password)
        except Refused as error:
            self._is_wrong(conversation, Entry(self._bases[0], {}), error)

    def _is_wrong(self, conversation: Conversation, entry: Entry, error: Refused) -> bool:
        """Whether the password is certainly wrong. While an account is locked, the right one is refused as well."""
        if error.data:
            return error.data == _AD_WRONG_PASSWORD
        if error.code != _INVALID_CREDENTIALS:
            return False
        try:
            found = conversation.search(entry.dn, EVERYTHING, self._attributes, below=False)
        except DirectoryFailure:
            return False
        return len(found) == 1 and standing.has_counted(entry, found[0], datetime.now(UTC))

    def _bind_then_search(self, conversation: Conversation, username: str, password: str) -> LdapAccount:
        bound_as = self._options.bind_as.replace(USER, username)
        state = conversation.become(bound_as, password)
        if state.objection:
            raise Refused(state.objection)
        try:
            entry = self._find_typed(conversation, username)
            self._prove_identity(conversation, bound_as, entry)
            name = self._name_of(entry)
            _refuse_unusable(entry)
            return self._account(conversation, entry, name)
        except (Misconfigured, Unreachable) as error:
            # A wrong password is refused under the same fault, and 503 would tell that this one is right.
            raise Refused(f"{bound_as} has logged in, but {error.reason}") from None

    def _look_up(self, conversation: Conversation, name: str) -> LdapAccount:
        try:
            entry = self._find(conversation, self._filter.by(self._name, USER).fill({USER: name}))
        except UnknownAccount:
            # Some servers show nothing to an account that may no longer search. That would end all logins.
            for base in self._bases:
                _see(conversation, base)
            raise
        spelled = self._name_of(entry)
        if spelled.lower() != name:
            raise UnknownAccount(reason="the entry has another name now")
        if self._options.directory == "ad" and not entry.texts("userAccountControl"):
            raise Misconfigured("'bind_dn' may not read userAccountControl, which tells who is disabled")
        _refuse_unusable(entry)
        return self._account(conversation, entry, spelled)

    def _trace_on(
        self, conversation: Conversation, username: str, found: list[Finding], watch: Stopwatch
    ) -> LdapAccount:
        def done(fact: str) -> None:
            found.append(Finding(Severity.INFO, conversation.server.address.url, fact, seconds=watch.lap()))

        found.clear()
        watch.lap()
        entry = self._find_typed(conversation, username)
        done(f"find the entry: {entry.dn}")
        name = self._name_of(entry)
        done(f"account name: {name.lower()} (from '{self._name}')")
        _refuse_unusable(entry)
        if reason := standing.passing_objection(entry, datetime.now(UTC)):
            raise Refused(reason)
        unseen = standing.unseen(entry)
        done(f"standing: the entry shows nothing against it{f'; {unseen}' if unseen else ''}")
        account = self._account(conversation, entry, name)
        groups = ", ".join(sorted(account.groups)) or "none"
        done(f"{len(account.group_names)} groups: {groups}")
        return account

    def _see_bases(self, conversation: Conversation) -> None:
        if self._options.bind_as:
            # There is nobody to search as.
            conversation.reach(LOGIN_TIME)
            return
        for base in (*self._bases, *(self._options.groups.bases if self._options.groups else ())):
            _see(conversation, base)

    def _sees_changes(self, conversation: Conversation) -> str:
        anything = "".join(f"({attribute}=*)" for attribute in standing.PASSWORD_CHANGED)
        try:
            found = any(conversation.search(base, f"(|{anything})", ["1.1"], limit=1) for base in self._bases)
        except Incomplete:
            return "some entries show it"
        except DirectoryFailure as error:
            # Large directories refuse a search without an index, or take too long; no login asks this.
            return f"unknown: {error.reason}"
        return "some entries show it" if found else "no entry shows it, so these accounts get no refresh tokens"

    def _lockout(self, conversation: Conversation) -> str:
        limits: set[int] = set()
        try:
            for root in conversation.search("", EVERYTHING, ["defaultNamingContext", "namingContexts"], below=False):
                for base in root.texts("defaultNamingContext") or root.texts("namingContexts"):
                    policies = f"(|{''.join(f'({attribute}=*)' for attribute in _LOCKOUT)})"
                    for policy in conversation.search(base, policies, [*_LOCKOUT, "pwdLockout"]):
                        if policy.texts("pwdLockout") != ("FALSE",):
                            limits |= {int(text) for name in _LOCKOUT for text in policy.texts(name) if text.isdigit()}
        except DirectoryFailure as error:
            return f"not shown: {error.reason}"
        if not limits:
            return "not shown"
        if limits == {0}:
            return "never"
        least, *more = sorted(limits - {0})
        shown = " or ".join(map(str, [least, *more]))
        return (
            f"after {shown}, as far as policies are shown; without [refresh] each process of tokenissuer tries a wrong "
            f"password once, so run at most {max(1, least - 1)}"
        )

    def _find_typed(self, conversation: Conversation, username: str) -> Entry:
        """Find the entry of who typed this name."""
        domain, backslash, name = username.rpartition("\\")
        if backslash and self._options.directory == "ad":
            self._prove_domain(conversation, domain)
            return self._find(conversation, self._filter.fill({USER: name}))
        found: list[Entry | Refused] = []
        for filter_ in (*(self._address_filters if "@" in username else ()), self._filter):
            # All of them, so that the number of questions does not tell who is found.
            try:
                found.append(self._find(conversation, filter_.fill({USER: username})))
            except UnknownAccount:
                continue
            except Refused as error:
                found.append(error)
        if not found:
            raise UnknownAccount(reason=_UNKNOWN)
        if isinstance(found[0], Refused):
            raise found[0]
        return found[0]

    def _prove_domain(self, conversation: Conversation, domain: str) -> None:
        """Prove that this is the domain's short name, as in DOMAIN\\name: others may have accounts of the same name."""
        names: list[str] = []
        wanted = ["defaultNamingContext", "configurationNamingContext"]
        for root in conversation.search("", EVERYTHING, wanted, below=False):
            contexts = [text for attribute in wanted for text in root.texts(attribute)]
            if len(contexts) == len(wanted):
                base, filter_ = f"CN=Partitions,{contexts[1]}", _CROSS_REFERENCE.fill({DN: contexts[0]})
                for found in conversation.search(base, filter_, ["nETBIOSName"]):
                    names += found.texts("nETBIOSName")
        if not names:
            raise Misconfigured("it does not show its domain's short name to 'bind_dn', so DOMAIN\\name is no login")
        if domain.casefold() not in (name.casefold() for name in names):
            raise UnknownAccount(reason=f"'{domain}' is not the domain, whose short name is {' or '.join(names)}")

    def _find(self, conversation: Conversation, filter_: str) -> Entry:
        found: dict[str, Entry] = {}
        try:
            for base in self._bases:
                # Two, not one: with one, an ambiguous name would look like a certain one on some servers.
                found |= {entry.dn: entry for entry in conversation.search(base, filter_, self._attributes, limit=2)}
        except Incomplete:
            raise Refused("several entries have the name") from None
        if not found:
            raise UnknownAccount(reason=_UNKNOWN)
        if len(found) > 1:
            raise Refused(f"several entries have the name: {' and '.join(found)}")
        (entry,) = found.values()
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
        account = LdapAccount(
            name.lower(),
            frozenset(group.name for group in groups if group.name),
            password_version="" if self._options.bind_as else standing.password_version(entry),
            dn=entry.dn,
            group_names={group.dn: group.name.casefold() for group in groups},
        )
        required = self._options.groups.required if self._options.groups else ()
        if required and all(account.group_named(group) is None for group in required):
            raise Refused(f"the account is in none of the groups that may log in: {', '.join(required)}")
        return account

    def _prove_identity(self, conversation: Conversation, bound_as: str, entry: Entry) -> None:
        """Prove that the entry found is the one that logged in: in Active Directory two accounts may match one text."""
        try:
            bound = DistinguishedName.parse(bound_as)
        except ValueError:
            try:
                kind, _, who = conversation.identity().partition(":")
            except Misconfigured:
                # Samba does not tell. What has logged in must be one of the entry's own names, which are unique.
                kind, who = "u", bound_as
            if kind == "u":
                spelled = who.rpartition("\\")[2].lower()
                names = (*entry.texts("sAMAccountName"), *entry.texts("userPrincipalName"))
                if spelled in (name.lower() for name in names):
                    return
                raise Refused(f"{who} has logged in, but {entry.dn} was found") from None
            bound = DistinguishedName.given(who)
        if bound != DistinguishedName.given(entry.dn):
            raise Refused(f"{bound_as} has logged in, but {entry.dn} was found")


def _refuse_unusable(entry: Entry) -> None:
    if reason := standing.objection(entry, datetime.now(UTC)):
        raise Refused(reason)


def _see(conversation: Conversation, base: str) -> None:
    """Prove that a base can be seen."""
    if not conversation.search(base, EVERYTHING, ["1.1"], below=False):
        raise Misconfigured(f"it shows nothing at {base}; correct the base, or what 'bind_dn' may read")
