"""The keys of a `[[backends]]` table with `type = "ldap"`, and the presets."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tokenissuer import Secret, option, shown_url
from tokenissuer_backends.ldap.filter import FilterTemplate
from tokenissuer_backends.ldap.name import DistinguishedName

#: The longest timeout in seconds.
_MAX_TIMEOUT: Final = 10
_MAX_LEVELS: Final = 10
_MAX_CONNECTIONS: Final = 100
_PORTS: Final = {"ldap": 389, "ldaps": 636}
_ATTRIBUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*", re.ASCII)

#: Begins the name of a domain whose servers DNS names.
_SRV: Final = "srv://"
_DOMAIN: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", re.ASCII)

USER: Final = "{user}"
DN: Final = "{dn}"
NAME: Final = "{name}"
GID: Final = "{gid}"

#: Active Directory computes it: the security identifiers of all groups, nested ones and the primary one as well.
TOKEN_GROUPS: Final = "tokenGroups"
#: The matching rule with which Active Directory follows nested groups itself, in seconds.
CHAIN_RULE: Final = "1.2.840.113556.1.4.1941"


@dataclass(frozen=True, slots=True)
class Preset:
    """The usual filters and names of a kind of directory.

    Args:
        user_filter: finds the account.
        user_name: the attribute that is the account's name.
        groups_filter: finds an account's groups.
        groups_name: the attribute that is a group's short name.
        nested: levels of groups in groups to follow.
        address_filters: find the account of a name with an @, tried in turn before `user_filter`.
        groups_attribute: the attribute of the account from which its groups are taken; empty to search for them.
    """

    user_filter: str
    user_name: str
    groups_filter: str
    groups_name: str
    nested: int
    address_filters: tuple[str, ...] = ()
    groups_attribute: str = ""


# None of them excludes disabled accounts: such an account is known and refused, and the next backend must not be asked.
PRESETS: Final = {
    "generic": Preset(
        user_filter="(&(objectClass=inetOrgPerson)(uid={user}))",
        user_name="uid",
        groups_filter=(
            "(|(&(objectClass=groupOfNames)(member={dn}))"
            "(&(objectClass=groupOfUniqueNames)(uniqueMember={dn}))"
            "(&(objectClass=posixGroup)(|(memberUid={name})(gidNumber={gid}))))"
        ),
        groups_name="cn",
        nested=0,
    ),
    "freeipa": Preset(
        user_filter="(&(objectClass=posixAccount)(uid={user}))",
        user_name="uid",
        groups_filter="(&(objectClass=ipaUserGroup)(member={dn}))",
        groups_name="cn",
        nested=5,
    ),
    "ad": Preset(
        user_filter="(&(objectCategory=person)(objectClass=user)(sAMAccountName={user}))",
        user_name="sAMAccountName",
        groups_filter="(&(objectCategory=group)(member={dn}))",
        groups_name="sAMAccountName",
        nested=0,
        # In turn: whoever can change their own mail must not be able to stand in the way of a login by UPN.
        address_filters=(
            "(&(objectCategory=person)(objectClass=user)(userPrincipalName={user}))",
            "(&(objectCategory=person)(objectClass=user)(mail={user}))",
        ),
        groups_attribute=TOKEN_GROUPS,
    ),
}


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server.

    Args:
        url: as configured.
        host: name or address literal.
        port: TCP port.
        tls: whether the connection begins with TLS.
    """

    url: str
    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ldap://HOST[:PORT] or ldaps://HOST[:PORT].

        Raises:
            ValueError: if it has another form.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urllib.parse.urlsplit(""), None
        rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        if parts.scheme not in _PORTS or not parts.hostname or rest or port == 0 or not url.isascii():
            raise ValueError(
                f"the server '{shown_url(url)}' is not a URL such as ldaps://ldap.example.com or ldaps://10.0.0.1:1636"
            )
        return cls(url, parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "ldaps")


