"""What tells one version of a file from the next."""

from __future__ import annotations

from pathlib import Path


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return what is another after every change of a file; empty while there is none to be seen."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
