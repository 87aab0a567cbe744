"""Patterns of access rules: `Glob` for names of repositories, `NamePattern` for names of accounts and groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

_PLACEHOLDER: Final = re.compile(r"(\{account\}|\{group\})")
_LITERAL: Final = re.compile(r"[a-z0-9._:-]*", re.ASCII)
# A part of a repository's name, but for `__`, which begins codes.
_PLAIN: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|-+)[a-z0-9]+)*", re.ASCII)


@lru_cache(maxsize=4096)
def account_path(name: str) -> str:
    """Return an account's name as one part of a repository's name: what `{account}` stands for.

    A name of small letters and digits, with single separators between, stays as it is. Other names get codes, so that
    no two names become the same: `Bob@example.com` is `bob__at_example.com__cap1`. `__` begins the codes of one or more
    characters, with dots between, and `_` ends them: `at` is an at sign, `x20` a character by its number in Unicode,
    `cap1` at the end says that the first letter is a capital. A name that begins with such a character begins with
    `0__0`.
    """
    if _PLAIN.fullmatch(name):
        return name
    lowered = "".join(letter.lower() if letter.isascii() else letter for letter in name)
    path, end = "", 0
    for plain in _PLAIN.finditer(lowered):
        if codes := _codes(lowered[end : plain.start()], is_start=not path):
            path = f"{path or '0'}__{'.'.join(codes)}_"
        path += plain[0]
        end = plain.end()
    codes = _codes(lowered[end:], is_start=not path)
    codes += [f"cap{place}" for place, letter in enumerate(name, 1) if letter != lowered[place - 1]]
    return f"{path or '0'}__{'.'.join(codes)}" if codes else path


def _codes(letters: str, *, is_start: bool) -> list[str]:
    codes = ["at" if letter == "@" else f"x{ord(letter):x}" for letter in letters]
    return ["0", *codes] if codes and is_start else codes


def group_path(group: str) -> str:
    """Return what `{group}` stands for: a group `github:org/app` is the path behind the last colon."""
    return group.rpartition(":")[2]


def fold(name: str) -> str:
    """Return a name without capitals.

    A letter that is not ASCII never becomes one that is, as U+212A becomes `k` elsewhere: somebody may have made an
    account or group of that name.
    """
    if name.isascii():
        return name.lower()
    small = ((letter, letter.lower()) for letter in name)
    return "".join(low if len(low) == 1 and letter.isascii() == low.isascii() else letter for letter, low in small)


class NamePattern:
    """A pattern for names of accounts or groups: `*` stands for any characters, everything else for itself.

    Args:
        text: the pattern.
    """

    def __init__(self, text: str) -> None:
        self._pieces: Final = text.split("*")

    def matches(self, name: str) -> bool:
        """Whether the whole name matches."""
        return _match_segment(self._pieces, name)


class Glob:
    """A pattern for repository names.

    `*` stands for any characters within a path segment. `**`, alone between slashes, stands for any number of
    segments; at the end for at least one, so that `team/**` is everything below `team`. `{account}` stands for the
    caller's name as `account_path` writes it, `{group}` for the caller's groups, letter by letter, without a prefix up
    to a colon; never for a pattern. A group `a/b` is two segments. Matching takes linear time.

    Raises:
        ValueError: if the text is not such a pattern; it says why.
    """

    def __init__(self, text: str) -> None:
        self.text: Final = text
        if not text:
            raise ValueError("a repository pattern is empty; use '**' for every repository")
        self._segments: Final = [_parse_segment(segment, text) for segment in text.split("/")]
        self._has_placeholder: Final = _PLACEHOLDER.search(text) is not None
        #: Whether `{group}` is in it.
        self.names_groups: Final = "{group}" in text
        self._without_values: Final = _filled(self._segments, {})
        self._with_any_group: Final = Glob(_with_any_group(text)) if self.names_groups else self

    @property
    def first_segment(self) -> str:
        """The first segment of every name that matches; empty if it can be different ones."""
        first = self._segments[0]
        if first is None or len(first) > 1 or _PLACEHOLDER.search(self.text.partition("/")[0]):
            return ""
        return "".join(first[0])

    def matches(self, name: str, account: str | None, groups: Iterable[str]) -> bool:
        """Whether the name matches this pattern.

        Args:
            name: the repository's name.
            account: the name of the caller's account; None if nobody is logged in.
            groups: the names that `{group}` may stand for; an empty one for a name that nobody knows.
        """
        segments = name.split("/")
        if not self._has_placeholder:
            return _match_segments(self._without_values, segments)
        if account is None:
            return False
        path = account_path(account)
        if not self.names_groups:
            return _match_segments(_filled(self._segments, {"{account}": path}), segments)
        return any(
            _match_segments(_filled(self._segments, {"{account}": path, "{group}": group_path(group)}), segments)
            if group
            else self._with_any_group.matches(name, account, ())
            for group in groups
        )

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"


def _with_any_group(text: str) -> str:
    """Return a pattern that matches whatever `{group}` may stand for, and perhaps more: a group may have slashes."""
    *first, last = text.split("/")
    segments = [wide for segment in first for wide in (("*", "**") if "{group}" in segment else (segment,))]
    return "/".join([*segments, "**" if "{group}" in last else last])


# A segment is None for `**`, else the pieces between its stars; a piece is a list of texts and placeholders.
_Segment = list[list[str]] | None


def _parse_segment(segment: str, text: str) -> _Segment:
    if segment == "**":
        return None
    if not segment:
        raise ValueError(f"the repository pattern '{text}' begins or ends with a slash, or has two in a row")
    if "**" in segment:
        raise ValueError(f"in the repository pattern '{text}', '**' must stand alone between slashes")
    pieces = []
    for piece in segment.split("*"):
        parts = [part for part in _PLACEHOLDER.split(piece) if part]
        for part in parts:
            if not _PLACEHOLDER.fullmatch(part) and not _LITERAL.fullmatch(part):
                raise ValueError(
                    f"the repository pattern '{text}' has '{part}' in it; use the characters of repository names "
                    "(a-z 0-9 . _ - : /), and *, **, {account} and {group}"
                )
        pieces.append(parts)
    return pieces


# The same with texts for the placeholders.
_Filled = list[str] | None


def _filled(segments: Iterable[_Segment], values: Mapping[str, str]) -> Sequence[_Filled]:
    """Put values in the places of placeholders. A slash in a value ends a segment."""
    filled: list[_Filled] = []
    for segment in segments:
        if segment is None:
            filled.append(None)
            continue
        pieces: list[str] = []
        filled.append(pieces)
        for piece in segment:
            first, *more = "".join(values.get(part, part) for part in piece).split("/")
            pieces.append(first)
            for text in more:
                pieces = [text]
                filled.append(pieces)
    return filled


def _match_segments(pattern: Sequence[_Filled], names: Sequence[str]) -> bool:
    """Match greedily. Where a `**` can end in several places the first is enough: what follows it, up to the next
    `**`, takes the same number of segments wherever it begins."""
    position, star, resume = 0, -1, 0
    index = 0
    while position < len(names):
        if index < len(pattern) and (segment := pattern[index]) is None:
            if index == len(pattern) - 1:
                return True
            star, resume = index, position
            index += 1
        elif index < len(pattern) and segment is not None and _match_segment(segment, names[position]):
            index, position = index + 1, position + 1
        elif star >= 0:
            resume += 1
            index, position = star + 1, resume
        else:
            return False
    # `**` stands for at least one segment at the end, and `a/**/**` is the same as `a/**`.
    return index == len(pattern)


def _match_segment(pieces: list[str], text: str) -> bool:
    if len(pieces) == 1:
        return text == pieces[0]
    first, *middle, last = pieces
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True
