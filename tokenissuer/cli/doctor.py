"""`tokenissuer doctor`: the whole chain, as a client meets it."""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

from tokenissuer.config import find_config, load_config
from tokenissuer.diagnosis import Severity
from tokenissuer.doctor import examination
from tokenissuer.doctor.caller import Caller
from tokenissuer.doctor.facts import Facts
from tokenissuer.doctor.registry_file import RegistryFile
from tokenissuer.doctor.report import JsonReport, PlainReport, Report, TerminalReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--registry", metavar="URL", help="the registry as clients name it (default: the address in its file)"
    )
    parser.add_argument(
        "--registry-config", type=Path, metavar="FILE", help="the registry's configuration file, to compare the two"
    )
    parser.add_argument("--account", metavar="NAME", help="show how the backends find this account; no password needed")
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="the authorities to trust instead of this machine's, PEM"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")


def run(arguments: argparse.Namespace) -> int:
    """try everything that a client meets, from the registry to the account sources, and say what to change"""
    # What backends log is among the findings.
    logging.getLogger("tokenissuer").addHandler(logging.NullHandler())
    config = load_config(find_config(arguments.config))
    file = RegistryFile.load(arguments.registry_config) if arguments.registry_config else None
    registry = examination.registry_url(arguments.registry or (file.url if file else ""))
    facts = Facts(config, Caller(arguments.ca_file), registry, file)
    report, is_good = _report(arguments), True
    for check in examination.checks(facts, arguments.account or ""):
        result = report.during(check.title, partial(examination.run, check))
        report.add(result)
        is_good = is_good and result.outcome.severity is Severity.INFO
    report.end(examination.login_line(registry, arguments.account or ""), is_good=is_good)
    return 0 if is_good else 1


def _report(arguments: argparse.Namespace) -> Report:
    if arguments.json:
        return JsonReport(sys.stdout)
    return TerminalReport(sys.stdout) if sys.stdout.isatty() else PlainReport(sys.stdout)
