"""`tokenissuer check`: compare the whole set-up with what is known to stop people."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tokenissuer.accounts.backend import Backend
from tokenissuer.config import Config, find_config, load_config
from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.errors import BackendUnavailable, ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--repository", metavar="NAME", help="say what the backends know about this repository, such as team/app"
    )
    parser.add_argument("--account", metavar="NAME", help="show how the backends find this account; no password needed")


def run(arguments: argparse.Namespace) -> int:
    """report what is wrong with configuration, keys, files, backends and rules, one line each"""
    config = load_config(find_config(arguments.config))
    found = [*config.findings(time.time()), *_backend_findings(config, arguments.repository, arguments.account)]
    for finding in found:
        print(finding)
    if any(finding.severity is not Severity.INFO for finding in found):
        return 1
    print(f"ok: {config.path}: nothing to correct")
    return 0


def _backend_findings(config: Config, repository: str | None, account: str | None) -> Iterator[Finding]:
    found_by: list[list[Finding]] = []
    for backend_config in config.backends:
        try:
            backend = backend_config.build()
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, "[[backends]]", str(error))
            continue
        try:
            yield from backend.diagnose()
            yield from _readiness(backend_config.name, backend)
            if repository is not None:
                yield from backend.diagnose(repository=repository)
            if account is not None:
                found_by.append(list(backend.diagnose(account=account)))
        finally:
            backend.close()
    yield from _account_findings(found_by)


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
