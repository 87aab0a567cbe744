"""The group file: lines of group: name name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tokenissuer import ConfigurationError, fold, read_file
from tokenissuer_backends.htpasswd.lines import LONG_COMMENT, lines_of

# A word, or several in quotes: https://httpd.apache.org/docs/2.4/mod/mod_authz_groupfile.html
_MEMBERS: Final = re.compile(
    r"""\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<plain>[^\s"']\S*))"""
)
_ESCAPE: Final = re.compile(r"""\\(["'\\])""")


def read_groups(path: Path) -> Mapping[str, frozenset[str]]:
    """Return the groups of each member.

    Raises:
        ConfigurationError: if the file or a line of it cannot be understood. A line that is left out could switch a
            denial off, so each line counts; the text names every bad one.
    """
    groups: dict[str, set[str]] = {}
    spelled: dict[str, str] = {}
    troubles = []
    for number, raw in lines_of(read_file(path)):
        try:
            group, members = _parse(raw.decode("utf-8"))
            # Rules ignore case, so these would be one group, with the members of both.
            if (other := spelled.setdefault(fold(group), group)) != group:
                raise ValueError(f"'{group}' differs only in capitals from the group '{other}'; write both the same")
        except UnicodeDecodeError:
            troubles.append(f"line {number}: not UTF-8; save the file as UTF-8")
        except ValueError as error:
            troubles.append(f"line {number}: {error}")
        else:
            for member in members:
                groups.setdefault(member, set()).add(group)
    if troubles:
        raise ConfigurationError(f"{path}, {', '.join(troubles)}")
    return {member: frozenset(of) for member, of in groups.items()}


def _parse(line: str) -> tuple[str, list[str]]:
    if line.startswith("#"):
        raise ValueError(LONG_COMMENT)
    group, colon, rest = line.partition(":")
    group = group.strip()
    if not colon or not group:
        raise ValueError("not a line of group: name name; write a colon after the group, or remove the line")
    members, position = [], 0
    rest = rest.strip()
    while position < len(rest):
        found = _MEMBERS.match(rest, position)
        if found is None:
            raise ValueError("a quote is not closed; close it, or remove it")
        quoted = found["double"] if found["double"] is not None else found["single"]
        members.append(found["plain"] if quoted is None else _ESCAPE.sub(r"\1", quoted))
        position = found.end()
    # If a file that begins with a byte order mark was appended to another, the mark is in front of a group's name.
    if unseen := next((text for text in (group, *members) if not text.isprintable()), None):
        raise ValueError(f"{unseen!a} has a character that nobody sees; write the line again")
    return group, members
