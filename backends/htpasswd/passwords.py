"""The password file: lines of name:hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tokenissuer_backends.htpasswd.hash import problem
from tokenissuer_backends.htpasswd.lines import read_lines

_NAME: Final = re.compile(r"[^:\x00-\x1f\x7f]+")
_DIGEST: Final = re.compile(r"[^:]*:[0-9a-f]{32}")
# What stands for bytes that are not UTF-8.
_UNREADABLE: Final = "\ufffd"
_REMEDY: Final = "set a new one with `tokenissuer passwd`"


@dataclass(frozen=True, slots=True)
class Passwords:
    """What a password file says.

    Args:
        hashes: for each account that can log in, its hash.
        unusable: for each account that cannot, the line and the reason.
        ignored: lines that are no account's, each with the reason.
    """

    hashes: Mapping[str, str] = field(repr=False)
    unusable: Mapping[str, str]
    ignored: tuple[str, ...]


def read_passwords(path: Path) -> Passwords:
    """Read a password file. A line that cannot be used locks out its own account, and no other.

    Raises:
        ConfigurationError: if the file cannot be read.
    """
    hashes: dict[str, str] = {}
    unusable: dict[str, str] = {}
    ignored: list[str] = []
    numbers: dict[str, int] = {}
    # No text may quote a line: it may have a password in plain text.
    for number, raw in read_lines(path):
        text = raw.decode("utf-8", "replace")
        name, colon, rest = text.partition(":")
        known = name.strip()
        if not colon or not _NAME.fullmatch(known) or _UNREADABLE in known:
            ignored.append(f"line {number}: not a line of name:hash in UTF-8; remove it, or write it again")
        elif known in numbers:
            ignored.append(f"line {number}: '{known}' is in line {numbers[known]} already, which counts; remove one")
        else:
            numbers[known] = number
            reason = _trouble(name, rest)
            if reason:
                unusable[known] = f"line {number}: {reason}"
            else:
                hashes[known] = rest.partition(":")[0]
    return Passwords(hashes, unusable, tuple(ignored))


def _trouble(name: str, rest: str) -> str:
    """Say why the account of a line cannot log in, and what to do; empty if it can."""
    if name != name.strip():
        return "there is a blank between the name and the colon; remove it"
    text = rest.partition(":")[0]
    if not text or text[0] in "!*":
        return "it is locked; to unlock it, set a password with `tokenissuer passwd`"
    if text != text.strip():
        return "there is a blank around its hash; remove it"
    if _DIGEST.fullmatch(rest):
        return f"it is a line of a digest file (htdigest), which has no password for Basic authentication; {_REMEDY}"
    reason = problem(text)
    return f"{reason}; {_REMEDY}" if reason else ""


def with_line(text: str, username: str, hash_: str) -> str:
    """Return a password file's text with this hash for the account, and all other lines as they were."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    fresh = f"{username}:{hash_}"
    for place, line in enumerate(lines):
        is_continuation = place > 0 and lines[place - 1].rstrip("\r").endswith("\\")
        if not is_continuation and line.strip().startswith(f"{username}:"):
            # What the line was continued with would be continued by the new one.
            while line.rstrip("\r").endswith("\\") and place + 1 < len(lines):
                line = lines.pop(place + 1)
            lines[place] = fresh
            break
    else:
        if lines and lines[-1].rstrip("\r").endswith("\\"):
            lines.append("")
        lines.append(fresh)
    return "\n".join(lines) + "\n"
