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
        code: the result of the bind that was refused.
        data: Active Directory's own code for it; empty if the server is another.
    """

    def __init__(self, reason: str, *, code: int = 0, data: str = "") -> None:
        self.code = code
        self.data = data
        super().__init__(reason)


class Misconfigured(DirectoryFailure):
    """There is a mistake in configuration or directory; every server would give the same answer."""


class Incomplete(Misconfigured):
    """The server returned only a part."""
