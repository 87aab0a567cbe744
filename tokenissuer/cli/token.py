"""`tokenissuer token`: sign a token by hand, to find out what a registry does with it."""

from __future__ import annotations

import argparse
import os
import sys
import syslog

from tokenissuer.cli.arguments import argument
from tokenissuer.config import find_config, load_config
from tokenissuer.diagnosis import one_line
from tokenissuer.files import user_name
from tokenissuer.policy.expectation import one_scope
from tokenissuer.scope import scope_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "scopes",
        nargs="*",
        type=argument(one_scope),
        metavar="SCOPE",
        help="what it allows, such as repository:team/app:pull",
    )
    parser.add_argument("--account", default="", metavar="NAME", help="whose token it is (default: nobody's)")
    parser.add_argument("--service", metavar="NAME", help="the registry (default: the first of [issuer] services)")


def run(arguments: argparse.Namespace) -> int:
    """sign a token that allows what is named here, whatever the rules say; it needs the private key"""
    config = load_config(find_config(arguments.config))
    service, granted = config.service(arguments.service), tuple(arguments.scopes)
    token = config.make_issuer(config.load_key()).issue(arguments.account, service, granted)
    note = (
        f"{_user()} has signed a token by hand: account '{one_line(arguments.account)}', service '{service}', "
        f"it allows '{scope_text(granted)}', jti {token.jti}, for {token.expires_in} seconds"
    )
    # Whoever asks later who could push must find it where other logins are noted.
    syslog.openlog("tokenissuer", facility=syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_NOTICE, note)
    print(f"tokenissuer: {note}", file=sys.stderr)
    print(token.text)
    return 0


def _user() -> str:
    """Name who runs this, by the system and not by what the environment says of it."""
    name = user_name(os.getuid())
    by = os.environ.get("SUDO_USER", "")
    return f"{name} (sudo by {one_line(by)!a})" if by else name
