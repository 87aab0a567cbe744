"""Files that the user who serves cannot use."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from tokenissuer.config import Config
from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.errors import TokenIssuerError


def user_findings(config: Config, name: str | None) -> Findings:
    """Report on files that the user who serves cannot use.

    Args:
        config: names the files.
        name: the user; the one who runs this command when absent.

    Raises:
        TokenIssuerError: if there is no such user, or only root can look with the user's eyes.
    """
    wanted = [(path, os.R_OK) for path in sorted(config.files())]
    for store in config.store_files():
        # SQLite makes files of its own beside it.
        wanted += [(store.parent, os.W_OK | os.X_OK), *([(store, os.R_OK | os.W_OK)] if store.exists() else [])]
    user = name or pwd.getpwuid(os.geteuid()).pw_name
    for path, mode in _not_allowed(wanted, name):
        yield Finding(
            Severity.ERROR,
            str(path),
            f"the user {user} cannot {'read' if mode == os.R_OK else 'write to'} it",
            f"make it so: chown {user} {path}, or chmod",
        )


def _not_allowed(wanted: Sequence[tuple[Path, int]], name: str | None) -> Sequence[tuple[Path, int]]:
    """Return the files, of those that are there, that a user may not use as wanted."""
    there = [(path, mode) for path, mode in wanted if path.exists()]
    if name is None:
        return [(path, mode) for path, mode in there if not os.access(path, mode)]
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise TokenIssuerError(f"--user: there is no user '{name}' on this machine") from None
    if os.geteuid():
        raise TokenIssuerError(f"--user: only root can see what {name} may read; use sudo, or run it as {name}")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # Only the system knows what a user may: groups, folders above, access lists.
        os.setgroups(os.getgrouplist(name, entry.pw_gid))
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.write(writing, bytes(os.access(path, mode) for path, mode in there))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        allowed = answer.read()
    os.waitpid(child, 0)
    return [item for item, may in zip(there, allowed, strict=True) if not may]
