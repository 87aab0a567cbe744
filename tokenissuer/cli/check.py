"""`tokenissuer check`: hold the whole set-up against what is known to stop people."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from tokenissuer.backend import Source, Step
from tokenissuer.config import Config, find_config, load_config
from tokenissuer.errors import BackendUnavailable, ConfigurationError
from tokenissuer.finding import Finding, Severity
from tokenissuer.scope import Access


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--repository", metavar="NAME", help="say what the backends know of this repository, such as team/app"
    )
    parser.add_argument("--account", metavar="NAME", help="show how the backends find this account; no password needed")


def run(arguments: argparse.Namespace) -> int:
    """say what is wrong with configuration, keys, files, backends and rules, a line each"""
    config = load_config(find_config(arguments.config))
    found = [*config.findings(time.time()), *_backend_findings(config, arguments.repository, arguments.account)]
    for finding in found:
        print(finding)
    if any(finding.severity is not Severity.INFO for finding in found):
        return 1
    print(f"ok: {config.path}: nothing to mend")
    return 0


def _backend_findings(config: Config, repository: str | None, account: str | None) -> Iterator[Finding]:
    traces = []
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
            if account is not None:
                traces.append([*source.backend.trace(account)])
        finally:
            source.backend.close()
    yield from _account_findings(traces)


def _account_findings(traces: Sequence[Sequence[Step]]) -> Iterator[Finding]:
    # That one backend does not know a name is an error only if no other does.
    is_found = any(steps and not any(step.trouble for step in steps) for steps in traces)
    for steps in traces:
        yield from (_step_finding(step, Severity.INFO if is_found else Severity.ERROR) for step in steps)


def _step_finding(step: Step, severity: Severity) -> Finding:
    fact = f"{step.attempt}: {step.trouble or step.fact or 'good'} ({step.seconds * 1000:.1f} ms)"
    return Finding(severity if step.trouble else Severity.INFO, step.subject, fact)


def _source_findings(source: Source) -> Iterator[Finding]:
    yield from source.backend.findings()
    yield from (_step_finding(step, Severity.ERROR) for step in source.backend.probe())
    try:
        source.backend.check()
    except BackendUnavailable as error:
        yield Finding(
            Severity.ERROR,
            f"backend '{source.name}'",
            f"it cannot be asked: {error.reason}",
            "until it can, logins are answered with 503",
        )
