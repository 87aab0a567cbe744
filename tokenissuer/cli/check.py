"""`tokenissuer check`: compare the whole set-up with what is known to stop people."""

from __future__ import annotations

import argparse
import logging
import time

from tokenissuer.config import config_findings, find_config, load_config
from tokenissuer.diagnosis import Severity
from tokenissuer.doctor.permissions import user_findings
from tokenissuer.doctor.sources import source_findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--repository", metavar="NAME", help="say what the backends know about this repository, such as team/app"
    )
    parser.add_argument("--user", metavar="NAME", help="look at the files with the eyes of this user, who is to serve")
    parser.add_argument("--account", metavar="NAME", help="show how the backends find this account; no password needed")


def run(arguments: argparse.Namespace) -> int:
    """report what is wrong with configuration, keys, files, backends and rules, one line each"""
    # What backends log is among the findings.
    logging.getLogger("tokenissuer").addHandler(logging.NullHandler())
    config = load_config(find_config(arguments.config))
    # First, while there is one thread: it forks.
    unusable = list(user_findings(config, arguments.user))
    found = [
        *config_findings(config, time.time()),
        *unusable,
        *source_findings(config, arguments.repository, arguments.account),
    ]
    for finding in found:
        print(finding)
    if any(finding.severity is not Severity.INFO for finding in found):
        return 1
    print(f"ok: {config.path}: nothing to correct")
    return 0
