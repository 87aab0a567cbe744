"""How asking a directory server can fail. None of this reaches a client; the texts are for the log."""

from __future__ import annotations


class DirectoryFailure(Exception):
    """A question was not answered.

    Args:
        reason: what happened; never a secret.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Unreachable(DirectoryFailure):
    """This server cannot be asked now; another may."""


class Refused(DirectoryFailure):
    """The directory does not take these credentials."""


class Misconfigured(DirectoryFailure):
    """The answer shows a mistake in configuration or directory that every server would answer with."""


class Incomplete(Misconfigured):
    """There is more than the server gave out."""
