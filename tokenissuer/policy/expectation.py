"""`[[test]]` tables: what the access rules must allow, so that no change of a rule breaks it unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenissuer.net import IPAddress, parse_address
from tokenissuer.options import option
from tokenissuer.policy.rule import CATALOG_ACTIONS, REPOSITORY_ACTIONS
from tokenissuer.scope import Access, parse_scopes


@dataclass(frozen=True, slots=True)
class TestOptions:
    """One `[[test]]` table."""

    # pytest must not take this class for tests.
    __test__ = False

    scope: str = option('what is requested, such as "repository:team/app:pull,push"; `*` stands for all actions')
    actions: frozenset[str] = option("exactly these of them must be allowed; [] for none")
    account: str = option("who asks (default: nobody is logged in)", default="")
    groups: frozenset[str] = option("the account's groups", default=frozenset())
    backend: str = option("the account's backend (default: the first)", default="")
    service: str = option("the registry (default: the first)", default="")
    address: str = option("the client's address (default: not known)", default="")
    comment: str = option("what the test is for", default="")

    def __post_init__(self) -> None:
        access = self.access
        possible = CATALOG_ACTIONS if access.is_catalog else REPOSITORY_ACTIONS
        requested = possible if "*" in access.actions else access.actions
        if more := self.actions - requested:
            raise ValueError(f"'actions' has {', '.join(sorted(more))}, which 'scope' does not request")
        if self.groups and not self.account:
            raise ValueError("'groups' needs 'account'; any name will do")
        if self.address and parse_address(self.address) is None:
            raise ValueError(f"'address' is '{self.address}'; use one such as 192.0.2.1")

    @property
    def access(self) -> Access:
        """What is requested."""
        return one_scope(self.scope)

    @property
    def client(self) -> IPAddress | None:
        """The client's address."""
        return parse_address(self.address) if self.address else None


def one_scope(text: str) -> Access:
    """Read one scope.

    Raises:
        ValueError: if the text is not one.
    """
    found: Sequence[Access] = parse_scopes([text])
    if len(found) != 1 or not (found[0].is_repository or found[0].is_catalog) or not found[0].actions:
        raise ValueError(
            f"'{text}' is not a scope such as repository:team/app:pull,push or registry:catalog:* (in small letters)"
        )
    return found[0]
