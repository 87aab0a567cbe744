"""One access rule: who, what and which actions; and the table it is written in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from tokenissuer.net import IPAddress, IPNetwork, parse_network
from tokenissuer.options import near_match, option
from tokenissuer.policy.pattern import Glob, NamePattern, fold, group_path
from tokenissuer.scope import Access

#: What can be done to a repository. A token never says `*` for one: some registries take it for a word.
REPOSITORY_ACTIONS: Final = frozenset({"pull", "push", "delete"})
#: What can be done to the catalog; here registries do ask for `*`.
CATALOG_ACTIONS: Final = frozenset({"*"})

#: The reason of `Rule.obstacles` that stands for the keys `accounts`, `groups`, `authenticated` and `everyone`.
WHO: Final = "who"


class Identity(Protocol):
    """Who is logged in, as far as access rules look: an `Account`."""

    @property
    def name(self) -> str:
        """The account's name."""

    @property
    def groups(self) -> frozenset[str]:
        """The names that `{group}` stands for."""

    @property
    def groups_known(self) -> bool:
        """Whether its groups could be found out; if not, denials for groups apply to it."""

    @property
    def delegated(self) -> bool:
        """Whether rules that allow something do not apply, because the credential was made for one purpose."""

    def group_named(self, text: str) -> str | None:
        """Return the name of its group that an access rule means; empty if the name is not certain; None if none."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends the request.

    Args:
        account: None if nobody is logged in.
        service: the registry that the token is for.
        address: the client's address; None if it is unknown.
        backend: the name of the backend that vouches for the account.
    """

    account: Identity | None
    service: str
    address: IPAddress | None
    backend: str = ""


