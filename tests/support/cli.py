"""What a command of tokenissuer printed."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def failed(ran: tuple[int, str, str], *says: str) -> str:
    """The one line of a command that could not do it."""
    code, out, err = ran
    assert (code, out) == (1, "")
    assert err.startswith("tokenissuer: ")
    assert err.count("\n") == 1
    for word in says:
        assert word in err
    return err


def misused(ran: tuple[int, str, str], *says: str) -> None:
    """Wrong usage of a command, which its last line explains."""
    code, out, err = ran
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert ": error: argument " in line
    for word in says:
        assert word in line
