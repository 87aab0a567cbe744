"""Lines of a file as Apache reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

#: What is wrong with a comment that `lines_of` returns.
LONG_COMMENT: Final = "a comment ends with a backslash, and the next line is a part of it; remove the backslash"


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the number and the text of each line that is neither empty nor a comment.

    Blanks around a line do not count, and a line that ends with a backslash goes on in the next one
    (`ap_cfg_getline` in Apache's httpd). A comment that does so is returned: few mean that it takes a line with it.
    """
    begun, start = b"", 0
    for number, raw in enumerate(content.split(b"\n"), 1):
        line = raw.removesuffix(b"\r")
        start = start or number
        if is_continued(line):
            begun += line[:-1]
            continue
        text = (begun + line).strip()
        if text and (number > start or not text.startswith(b"#")):
            yield start, text
        begun, start = b"", 0
    if (text := begun.strip()) and not text.startswith(b"#"):
        yield start, text


def is_continued(line: bytes) -> bool:
    """Whether a line goes on in the next one."""
    return line.endswith(b"\\") and not line.endswith(b"\\\\")
