"""Lines of a file as Apache reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

#: What is wrong with a comment that `lines_of` returns.
LONG_COMMENT: Final = "a comment ends with a backslash, and the next line is a part of it; remove the backslash"


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the number and the text of each line that is neither empty nor a comment.

    Blanks around a line do not count, and a line that ends with a backslash goes on in the next one
    (`ap_cfg_getline` in Apache's httpd). A comment that does so is returned too, so that it can be reported: it hides
    the next line.
    """
    pieces: list[bytes] = []
    numbered = list(enumerate(content.split(b"\n"), 1))
    for number, raw in numbered:
        line = raw.removesuffix(b"\r")
        is_open = is_continued(line)
        pieces.append(line[:-1] if is_open else line)
        if is_open and number < len(numbered):
            continue
        text = b"".join(pieces).strip()
        hides = pieces[0].lstrip().startswith(b"#") and any(piece.strip() for piece in pieces[1:])
        if text and (hides or not text.startswith(b"#")):
            yield number - len(pieces) + 1, text
        pieces = []


def is_continued(line: bytes) -> bool:
    """Whether a line goes on in the next one."""
    return line.endswith(b"\\") and not line.endswith(b"\\\\")