class Names:
    """Names of accounts or groups in a rule, and patterns for them.

    Args:
        texts: as the rule writes them; a text with a star is a pattern.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: Final = frozenset(texts)
        self.exact: Final = frozenset(text for text in self.texts if "*" not in text)
        #: Whether there are patterns.
        self.has_patterns: Final = self.exact != self.texts
        self._patterns: Final = tuple(NamePattern(text) for text in self.texts - self.exact)
        # Groups are compared without regard to capitals, as their exact names are.
        self._folded: Final = tuple(NamePattern(fold(text)) for text in self.texts - self.exact)

    def name(self, account: Identity) -> bool:
        """Whether an account is meant by its own name."""
        return account.name in self.exact or any(pattern.matches(account.name) for pattern in self._patterns)

    def groups_of(self, account: Identity) -> frozenset[str]:
        """Return the groups by which an account is meant; an empty name among them if the name is not certain."""
        named = (account.group_named(text) for text in self.exact)
        found = frozenset(name for name in named if name is not None)
        if not self._folded:
            return found
        matched = (group for group in account.groups if any(each.matches(group) for each in self._folded))
        return found.union(matched)

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __repr__(self) -> str:
        return f"Names({sorted(self.texts)})"


#: No names.
NOBODY: Final = Names()


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[access]]` table: who may do what, or may not.

    Args:
        number: its place in the configuration, from 1.
        accounts: accounts it applies to.
        groups: groups it applies to.
        authenticated: whether it applies to everyone who is logged in.
        everyone: whether it applies to everyone, logged in or not.
        repositories: patterns of repository names.
        catalog: whether it is about the catalog.
        actions: the actions on these repositories.
        services: only for these registries; empty for all.
        networks: only from these networks; empty for anywhere.
        deny: whether it takes actions away.
        backends: only for accounts of these backends; empty for all.
        except_accounts: accounts it does not apply to.
        except_groups: groups it does not apply to.
        except_repositories: patterns of repository names it is not about.
        comment: what the operator says about it.
        line: its line in the configuration file; 0 if that is not known.
    """

    number: int
    accounts: Names
    groups: Names
    authenticated: bool
    everyone: bool
    repositories: tuple[Glob, ...]
    catalog: bool
    actions: frozenset[str]
    services: frozenset[str]
    networks: tuple[IPNetwork, ...]
    deny: bool
    backends: frozenset[str] = frozenset()
    except_accounts: Names = NOBODY
    except_groups: Names = NOBODY
    except_repositories: tuple[Glob, ...] = ()
    comment: str = ""
    line: int = 0

    def actions_on(self, caller: Caller, access: Access) -> frozenset[str]:
        """Return the actions that this rule allows or denies the caller on a resource; empty if it does not apply."""
        if next(self.obstacles(caller, access), None) is not None:
            return frozenset()
        return CATALOG_ACTIONS if access.is_catalog else self.actions

    def obstacles(self, caller: Caller, access: Access) -> Iterator[str]:
        """Say why this rule does not apply to the caller and a resource, one reason after the other; none if it does.

        The names are those of the keys in the configuration.
        """
        account = caller.account
        if not self._names(account):
            yield WHO
        elif account is not None and self._excepts(account):
            yield "except_accounts" if self.except_accounts.name(account) else "except_groups"
        if self.services and caller.service not in self.services:
            yield "services"
        if self.backends and caller.backend not in self.backends:
            yield "backends"
        if self.networks and not self._covers(caller.address):
            yield "networks"
        if access.is_catalog:
            if not self.catalog:
                yield "catalog"
        # Only a name that a registry accepts is compared with patterns: `team/../other` is not one.
        elif not access.is_repository or not self._is_about(account, access.name):
            yield "repositories"
        elif self.except_repositories and self._spares(account, access.name):
            yield "except_repositories"

    def _names(self, account: Identity | None) -> bool:
        if self.everyone:
            return True
        if account is None:
            return False
        if account.delegated and not self.deny:
            # A CI job may do what its backend grants to jobs; what else its user may do is not for every job.
            return False
        return (
            self.authenticated
            or self.accounts.name(account)
            or (self.deny and bool(self.groups) and not account.groups_known)
            or bool(self.groups.groups_of(account))
        )

    def _excepts(self, account: Identity) -> bool:
        """Whether the account is an exception. Where that is not certain, the rule gives less."""
        if self.deny and account.delegated:
            # That its user is spared by a denial does not mean that every job is.
            return False
        if self.except_accounts.name(account) or self.except_groups.groups_of(account):
            return True
        return bool(self.except_groups) and not account.groups_known and not self.deny

    def _is_about(self, account: Identity | None, name: str) -> bool:
        if account is not None and account.delegated and not self.deny:
            # A rule for everyone: the place of its user is not for every job.
            account = None
        # A denial also holds for a group that nobody knows.
        groups = self._groups_of(account, with_unknown=self.deny)
        return any(glob.matches(name, _name_of(account), groups) for glob in self.repositories)

    def _spares(self, account: Identity | None, name: str) -> bool:
        if account is not None and account.delegated and self.deny:
            # The place of its user, which a denial spares, is not for every job.
            account = None
        groups = self._groups_of(account, with_unknown=not self.deny)
        return any(glob.matches(name, _name_of(account), groups) for glob in self.except_repositories)

    @property
    def needs_all_groups(self) -> bool:
        """Whether groups that the rule does not name may matter."""
        return self._widens(self.groups, self.repositories) or self._widens(
            self.except_groups, self.except_repositories
        )

    @property
    def spares_who_hides_groups(self) -> bool:
        """Whether an account would get more if a group that the rule does not name were not found."""
        if self.deny:
            return self._widens(self.groups, self.repositories)
        return self._widens(self.except_groups, self.except_repositories)

    def _widens(self, names: Names, globs: Iterable[Glob]) -> bool:
        is_for_others = self.everyone or self.authenticated or bool(self.accounts)
        return names.has_patterns or (is_for_others and any(glob.names_groups for glob in globs))

    def _groups_of(self, account: Identity | None, *, with_unknown: bool) -> frozenset[str]:
        """Return what `{group}` stands for: if only its groups make the rule apply, then only the groups it names.

        An empty name stands for any group.
        """
        if account is None:
            return frozenset()
        if self.everyone or self.authenticated or self.accounts.name(account):
            names = account.groups
        else:
            names = self.groups.groups_of(account)
        # A group without a path stands for no repository: a denial holds then, whatever the name is.
        names = frozenset(name if group_path(name) else "" for name in names)
        if not with_unknown:
            return names - {""}
        return names if account.groups_known else names | {""}

    def _covers(self, address: IPAddress | None) -> bool:
        if address is None:
            # Unknown: a denial applies, a permission does not.
            return self.deny
        return any(address in network for network in self.networks)

    def __str__(self) -> str:
        return f"{self.number} ({self.comment})" if self.comment else str(self.number)


