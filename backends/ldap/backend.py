"""Accounts in an LDAP directory: find the entry, prove the password by a bind, collect the groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from tokenissuer import (
    Backend,
    BackendUnavailable,
    Deadline,
    Findings,
    InvalidCredentials,
    UnknownAccount,
    fold,
)
from tokenissuer_backends.ldap import standing
from tokenissuer_backends.ldap.account import Accounts, LdapAccount
from tokenissuer_backends.ldap.directory import Conversation, Directory
from tokenissuer_backends.ldap.failure import DirectoryFailure, Misconfigured, Refused, Unreachable
from tokenissuer_backends.ldap.filter import EVERYTHING
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import USER, LdapOptions
from tokenissuer_backends.ldap.report import Report
from tokenissuer_backends.ldap.wire import Entry

T = TypeVar("T")

#: Seconds for one login, all servers together. Docker gives up after 15.
LOGIN_TIME: Final = 10.0
#: Bytes: servers close the connection if a longer one is sent.
_MAX_PASSWORD: Final = 1024
_MAX_NAME: Final = 1024

#: Names that need no escape in a DN, a UPN or DOMAIN\name.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
# Of a refused bind: https://www.rfc-editor.org/rfc/rfc4511#appendix-A.2
_INVALID_CREDENTIALS: Final = 49
#: The only code of Active Directory that is about the password alone.
_AD_WRONG_PASSWORD: Final = "52e"


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
        self._accounts: Final = Accounts(options)

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
        self._accounts.refuse_unsearchable()
        account = self._ask(lambda conversation: self._look_up(conversation, name))
        if not account.password_version:
            raise InvalidCredentials(reason="the directory does not show when the password changed")
        return account

    def find(self, username: str) -> LdapAccount:
        """Find an account as a login does, but without its password.

        Raises:
            UnknownAccount: if nobody has the name, or with `bind_as`.
            InvalidCredentials: if the entry shows that it could not log in now.
            BackendUnavailable: if no server can tell.
        """
        self._accounts.refuse_unsearchable()
        report = self._report()
        return self._judged(self._ask(lambda conversation: report.find(conversation, username)))

    def check(self) -> None:
        """Prove that a server lets us search, or with `bind_as` that one can be reached.

        Raises:
            BackendUnavailable: if none does.
        """
        self._ask(
            # With `bind_as` there is nobody to search as.
            lambda conversation: (
                conversation.reach(LOGIN_TIME) if self._options.bind_as else self._accounts.see_bases(conversation)
            )
        )

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report on the configuration and every server, or find an account without its password."""
        report = self._report()
        if account:
            yield from report.on_account(account)
        elif not repository:
            yield from report.on_directory()

    def close(self) -> None:
        """End all idle connections."""
        self._directory.close()

    def _report(self) -> Report:
        return Report(self._options, self._directory, self._accounts, LOGIN_TIME)

    def _ask(self, question: Callable[[Conversation], T]) -> T:
        try:
            return self._directory.ask(question, Deadline.after(LOGIN_TIME))
        except Refused as error:
            raise InvalidCredentials(reason=error.reason) from None
        except DirectoryFailure as error:
            raise BackendUnavailable(error.reason) from None

    def _read(self, conversation: Conversation, entry: Entry, name: str) -> LdapAccount:
        return self._judged(self._accounts.read(conversation, entry, name))

    def _judged(self, account: LdapAccount) -> LdapAccount:
        """Return the account; its groups count as not known if a denial may mean one whose name is not certain."""
        if self.groups_wanted.others_deny and not all(account.group_names.values()):
            # A denial for a pattern or `{group}` may mean the group whose name is not certain.
            return replace(account, groups_known=False)
        return account

    def _search_then_bind(self, conversation: Conversation, username: str, password: str) -> LdapAccount:
        try:
            entry = self._accounts.find(conversation, username)
        except UnknownAccount:
            # The same questions and a bind that cannot succeed: neither the time of the answer nor its kind tells an
            # unknown name from a known one.
            self._accounts.search_for_nobody(conversation)
            self._bind_as_nobody(conversation, password)
            raise
        try:
            name = self._accounts.name_of(entry)
            standing.refuse_unusable(entry)
            # Before the bind: a failure that came after it would tell that the password is right.
            account = self._read(conversation, entry, name)
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
            conversation.prove(self._accounts.nobody, password)
        except Refused as error:
            self._is_wrong(conversation, self._accounts.nobodys_entry, error)

    def _is_wrong(self, conversation: Conversation, entry: Entry, error: Refused) -> bool:
        """Whether the password is certainly wrong. While an account is locked, the right one is refused as well."""
        if error.data:
            return error.data == _AD_WRONG_PASSWORD
        if error.code != _INVALID_CREDENTIALS:
            return False
        try:
            found = conversation.search(entry.dn, EVERYTHING, self._accounts.attributes, below=False)
        except DirectoryFailure:
            return False
        return len(found) == 1 and standing.has_counted(entry, found[0], datetime.now(UTC))

    def _bind_then_search(self, conversation: Conversation, username: str, password: str) -> LdapAccount:
        bound_as = self._options.bind_as.replace(USER, username)
        state = conversation.become(bound_as, password)
        if state.objection:
            raise Refused(state.objection)
        try:
            entry = self._accounts.find(conversation, username)
            self._prove_identity(conversation, bound_as, entry)
            name = self._accounts.name_of(entry)
            standing.refuse_unusable(entry)
            return self._read(conversation, entry, name)
        except (Misconfigured, Unreachable) as error:
            # A wrong password is refused under the same fault, and 503 would tell that this one is right.
            raise Refused(f"{bound_as} has logged in, but {error.reason}") from None

    def _look_up(self, conversation: Conversation, name: str) -> LdapAccount:
        entry = self._accounts.find_again(conversation, name)
        spelled = self._accounts.name_of(entry)
        if fold(spelled) != name:
            raise UnknownAccount(reason="the entry has another name now")
        if self._options.directory == "ad" and not entry.texts("userAccountControl"):
            raise Misconfigured("'bind_dn' may not read userAccountControl, which tells who is disabled")
        standing.refuse_unusable(entry)
        return self._read(conversation, entry, spelled)

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
                spelled = fold(who.rpartition("\\")[2])
                names = (*entry.texts("sAMAccountName"), *entry.texts("userPrincipalName"))
                if spelled in (fold(name) for name in names):
                    return
                raise Refused(f"{who} has logged in, but {entry.dn} was found") from None
            bound = DistinguishedName.given(who)
        if bound != DistinguishedName.given(entry.dn):
            raise Refused(f"{bound_as} has logged in, but {entry.dn} was found")
