"""Accounts of a GitLab, with what is needed to ask for their rights."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenissuer import Account
from tokenissuer_backends.gitlab.credential import ANONYMOUS, Credential


@dataclass(frozen=True, slots=True)
class GitLabAccount(Account):
    """Somebody who has logged in with a GitLab credential.

    Args:
        credential: what they logged in with; never shown or compared.
    """

    credential: Credential = field(default=ANONYMOUS, repr=False, compare=False)


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