def _name_of(account: Identity | None) -> str | None:
    return None if account is None else account.name


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """One `[[access]]` table."""

    accounts: frozenset[str] = option("accounts the rule applies to; `*` is any text", default=frozenset())
    groups: frozenset[str] = option("groups the rule applies to; `*` is any text", default=frozenset())
    authenticated: bool = option("true: it applies to everyone who is logged in", default=False)
    everyone: bool = option("true: it applies to everyone, logged in or not", default=False)
    repositories: tuple[str, ...] = option("patterns of repository names: `*`, `**`, {account}, {group}", default=())
    catalog: bool = option("true: it is about the list of all repositories", default=False)
    actions: frozenset[str] | None = option("'pull', 'push', 'delete', or '*' for all three", default=None)
    services: frozenset[str] | None = option("only for these registries (default: for all)", default=None)
    backends: frozenset[str] | None = option("only for accounts of these backends (default: of all)", default=None)
    networks: tuple[str, ...] | None = option(
        "only from these addresses or networks (default: from anywhere)", default=None
    )
    effect: Literal["allow", "deny"] = option("'deny' takes away, whatever other rules allow", default="allow")
    except_accounts: frozenset[str] = option(
        "accounts the rule does not apply to; `*` is any text", default=frozenset()
    )
    except_groups: frozenset[str] = option("groups the rule does not apply to; `*` is any text", default=frozenset())
    except_repositories: tuple[str, ...] = option("patterns of repositories the rule is not about", default=())
    comment: str = option("what the rule is for; the log and `explain` show it", default="")

    def __post_init__(self) -> None:
        if not (self.accounts or self.groups or self.authenticated or self.everyone):
            raise ValueError(
                "the rule applies to nobody; add accounts, groups, authenticated = true or everyone = true"
            )
        if not self.repositories and not self.catalog:
            raise ValueError("the rule names no resource; add repositories or catalog = true")
        if self.repositories and self.actions is None:
            raise ValueError("the key 'actions' is missing; use for example actions = [\"pull\"]")
        if self.repositories and not self.actions:
            raise ValueError("'actions' is empty, so the rule does nothing; use for example actions = [\"pull\"]")
        if self.except_repositories and not self.repositories:
            raise ValueError("'except_repositories' needs 'repositories', from which it takes some out")
        if self.actions and not self.repositories:
            raise ValueError("'actions' needs 'repositories'; the catalog needs no actions")
        if self.backends and self.everyone:
            raise ValueError(
                "'backends' is for accounts, and everyone = true for who has none; use authenticated = true"
            )
        for key, names in (
            ("accounts", self.accounts),
            ("groups", self.groups),
            ("except_accounts", self.except_accounts),
            ("except_groups", self.except_groups),
        ):
            if "" in names:
                raise ValueError(f"'{key}' has an empty name, which is nobody's; take it out")
        for key, names in (("groups", self.groups), ("except_groups", self.except_groups)):
            if dns := sorted(text for text in names if "*" in text and "=" in text):
                raise ValueError(f"'{key}' has '{dns[0]}': a pattern is for short names, not for DNs; name each DN")
        for key, values in (("services", self.services), ("backends", self.backends), ("networks", self.networks)):
            if values is not None and not values:
                raise ValueError(f"'{key}' is empty, so the rule would never apply; name some, or leave the key out")
        for action in (self.actions or frozenset()) - REPOSITORY_ACTIONS - {"*"}:
            raise ValueError(f"unknown action '{action}'; {near_match(action, REPOSITORY_ACTIONS)}")
        self.rule(0)  # raises for a wrong pattern or network

    def rule(self, number: int, line: int = 0) -> Rule:
        """Build the rule.

        Args:
            number: its place in the configuration, from 1.
            line: its line in the configuration file; 0 if that is not known.
        """
        return Rule(
            number=number,
            accounts=Names(self.accounts),
            groups=Names(self.groups),
            authenticated=self.authenticated,
            everyone=self.everyone,
            repositories=tuple(Glob(text) for text in self.repositories),
            catalog=self.catalog,
            actions=REPOSITORY_ACTIONS if "*" in (actions := self.actions or frozenset()) else actions,
            services=self.services or frozenset(),
            backends=self.backends or frozenset(),
            networks=tuple(parse_network(text) for text in self.networks or ()),
            deny=self.effect == "deny",
            except_accounts=Names(self.except_accounts),
            except_groups=Names(self.except_groups),
            except_repositories=tuple(Glob(text) for text in self.except_repositories),
            comment=self.comment,
            line=line,
        )
