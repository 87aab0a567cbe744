"""What GitLab's own registry would allow: by role, visibility and feature level, and by the scopes of a token.

https://docs.gitlab.com/user/packages/container_registry/#container-registry-visibility-permissions and
https://docs.gitlab.com/user/profile/personal_access_tokens/#personal-access-token-scopes
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tokenissuer import Access, BackendUnavailable

# Access levels; the gaps are used too (15 Planner, 25 Security Manager), so only comparisons make sense.
NO_ACCESS: Final = 0
GUEST: Final = 10
REPORTER: Final = 20
DEVELOPER: Final = 30
MAINTAINER: Final = 40
OWNER: Final = 50

NOTHING: Final[frozenset[str]] = frozenset()
PULL: Final = frozenset({"pull"})
PULL_PUSH: Final = frozenset({"pull", "push"})
EVERYTHING: Final = frozenset({"pull", "push", "delete"})

# `write_registry` alone does not pull, and only `api` deletes.
_PULLING: Final = frozenset({"api", "read_api", "read_registry"})
_PUSHING: Final = frozenset({"api", "write_registry"})
_DELETING: Final = frozenset({"api"})


class Visibility(StrEnum):
    """Who sees a project."""

    PRIVATE = "private"
    INTERNAL = "internal"
    PUBLIC = "public"


class RegistryLevel(StrEnum):
    """For whom a project's container registry is switched on."""

    DISABLED = "disabled"
    #: For Reporters and above.
    PRIVATE = "private"
    ENABLED = "enabled"


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody who looks at a project.

    Args:
        access_level: the highest role in it; `NO_ACCESS` for none.
        logged_in: whether somebody is logged in.
        external: whether an administrator marked the user external: external users do not see internal projects.
    """

    access_level: int = NO_ACCESS
    logged_in: bool = True
    external: bool = False


def actions_by_role(visibility: Visibility, level: RegistryLevel, viewer: Viewer) -> frozenset[str]:
    """Return what a viewer may do, with any credential.

    Args:
        visibility: the project's.
        level: the project's.
        viewer: who looks at it.
    """
    role = viewer.access_level
    if level is RegistryLevel.DISABLED or (level is RegistryLevel.PRIVATE and role < REPORTER):
        return NOTHING
    if role >= MAINTAINER:
        return EVERYTHING
    if role >= DEVELOPER:
        return PULL_PUSH
    if role >= REPORTER or visibility is Visibility.PUBLIC:
        return PULL
    if visibility is Visibility.INTERNAL and viewer.logged_in and (role >= GUEST or not viewer.external):
        return PULL
    return NOTHING


def actions_by_scopes(scopes: Set[str]) -> frozenset[str]:
    """Return the most that a token with these scopes allows."""
    return frozenset(
        action for action, needed in (("pull", _PULLING), ("push", _PUSHING), ("delete", _DELETING)) if scopes & needed
    )


def asked_actions(access: Access) -> frozenset[str]:
    """Return the actions requested; `*` stands for all."""
    return EVERYTHING if "*" in access.actions else access.actions & EVERYTHING


def visibility(found: object) -> Visibility:
    """Read a project's visibility.

    Raises:
        BackendUnavailable: if GitLab has no such value.
    """
    try:
        return Visibility(str(found))
    except ValueError:
        raise BackendUnavailable(f"unknown visibility in GitLab's answer: {str(found)[:50]!a}") from None


def registry_level(found: object) -> RegistryLevel:
    """Read a project's registry level.

    Raises:
        BackendUnavailable: if GitLab has no such value.
    """
    try:
        return RegistryLevel(str(found))
    except ValueError:
        raise BackendUnavailable(f"unknown registry level in GitLab's answer: {str(found)[:50]!a}") from None
