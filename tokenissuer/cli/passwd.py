"""`tokenissuer passwd`: add an account to a password file or change its password."""

from __future__ import annotations

import argparse
import getpass
import sys

from tokenissuer.accounts.backend import Backend
from tokenissuer.config import BackendConfig, Config, find_config, load_config
from tokenissuer.errors import TokenIssuerError
from tokenissuer.policy import account_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("username", metavar="USER", help="the account")
    parser.add_argument("--backend", metavar="NAME", help="which backend, if several keep passwords")


def run(arguments: argparse.Namespace) -> int:
    """add an account or change its password, from a prompt or standard input"""
    config = load_config(find_config(arguments.config))
    chosen = _choose(config, arguments.backend)
    backend = chosen.build()
    try:
        backend.set_password(arguments.username, _read_password())
    finally:
        backend.close()
    print(f"The password of '{arguments.username}' is set in backend '{chosen.name}'; a server uses it within seconds.")
    if (path := account_path(arguments.username)) != arguments.username:
        print(f"In access rules, {{account}} stands for '{path}' for this account.")
    return 0


def _choose(config: Config, name: str | None) -> BackendConfig:
    found = [
        backend
        for backend in config.backends
        if backend.cls.set_password is not Backend.set_password and name in (None, backend.name)
    ]
    if not found:
        which = f"called '{name}' " if name else ""
        raise TokenIssuerError(f"{config.path}: no backend {which}keeps passwords itself; change it at the source")
    return found[0]


def _read_password() -> str:
    """Read the password without showing it; from a pipe, its first line.

    Raises:
        TokenIssuerError: if the two differ, there is none, or it is not text.
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
        if getpass.getpass("Repeat it: ") != password:
            raise TokenIssuerError("the two passwords differ; nothing is changed")
        return password
    line = sys.stdin.readline()
    if not line:
        raise TokenIssuerError("no password on standard input; nothing is changed")
    return line.removesuffix("\n").removesuffix("\r")
