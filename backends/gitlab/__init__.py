"""Accounts of a GitLab: personal access tokens over its REST API, or any login through its own token endpoint."""

from tokenissuer_backends.gitlab.backend import GitLabBackend
from tokenissuer_backends.gitlab.options import GitLabOptions

__all__ = ["GitLabBackend", "GitLabOptions"]
