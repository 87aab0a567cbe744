"""The project a repository belongs to, found as GitLab's own registry finds it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenissuer import Access, BackendUnavailable
from tokenissuer_backends.gitlab.role import (
    NO_ACCESS,
    PULL,
    RegistryLevel,
    Viewer,
    Visibility,
    actions_by_role,
    registry_level,
    visibility,
)

# A repository is its project, or has one or two components more.
_LEVELS: Final = 3
_MIN_COMPONENTS: Final = 2
# GitLab nests groups less deep than this.
_MAX_COMPONENTS: Final = 19

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Project:
    """A project, as one caller sees it.

    Args:
        id: its number.
        path: its full path, in lower case.
        visibility: who sees it.
        registry: for whom its registry is switched on.
        archived: whether it may only be read.
        access_level: the caller's role as the project itself tells it, without invited groups.
    """

    id: int
    path: str
    visibility: Visibility
    registry: RegistryLevel
    archived: bool
    access_level: int

    def actions_for(self, viewer: Viewer) -> frozenset[str]:
        """Return what a viewer may do in it, with any credential."""
        allowed = actions_by_role(self.visibility, self.registry, viewer)
        return allowed & PULL if self.archived else allowed


def candidates(access: Access) -> tuple[str, ...]:
    """Return the project paths a repository may belong to, the longest first; none if GitLab knows no such name."""
    parts = access.name.split("/")
    # GitLab's pattern is the registry's without a port. No character of it means something in a URL.
    if not access.is_repository or not _PATH.fullmatch(access.name):
        return ()
    if not _MIN_COMPONENTS <= len(parts) <= _MAX_COMPONENTS:
        return ()
    shortest = max(_MIN_COMPONENTS, len(parts) - _LEVELS + 1)
    return tuple("/".join(parts[:length]) for length in range(len(parts), shortest - 1, -1))


def project_route(path: str) -> str:
    """Return the API's address of a project, given its full path."""
    return f"/api/v4/projects/{urllib.parse.quote(path, safe='')}"


def read_project(table: Mapping[str, Any]) -> Project:
    """Read what GitLab tells a logged-in caller about a project.

    Raises:
        BackendUnavailable: if it does not have GitLab's form.
    """
    id_, path = table.get("id"), table.get("path_with_namespace")
    if not isinstance(id_, int) or isinstance(id_, bool) or not isinstance(path, str):
        raise BackendUnavailable("GitLab described a project without its id or path")
    return Project(
        id=id_,
        path=path.lower(),
        visibility=visibility(table.get("visibility")),
        registry=_registry_level(table),
        archived=table.get("archived") is True,
        access_level=_visible_access_level(table),
    )


def _registry_level(table: Mapping[str, Any]) -> RegistryLevel:
    if "container_registry_access_level" in table:
        return registry_level(table["container_registry_access_level"])
    # Older versions have only this, computed for the caller. If neither is there, the registry is not for the caller.
    return RegistryLevel.ENABLED if table.get("container_registry_enabled") is True else RegistryLevel.DISABLED


def _visible_access_level(table: Mapping[str, Any]) -> int:
    permissions = table.get("permissions")
    if not isinstance(permissions, dict):
        return NO_ACCESS
    ways = (permissions.get("project_access"), permissions.get("group_access"))
    return max((access_level(way) for way in ways if isinstance(way, dict)), default=NO_ACCESS)


def access_level(membership: Mapping[str, Any]) -> int:
    """Read the role in a membership.

    Raises:
        BackendUnavailable: if it does not have GitLab's form.
    """
    level = membership.get("access_level")
    if not isinstance(level, int) or isinstance(level, bool):
        raise BackendUnavailable("GitLab described a membership without its access level")
    return level
