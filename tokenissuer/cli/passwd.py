"""`tokenissuer passwd`: add an account to a password file or change its password."""

from __future__ import annotations

import argparse
import getpass
import sys

from tokenissuer.backend import Backend
from tokenissuer.config import BackendOptions, Config, find_config, load_config
from tokenissuer.errors import TokenIssuerError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("username", metavar="USER", help="the account")
    parser.add_argument("--backend", metavar="NAME", help="which backend, where several keep passwords")


def run(arguments: argparse.Namespace) -> int:
    """add an account or change its password, from a prompt or standard input"""
    config = load_config(find_config(arguments.config))
    options = _keeper(config, arguments.backend)
    source = options.build()
    try:
        source.backend.set_password(arguments.username, _read_password())
    finally:
        source.backend.close()
    print(f"The password of '{arguments.username}' is set in backend '{source.name}'; it counts at once.")
    return 0


def _keeper(config: Config, name: str | None) -> BackendOptions:
    keepers = [
        options
        for options in config.backends
        if options.cls.set_password is not Backend.set_password and name in (None, options.name)
    ]
    if not keepers:
        which = f"called '{name}' " if name else ""
        raise TokenIssuerError(f"{config.path}: no backend {which}keeps passwords itself; change it at the source")
    return keepers[0]


def _read_password() -> str:
    """Read it without showing it; from a pipe, its first line.

    Raises:
        TokenIssuerError: if the two do not agree, or there is none, or it is not text.
    """
    try:
        return _typed_or_piped()
    except EOFError:
        raise TokenIssuerError("no password was typed; nothing is changed") from None
    except UnicodeDecodeError:
        raise TokenIssuerError("the password is not UTF-8; nothing is changed") from None


def _typed_or_piped() -> str:
    if sys.stdin.isatty():
        password = getpass.getpass("New password: ")
        if getpass.getpass("Once more: ") != password:
            raise TokenIssuerError("the two passwords differ; nothing is changed")
        return password
    line = sys.stdin.readline()
    if not line:
        raise TokenIssuerError("no password on standard input; nothing is changed")
    return line.removesuffix("\n").removesuffix("\r")
