"""How a question to a directory server can fail. The texts are for the log; no client sees them."""

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
    """This server does not answer now; another may."""


class Refused(DirectoryFailure):
    """The directory refuses these credentials.

    Args:
        reason: see `DirectoryFailure`.
        is_wrong_password: whether the password is wrong, and not the account unusable.
    """

    def __init__(self, reason: str, *, is_wrong_password: bool = False) -> None:
        self.is_wrong_password = is_wrong_password
        super().__init__(reason)


class Misconfigured(DirectoryFailure):
    """There is a mistake in configuration or directory; every server would give the same answer."""


class Incomplete(Misconfigured):
    """The server returned only a part."""
