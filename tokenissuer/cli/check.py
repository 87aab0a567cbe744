"""`tokenissuer check`: hold the whole set-up against what is known to stop people."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from tokenissuer.backend import Source
from tokenissuer.config import Config, find_config, load_config
from tokenissuer.errors import BackendUnavailable, ConfigurationError
from tokenissuer.finding import Finding, Severity
from tokenissuer.scope import Access


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--repository", metavar="NAME", help="say what the backends know of this repository, such as team/app"
    )


def run(arguments: argparse.Namespace) -> int:
    """say what is wrong with configuration, keys, files, backends and rules, a line each"""
    config = load_config(find_config(arguments.config))
    found = [*config.findings(time.time()), *_backend_findings(config, arguments.repository)]
    for finding in found:
        print(finding)
    if any(finding.severity is not Severity.INFO for finding in found):
        return 1
    print(f"ok: {config.path}: nothing to mend")
    return 0


def _backend_findings(config: Config, repository: str | None) -> Iterator[Finding]:
    for options in config.backends:
        try:
            source = options.build()
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, f"backend '{options.name}'", str(error))
            continue
        try:
            yield from _source_findings(source)
            if repository is not None:
                yield from source.backend.repository_findings(Access("repository", repository, frozenset()))
        finally:
            source.backend.close()


def _source_findings(source: Source) -> Iterator[Finding]:
    yield from source.backend.findings()
    try:
        source.backend.check()
    except BackendUnavailable as error:
        yield Finding(
            Severity.ERROR,
            f"backend '{source.name}'",
            f"it cannot be asked: {error.reason}",
            "until it can, logins are answered with 503",
        )
