"""Files that the user who serves cannot use."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from tokenissuer.config import Config
from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.errors import TokenIssuerError
from tokenissuer.files import user_name


def user_findings(config: Config, name: str | None) -> Findings:
    """Report on files that the user who serves cannot use.

    Args:
        config: names the files.
        name: the user; the one who runs this command when absent.

    Raises:
        TokenIssuerError: if there is no such user, or only root can look with the user's eyes.
    """
    wanted = [(path.absolute(), os.R_OK) for path in sorted(config.files())]
    for store in config.store_files():
        # SQLite makes files of its own beside it.
        wanted += [(store.parent, os.W_OK | os.X_OK), (store, os.R_OK | os.W_OK)]
    # A closed folder is the cause of everything below it.
    folders = sorted({parent for path, _ in wanted for parent in path.parents})
    closed: list[Path] = []
    for path, mode in _not_allowed([*((folder, os.X_OK) for folder in folders), *wanted], name):
        if not any(folder in path.parents for folder in closed):
            yield _finding(path, mode, name)
        if mode == os.X_OK:
            closed.append(path)


def _finding(path: Path, mode: int, name: str | None) -> Finding:
    user = name or user_name(os.geteuid())
    if mode == os.X_OK:
        fact, remedy = f"the user {user} cannot enter this folder, and so use no file in it", f"chmod a+x {path}"
    elif mode == os.R_OK:
        # What is root's stays root's: who serves need not change it.
        group = _group(user) if path.stat().st_uid == 0 else ""
        fact = f"the user {user} cannot read it"
        remedy = f"chgrp {group} {path} && chmod 640 {path}" if group else f"chown {user} {path}"
    else:
        fact, remedy = f"the user {user} cannot write to it", f"chown {user} {path}"
    return Finding(Severity.ERROR, str(path), fact, f"run: {remedy}")


def _group(user: str) -> str:
    """Return the group that a user has of its own; empty if it is not known."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return ""


def _not_allowed(wanted: Sequence[tuple[Path, int]], name: str | None) -> Sequence[tuple[Path, int]]:
    """Return the files, of those that are there, that a user may not use as wanted."""
    there = [(path, mode) for path, mode in wanted if os.path.exists(path)]
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
