"""`tokenissuer check`: compare the whole set-up with what is known to stop people."""

from __future__ import annotations

import argparse
import os
import pwd
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tokenissuer.accounts.backend import Backend, Listing
from tokenissuer.config import Config, find_config, known_names, load_config
from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.errors import BackendUnavailable, ConfigurationError, TokenIssuerError
from tokenissuer.policy.findings import name_findings, path_findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--repository", metavar="NAME", help="say what the backends know about this repository, such as team/app"
    )
    parser.add_argument("--user", metavar="NAME", help="look at the files with the eyes of this user, who is to serve")
    parser.add_argument("--account", metavar="NAME", help="show how the backends find this account; no password needed")


def run(arguments: argparse.Namespace) -> int:
    """report what is wrong with configuration, keys, files, backends and rules, one line each"""
    config = load_config(find_config(arguments.config))
    # First, while there is one thread: it forks.
    unusable = list(_user_findings(config, arguments.user))
    found = [
        *config.findings(time.time()),
        *unusable,
        *_backend_findings(config, arguments.repository, arguments.account),
    ]
    for finding in found:
        print(finding)
    if any(finding.severity is not Severity.INFO for finding in found):
        return 1
    print(f"ok: {config.path}: nothing to correct")
    return 0


def _user_findings(config: Config, name: str | None) -> Findings:
    """Report on files that the user who serves cannot use.

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


def _backend_findings(config: Config, repository: str | None, account: str | None) -> Iterator[Finding]:
    found_by: list[list[Finding]] = []
    listings: dict[str, Listing | None] = {}
    for backend_config in config.backends:
        try:
            backend = backend_config.build()
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, "[[backends]]", str(error))
            listings[backend_config.name] = None
            continue
        try:
            listing = listings[backend_config.name] = backend.listing()
            yield from backend.diagnose()
            for name, reason in listing.unusable.items() if listing else ():
                yield Finding(Severity.WARNING, f"backend '{backend_config.name}'", f"the account '{name}': {reason}")
            yield from _readiness(backend_config.name, backend)
            if repository is not None:
                yield from backend.diagnose(repository=repository)
            if account is not None:
                found_by.append(list(backend.diagnose(account=account)))
        finally:
            backend.close()
    yield from _account_findings(found_by)
    yield from name_findings(config.rules, known_names(listings))
    accounts = frozenset[str]().union(*(listing.accounts for listing in listings.values() if listing))
    yield from path_findings(config.rules, accounts)


def _account_findings(found_by: Sequence[Sequence[Finding]]) -> Iterator[Finding]:
    # That one backend does not know a name is an error only if no other knows it.
    is_known = any(found and not any(_is_error(finding) for finding in found) for found in found_by)
    for found in found_by:
        for finding in found:
            yield replace(finding, severity=Severity.INFO) if is_known and _is_error(finding) else finding


def _is_error(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR


def _readiness(name: str, backend: Backend) -> Findings:
    try:
        backend.check()
    except BackendUnavailable as error:
        yield Finding(
            Severity.ERROR,
            f"backend '{name}'",
            f"it does not answer: {error.reason}",
            "until it does, logins are answered with 503",
        )
