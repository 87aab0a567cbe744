"""What `tokenissuer check` tells of a directory, and of one of its accounts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from tokenissuer import Deadline, Finding, Findings, RequestError, Severity, Stopwatch, fold
from tokenissuer_backends.ldap import standing
from tokenissuer_backends.ldap.account import Accounts, LdapAccount, see
from tokenissuer_backends.ldap.directory import Conversation, Directory
from tokenissuer_backends.ldap.failure import DirectoryFailure, Incomplete, Refused
from tokenissuer_backends.ldap.filter import EVERYTHING
from tokenissuer_backends.ldap.options import CHAIN_RULE, LdapOptions
from tokenissuer_backends.ldap.server import Server

#: How many wrong passwords lock an account: Active Directory, OpenLDAP's policy, FreeIPA.
_LOCKOUT: Final = ("lockoutThreshold", "pwdMaxFailure", "krbPwdMaxFailure")
#: Attributes that users can often change themselves, and with them take another's name.
_OFTEN_WRITABLE: Final = frozenset({"mail", "displayname", "givenname", "sn", "gecos", "description"})


class Report:
    """Looks at a directory and tells what it finds.

    Args:
        options: the configuration.
        directory: asked.
        accounts: finds accounts in it.
        seconds: for each server, and for an account.
    """

    def __init__(self, options: LdapOptions, directory: Directory, accounts: Accounts, seconds: float) -> None:
        self._options: Final = options
        self._directory: Final = directory
        self._accounts: Final = accounts
        self._seconds: Final = seconds

    def on_directory(self) -> Findings:
        """Report on the configuration and every server."""
        yield from self._option_findings()
        try:
            servers = self._directory.servers(Deadline.after(self._seconds))
        except DirectoryFailure as error:
            yield Finding(Severity.ERROR, "'servers'", error.reason)
            return
        for server in servers:
            yield from self._server_findings(server)

    def on_account(self, name: str) -> Findings:
        """Find an account without its password, step by step."""
        found: list[Finding] = []
        watch = Stopwatch()

        def find(conversation: Conversation) -> LdapAccount:
            # The server before may have answered a part.
            found.clear()
            watch.lap()
            url = conversation.server.address.url
            return self.find(
                conversation,
                name,
                lambda fact: found.append(Finding(Severity.INFO, url, fact, seconds=watch.lap())),
            )

        try:
            self._accounts.refuse_unsearchable()
            account = self._directory.ask(find, Deadline.after(self._seconds))
        except (RequestError, DirectoryFailure) as error:
            yield from found
            yield Finding(Severity.ERROR, name, f"look up the account: {error.reason}", seconds=watch.lap())
            return
        yield from found
        version = account.password_version or "unknown to the directory, so this account gets no refresh tokens"
        yield Finding(Severity.INFO, name, f"last change of the password: {version}", seconds=watch.lap())

    def find(
        self, conversation: Conversation, username: str, done: Callable[[str], None] = lambda fact: None
    ) -> LdapAccount:
        """Find an account without its password.

        Args:
            conversation: asks.
            username: as somebody would type it.
            done: is told each step.

        Raises:
            UnknownAccount: if no entry has the name.
            DirectoryFailure: if the server does not tell, or the account could not log in now.
        """
        entry = self._accounts.find(conversation, username)
        done(f"find the entry: {entry.dn}")
        name = self._accounts.name_of(entry)
        done(f"account name: {fold(name)} (from '{self._accounts.name_attribute}')")
        standing.refuse_unusable(entry)
        if reason := standing.passing_objection(entry, datetime.now(UTC)):
            raise Refused(reason)
        unseen = standing.unseen(entry)
        done(f"standing: the entry shows nothing against it{f'; {unseen}' if unseen else ''}")
        account = self._accounts.read(conversation, entry, name)
        groups = ", ".join(sorted(account.groups)) or "none"
        done(f"{len(account.group_names)} groups: {groups}")
        return account

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
        name = self._accounts.name_attribute
        if name.lower() in _OFTEN_WRITABLE:
            yield Finding(
                Severity.WARNING,
                "[backends.user] name",
                f"in many directories people can change their own '{name}', and so take another's name",
                "use an attribute that only administrators can change, such as uid",
            )

    def _server_findings(self, server: Server) -> Findings:
        url, deadline, watch = server.address.url, Deadline.after(self._seconds), Stopwatch()
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
            with closing(self._directory.converse(server, deadline)) as conversation:
                server.give_back(server.make(deadline))
                yield done(self._options.bind_dn or "anonymously")
                for base in self._accounts.bases:
                    step = f"read the base {base}"
                    see(conversation, base)
                    yield done("good")
                step = "last change of passwords"
                yield done(self._sees_changes(conversation))
                step = "lock after wrong passwords"
                yield done(self._lockout(conversation))
        except DirectoryFailure as error:
            yield Finding(Severity.ERROR, url, f"{step}: {error.reason}", seconds=watch.lap())

    def _sees_changes(self, conversation: Conversation) -> str:
        anything = "".join(f"({attribute}=*)" for attribute in standing.PASSWORD_CHANGED)
        try:
            found = any(
                conversation.search(base, f"(|{anything})", ["1.1"], limit=1) for base in self._options.user.bases
            )
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
        numbers = sorted(limits - {0})
        shown = " or ".join(map(str, numbers))
        return (
            f"after {shown}, as far as policies are shown; without [refresh] each process of tokenissuer tries a wrong "
            f"password once, so run at most {max(1, numbers[0] - 1)}"
        )
