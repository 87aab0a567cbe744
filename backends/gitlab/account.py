"""Accounts of a GitLab, carrying what is needed to ask for their rights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TypeVar

from tokenissuer.backend import Account
from tokenissuer_backends.gitlab.credential import ANONYMOUS, Credential

A = TypeVar("A", bound="GitLabAccount")


@dataclass(frozen=True, slots=True)
class GitLabAccount(Account):
    """Somebody who has logged in with a GitLab credential.

    Args:
        credential: what they logged in with. Neither shown nor compared.
    """

    credential: Credential = field(default=ANONYMOUS, repr=False, compare=False)

    def belongs_to(self, group: str) -> bool:
        """Whether this is a member of a group; paths of groups are compared without case, as GitLab does."""
        return group.lower() in self.groups


def without_credential(account: A) -> A:
    """Return the account as it may be remembered."""
    return with_credential(account, ANONYMOUS)


def with_credential(account: A, credential: Credential) -> A:
    """Return a remembered account for somebody who has come with its credential again."""
    return dataclasses.replace(account, credential=credential)


@dataclass(frozen=True, slots=True)
class TokenAccount(GitLabAccount):
    """The owner of a personal, project or group access token.

    Args:
        user_id: the owner's number.
        scopes: the token's.
        external: whether internal projects are closed to the owner.
        administrator: whether the token has an administrator's rights; in GitLab's admin mode it may not.
    """

    user_id: int = 0
    scopes: frozenset[str] = frozenset()
    external: bool = False
    administrator: bool = False


@dataclass(frozen=True, slots=True)
class JobAccount(GitLabAccount):
    """The user a CI job runs for, with the rights of the job and no more.

    Args:
        project: the full path of the job's project, in lower case.
    """

    project: str = ""


@dataclass(frozen=True, slots=True)
class LoginAccount(GitLabAccount):
    """Whoever GitLab's own token endpoint says this is."""
