"""The password file: lines of name:hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tokenissuer_backends.htpasswd.hash import problem
from tokenissuer_backends.htpasswd.lines import LONG_COMMENT, is_continued, lines_of

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


def read_passwords(content: bytes) -> Passwords:
    """Read a password file. A line that cannot be used locks out its own account, and no other.

    Args:
        content: the file's.
    """
    hashes: dict[str, str] = {}
    unusable: dict[str, str] = {}
    ignored: list[str] = []
    numbers: dict[str, int] = {}
    # No text may quote a line: it may have a password in plain text.
    for number, raw in lines_of(content):
        text = raw.decode("utf-8", "replace")
        name, colon, rest = text.partition(":")
        known = name.strip()
        if raw.startswith(b"#"):
            ignored.append(f"line {number}: {LONG_COMMENT}")
        elif not colon or not _NAME.fullmatch(known) or _UNREADABLE in known or not known.isprintable():
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


def with_line(content: bytes, username: str, hash_: str) -> bytes:
    """Return a password file with this hash for the account, and all other lines as they were.

    Raises:
        ValueError: if the account's line is written so that only a person can change it.
    """
    name = username.encode("utf-8")
    fresh = name + b":" + hash_.encode("ascii")
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    begins = [not (place and is_continued(lines[place - 1].removesuffix(b"\r"))) for place in range(len(lines))]
    for place, line in enumerate(lines):
        if begins[place] and line.strip().startswith(name + b":"):
            end = place + 1
            while end < len(lines) and not begins[end]:
                end += 1
            lines[place:end] = [fresh]
            break
    else:
        # Not as what the last line goes on with.
        lines += [b"", fresh] if lines and is_continued(lines[-1].removesuffix(b"\r")) else [fresh]
    changed = b"\n".join(lines) + b"\n"
    if read_passwords(changed).hashes.get(username) != hash_:
        raise ValueError("another line of the account counts; correct the file by hand")
    return changed
