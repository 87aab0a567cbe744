"""The accounts of a directory: found by what somebody typed, and read from their entries."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tokenissuer import Account, UnknownAccount, fold
from tokenissuer_backends.ldap import standing
from tokenissuer_backends.ldap.directory import Conversation
from tokenissuer_backends.ldap.failure import Incomplete, Misconfigured, Refused
from tokenissuer_backends.ldap.filter import EVERYTHING, FilterTemplate
from tokenissuer_backends.ldap.groups import REMEMBERED_SECONDS, Group, GroupSearch
from tokenissuer_backends.ldap.name import DistinguishedName
from tokenissuer_backends.ldap.options import DN, USER, LdapOptions
from tokenissuer_backends.ldap.wire import Entry

_UNKNOWN: Final = "the directory has no such account"
#: Active Directory's description of its domains.
_CROSS_REFERENCE: Final = FilterTemplate("(&(objectClass=crossRef)(nCName={dn}))", [DN], [DN])


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
        name = self.group_names.get(dn)
        return fold(name) if name else name


class Accounts:
    """Finds accounts and reads them.

    Args:
        options: where they are, and how they and their groups are found.
    """

    def __init__(self, options: LdapOptions) -> None:
        self._options: Final = options
        self._bases: Final = options.user.bases
        #: The bases of accounts and groups.
        self.bases: Final = (*self._bases, *(options.groups.bases if options.groups else ()))
        self._filter: Final = FilterTemplate(options.user.filter or options.preset.user_filter, [USER], [USER])
        # A filter in the configuration takes the place of all of them.
        addresses = () if options.user.filter else options.preset.address_filters
        self._address_filters: Final = tuple(FilterTemplate(text, [USER], [USER]) for text in addresses)
        #: The attribute that is an account's name.
        self.name_attribute: Final = options.user.name or options.preset.user_name
        # What one user is shown of groups does not count for another.
        remembered = 0.0 if options.bind_as else REMEMBERED_SECONDS
        self._groups: Final = GroupSearch(options.groups, options.preset, remembered) if options.groups else None
        #: The attributes of an entry that are needed.
        self.attributes: Final = (
            self.name_attribute,
            *(self._groups.attributes if self._groups else ()),
            *standing.ATTRIBUTES,
            *standing.COUNTERS,
            *(("sAMAccountName", "userPrincipalName") if options.directory == "ad" else ()),
        )
        #: Stand for an unknown name. The entry is the base's, because some searches need an entry that exists.
        self.nobody: Final = f"cn=nobody-{secrets.token_hex(16)},{self._bases[0]}"
        self.nobodys_entry: Final = Entry(self._bases[0], {})

    def find(self, conversation: Conversation, username: str) -> Entry:
        """Find the entry that a typed name means.

        Raises:
            UnknownAccount: if no entry has the name.
            Refused: if several entries have it.
            DirectoryFailure: if the server does not tell.
        """
        domain, backslash, name = username.rpartition("\\")
        if backslash and self._options.directory == "ad":
            self._prove_domain(conversation, domain)
            return self._find(conversation, self._filter.fill({USER: name}))
        found: list[Entry | Refused] = []
        for filter_ in (*(self._address_filters if "@" in username else ()), self._filter):
            # Every filter is used, so that the number of searches does not tell which names exist.
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

    def refuse_unsearchable(self) -> None:
        """Refuse to look for an account without its password where accounts see nobody but themselves.

        Raises:
            UnknownAccount: with `bind_as`.
        """
        if self._options.bind_as:
            raise UnknownAccount(reason="with bind_as no account can search for others; use bind_dn")

    def find_again(self, conversation: Conversation, name: str) -> Entry:
        """Find the entry of an account, by its name.

        Raises:
            UnknownAccount: if no entry has the name.
            DirectoryFailure: if the server does not tell.
        """
        try:
            return self._find(conversation, self._filter.by(self.name_attribute, USER).fill({USER: name}))
        except UnknownAccount:
            # Some servers show nothing to an account that may no longer search. That would end all logins.
            for base in self._bases:
                see(conversation, base)
            raise

    def name_of(self, entry: Entry) -> str:
        """Return the account's name as the directory spells it.

        Raises:
            Refused: if it has none, several, or one that no account can have.
        """
        values = entry.texts(self.name_attribute)
        if len(values) != 1:
            raise Refused(
                f"{entry.dn} has {len(values)} values of '{self.name_attribute}', and an account has one name"
            )
        (name,) = values
        if name != name.strip() or not name or any(unicodedata.category(character) == "Cc" for character in name):
            raise Refused(f"'{self.name_attribute}' of {entry.dn} cannot be the name of an account")
        return name

    def read(self, conversation: Conversation, entry: Entry, name: str) -> LdapAccount:
        """Return the account of an entry, with its groups.

        Raises:
            Refused: if it is in none of the groups that are required.
            DirectoryFailure: if the server does not show its groups.
        """
        groups: frozenset[Group] = frozenset()
        if self._groups is not None:
            groups = self._groups.of(entry, name, conversation)
        account = LdapAccount(
            fold(name),
            frozenset(group.name for group in groups if group.name),
            password_version="" if self._options.bind_as else standing.password_version(entry),
            dn=entry.dn,
            group_names={group.dn: group.name for group in groups},
        )
        required = self._options.groups.required if self._options.groups else ()
        if required and all(account.group_named(group) is None for group in required):
            raise Refused(f"the account is in none of the groups that may log in: {', '.join(required)}")
        return account

    def search_for_nobody(self, conversation: Conversation) -> None:
        """Search for groups as for an account, so that an unknown name costs as much."""
        if self._groups is not None:
            self._groups.of(self.nobodys_entry, self.nobody, conversation)

    def see_bases(self, conversation: Conversation) -> None:
        """Prove that the bases of accounts and groups can be seen.

        Raises:
            DirectoryFailure: if not.
        """
        for base in self.bases:
            see(conversation, base)

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
                found |= {entry.dn: entry for entry in conversation.search(base, filter_, self.attributes, limit=2)}
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


def see(conversation: Conversation, base: str) -> None:
    """Prove that a base can be seen.

    Raises:
        Misconfigured: if not.
    """
    if not conversation.search(base, EVERYTHING, ["1.1"], below=False):
        raise Misconfigured(f"it shows nothing at {base}; correct the base, or what 'bind_dn' may read")