@dataclass(frozen=True, slots=True)
class UserOptions:
    """The `[backends.user]` table: how an account is found."""

    base: str | tuple[str, ...] = option("DN below which accounts are searched, or several DNs in a list")
    filter: str | None = option(
        "finds the account; {user} stands for what was typed (default: the preset's)", default=None
    )
    name: str | None = option(
        "attribute that is the account's name: one value, lower-cased; nobody may be able to change their own "
        "(default: the preset's)",
        default=None,
    )

    def __post_init__(self) -> None:
        if not self.bases:
            raise ValueError("'base' is an empty list; name a DN such as ou=people,dc=example,dc=com")
        _check_bases(self.bases)
        _check_attribute("name", self.name)
        if self.filter is not None:
            FilterTemplate(self.filter, [USER], [USER])

    @property
    def bases(self) -> tuple[str, ...]:
        """The DNs of 'base'."""
        return _as_tuple(self.base)


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """The `[backends.groups]` table: how an account's groups are found."""

    base: str | tuple[str, ...] = option("DN below which groups count, or several DNs in a list", default=())
    filter: str | None = option(
        "finds the groups of {dn} (the account's DN), {name} (its name) or {gid} (its gidNumber) "
        "(default: the preset's)",
        default=None,
    )
    attribute: str | None = option(
        "attribute of the account that lists its groups, instead of a search: memberOf, or another with DNs, or "
        "Active Directory's tokenGroups (default: the preset's)",
        default=None,
    )
    name: str | None = option("attribute that is a group's short name (default: the preset's)", default=None)
    nested: int | None = option("levels of groups in groups to follow, 0 to 10 (default: the preset's)", default=None)
    required: tuple[str, ...] = option(
        "groups, by short name or DN: only their members may log in (default: everybody may)", default=()
    )

    def __post_init__(self) -> None:
        _check_attribute("attribute", self.attribute)
        _check_attribute("name", self.name)
        _check_bases(self.bases)
        if self.filter is not None:
            FilterTemplate(self.filter, [DN, NAME, GID], [DN, NAME, GID])
        if not self.bases and (self.attribute is None or self.attribute.lower() == TOKEN_GROUPS.lower()):
            raise ValueError("the key 'base' is missing (DN below which groups are searched)")
        if self.attribute is not None and (self.filter is not None or self.nested):
            raise ValueError("'attribute' takes the groups from the account's entry; leave out 'filter' and 'nested'")
        if self.nested is not None and not 0 <= self.nested <= _MAX_LEVELS:
            raise ValueError(f"'nested' is {self.nested}; use 0 to {_MAX_LEVELS}")
        if "" in self.required:
            raise ValueError("'required' has an empty name; nobody is in such a group")

    @property
    def bases(self) -> tuple[str, ...]:
        """The DNs of 'base'; none where all groups count."""
        return _as_tuple(self.base)


