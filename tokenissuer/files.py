"""Files: read without invisible characters at their beginning, replaced as a whole; whose they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenissuer.errors import ConfigurationError

# Byte order marks, spaces without width and marks of direction. Editors on Windows write the first of them.
_INVISIBLE: Final = tuple(mark.encode() for mark in "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060")
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


def read_file(path: Path, what: str = "") -> bytes:
    """Return a file's content without what starts it invisibly. Every file with a meaning is read by this function.

    Args:
        path: the file.
        what: what is in it, for the message.

    Raises:
        ConfigurationError: if it cannot be read, or is UTF-16.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {f'the {what} ' if what else ''}{path}: {error.strerror}") from None
    if content.startswith(_UTF_16):
        raise ConfigurationError(f"{path} is saved as UTF-16; save it as UTF-8")
    while mark := next((mark for mark in _INVISIBLE if content.startswith(mark)), b""):
        content = content.removeprefix(mark)
    return content


def read_text(path: Path) -> str:
    """Return the text of a file that `read_file` reads.

    Raises:
        ConfigurationError: if it cannot be read, or is not UTF-8.
    """
    content = read_file(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None


def user_name(number: int) -> str:
    """Name a user of this machine; the number itself if it has no name, as in many containers."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time change files in a folder: a second one would undo what the first has written."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, like: Path) -> None:
    """Replace a file atomically. Two processes must not do so at once: `locked_folder`.

    Args:
        path: the file. A link stays a link: the file it points to is replaced.
        content: what is in it from now on.
        like: has the mode and owner that it gets.

    Raises:
        OSError: if it cannot be written; then it is as before.
    """
    path = path.resolve()
    wanted = like.stat()
    # Always the same name: what a killed process leaves is written over by the next one.
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fresh = os.fstat(descriptor)
            # Compared with the new file: a folder may give its own group to new files.
            if (fresh.st_uid, fresh.st_gid) != (wanted.st_uid, wanted.st_gid):
                os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
