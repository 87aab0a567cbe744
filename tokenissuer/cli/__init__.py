"""The command line: one small function per command, each in the module with its name."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenissuer.cli import check, doctor, explain, init, inspect, keys, passwd, quickstart, serve, sessions, token
from tokenissuer.diagnosis import one_line
from tokenissuer.errors import TokenIssuerError

_COMMANDS = (quickstart, init, serve, check, doctor, explain, inspect, passwd, keys, sessions, token)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows the program's name; those of this process when absent.

    Returns:
        0 if all is good, 1 for a finding or an error, 2 for wrong usage.
    """
    # A letter that the terminal cannot show must not end a command whose work is done.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except TokenIssuerError as error:
        # One line, whatever a configuration file or a user has written.
        print(f"tokenissuer: {one_line(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tokenissuer: {error.filename or parsed.command}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tokenissuer", description="Token server for container registries.")
    parser.add_argument("--version", action="version", version=importlib.metadata.version("tokenissuer"))
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file, for every command")
    # The same option behind the command; absent there, it must not undo the one before it.
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the configuration file (default: $TOKENISSUER_CONFIG, ./tokenissuer.toml, "
        "/etc/tokenissuer/tokenissuer.toml)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2]
        text = (module.run.__doc__ or "").partition("\n")[0]
        # These two make the file.
        parents = [] if module in (quickstart, init) else [config]
        command = commands.add_parser(name, parents=parents, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