@dataclass(frozen=True, slots=True)
class LdapOptions:
    """The keys of a `[[backends]]` table with `type = "ldap"`."""

    servers: tuple[str, ...] = option(
        "URLs of servers with the same data, in the order in which they are tried; or srv://DOMAIN alone, to find them "
        "in DNS"
    )
    user: UserOptions = option("the table [backends.user]: how an account is found")
    groups: GroupOptions | None = option("the table [backends.groups] (default: no groups)", default=None)
    directory: Literal["generic", "freeipa", "ad"] = option("fills in filters and names", default="generic")
    bind_dn: str = option("DN of the account that searches (default: search anonymously)", default="")
    bind_password: Secret | None = option("its password", default=None)
    bind_as: str = option(
        "bind as this name without searching first: a DN, UPN or DOMAIN\\name with {user} in it", default=""
    )
    starttls: bool = option("true: start TLS on ldap:// connections before anything is sent", default=False)
    ca_file: Path | None = option("PEM file of the CAs to trust (default: the system's)", default=None)
    allow_plaintext: bool = option(
        "true: allow ldap:// without TLS, on which every password can be read", default=False
    )
    server_name: str = option(
        "name that the servers' certificates must have, where 'servers' has another, such as an address", default=""
    )
    connect_timeout: int = option("seconds to reach a server, TLS included, 1 to 10", default=3)
    timeout: int = option("seconds for each question to a server, 1 to 10", default=5)
    pool_size: int = option("connections of bind_dn kept for the next login, 0 to 100", default=8)

    def __post_init__(self) -> None:
        self._check_servers()
        self._check_identity()
        if self.server_name and not _DOMAIN.fullmatch(self.server_name.lower()):
            raise ValueError(f"'server_name' is '{self.server_name}'; use a host name such as dc1.corp.example.com")
        for key, value in (("connect_timeout", self.connect_timeout), ("timeout", self.timeout)):
            if not 1 <= value <= _MAX_TIMEOUT:
                raise ValueError(f"'{key}' is {value}; use 1 to {_MAX_TIMEOUT} seconds")
        if not 0 <= self.pool_size <= _MAX_CONNECTIONS:
            raise ValueError(f"'pool_size' is {self.pool_size}; use 0 to {_MAX_CONNECTIONS}")

    @property
    def preset(self) -> Preset:
        """The defaults for filters and names."""
        return PRESETS[self.directory]

    @property
    def domain(self) -> str:
        """The domain whose servers DNS names; empty if `servers` names them."""
        return self.servers[0].removeprefix(_SRV).lower() if self.servers[0].startswith(_SRV) else ""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of the servers that the configuration names."""
        return () if self.domain else tuple(Address.parse(url) for url in self.servers)

    def _check_servers(self) -> None:
        if not self.servers:
            raise ValueError("'servers' is empty; name at least one, such as ldaps://ldap.example.com")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("'servers' names one server twice")
        if any(url.startswith(_SRV) for url in self.servers) and (
            len(self.servers) > 1 or not _DOMAIN.fullmatch(self.domain)
        ):
            raise ValueError("a server srv://DOMAIN stands alone in 'servers', such as srv://corp.example.com")
        for address in self.addresses:
            if address.tls and self.starttls:
                raise ValueError(
                    f"'starttls' is only for ldap://, and {address.url} already has TLS; use one of the two"
                )
            if not address.tls and not self.starttls and not self.allow_plaintext:
                raise ValueError(
                    f"{address.url} would send every password in clear text; use ldaps://, or starttls = true "
                    "(or, on a network that nobody else can read, allow_plaintext = true)"
                )

    def _check_identity(self) -> None:
        if self.bind_dn:
            if self.directory != "ad":  # Active Directory takes name@domain and DOMAIN\\name as well
                DistinguishedName.parse(self.bind_dn)
            if self.bind_as:
                raise ValueError("'bind_dn' and 'bind_as' are two ways to log in; keep one")
            if self.bind_password is None:
                raise ValueError("'bind_dn' needs its password; add bind_password_file")
        elif self.bind_password is not None:
            raise ValueError("'bind_password' is given without 'bind_dn'")
        if self.bind_as and self.bind_as.count(USER) != 1:
            raise ValueError(f"'bind_as' is '{self.bind_as}'; it must have {USER} in it once")
        if self.bind_as.replace(USER, "").count("{"):
            raise ValueError(f"'bind_as' is '{self.bind_as}'; the only placeholder it may have is {USER}")


def _check_attribute(key: str, value: str | None) -> None:
    if value is not None and not _ATTRIBUTE.fullmatch(value):
        raise ValueError(f"'{key}' is '{value}'; use the name of one attribute, such as uid")


def _check_bases(bases: Iterable[str]) -> None:
    for base in bases:
        DistinguishedName.parse(base)


def _as_tuple(base: str | tuple[str, ...]) -> tuple[str, ...]:
    return (base,) if isinstance(base, str) else base
