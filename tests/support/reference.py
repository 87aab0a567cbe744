"""The tables of docs/configuration.md and docs/commands.md, made from the option classes and the parsers themselves.

`python -m tests.support.reference` writes them into the pages; tests/unit/test_readme.py fails if they differ. It makes
what is between `<!-- options: NAME -->` or `<!-- command: NAME -->` and `<!-- end -->`; the rest is written by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from tokenissuer.accounts.backend import load_backend
from tokenissuer.accounts.cache import CacheOptions
from tokenissuer.accounts.throttle import ThrottleOptions
from tokenissuer.cli import _parser
from tokenissuer.monitoring.metrics import MetricsOptions
from tokenissuer.options import Secret
from tokenissuer.policy import AccessOptions
from tokenissuer.policy.expectation import TestOptions
from tokenissuer.sessions.store import load_store
from tokenissuer.sessions.tokens import RefreshOptions
from tokenissuer.signing.issuer import IssuerOptions
from tokenissuer.signing.keys import SigningOptions
from tokenissuer.web.proxies import ServerOptions

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGES: Final = (DOCS / "configuration.md", DOCS / "commands.md")

#: The backends and stores that come with tokenissuer.
BACKENDS: Final = ("htpasswd", "ldap", "gitlab", "oidc")
STORES: Final = ("sqlite",)

_BLOCK: Final = re.compile(r"(<!-- (options|command): (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_TYPES: Final = {str: "string", int: "number", bool: "true or false", Path: "path"}


@cache
def schemas() -> Mapping[str, Any]:
    """Return the option class of each table, by the name that stands in the page."""
    found: dict[str, Any] = {
        "issuer": IssuerOptions,
        "signing": SigningOptions,
        "server": ServerOptions,
        "cache": CacheOptions,
        "refresh": RefreshOptions,
        "throttle": ThrottleOptions,
        "metrics": MetricsOptions,
        "access": AccessOptions,
        "test": TestOptions,
    }
    found |= {f"refresh.store.{name}": load_store(name).Options for name in STORES}
    for name in BACKENDS:
        schema = load_backend(name).Options
        found[name] = schema
        found |= {f"{name}.{key}": table for key, table in _tables(schema)}
    return found


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each command, in the order of the command line's own help."""
    (choices,) = (action.choices for action in _parser()._actions if action.dest == "command")
    assert isinstance(choices, dict)
    return choices


def written(text: str) -> str:
    """Return a page with its tables made anew."""

    def block(found: re.Match[str]) -> str:
        head, kind, name, _, end = found.groups()
        lines = _options(schemas()[name]) if kind == "options" else _command(commands()[name])
        table = "\n".join(lines)
        return f"{head}\n{table}\n\n{end}"

    return _BLOCK.sub(block, text)


def named(text: str, kind: str) -> list[str]:
    """Return the names of a page's blocks of a kind."""
    return [name for _, found, name, _, _ in _BLOCK.findall(text) if found == kind]


def _tables(schema: Any) -> Iterator[tuple[str, Any]]:
    """Return the tables within a table."""
    for name, hint in typing.get_type_hints(schema).items():
        for each in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(each):
                yield name, each


def _options(schema: Any) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    yield "| key | is | type | default |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(schema):
        key = f"`{field.name}`"
        if Secret in (hints[field.name], *typing.get_args(hints[field.name])):
            key += f", or `{field.name}_file`"
        yield f"| {key} | {_cell(field.metadata['doc'])} | {_type(hints[field.name])} | {_default(field)} |"


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{json.dumps(each)}`" for each in arguments if each)
    if origin in (tuple, frozenset):
        return "list"
    if origin is not None or dataclasses.is_dataclass(hint):
        return "table"
    return "secret" if hint is Secret else _TYPES[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "needed" if field.default_factory is dataclasses.MISSING else ""
    return "" if field.default in (None, "", (), frozenset()) else f"`{json.dumps(field.default)}`"


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    text = parser.description or ""
    yield f"{text[:1].upper()}{text[1:]}."
    yield ""
    yield "| argument | is |"
    yield "|---|---|"
    formatter = parser._get_formatter()
    for action in parser._actions:
        if "--help" in action.option_strings or "--config" in action.option_strings:
            continue
        text = formatter._expand_help(action)
        values = " or ".join(f"`{value}`" for value in action.choices or ())
        yield f"| `{_spelled(action)}` | {_cell(text)}{f': {values}' if values else ''} |"


def _spelled(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest
    if not action.option_strings:
        return metavar if action.metavar else action.dest.upper()
    value = "" if action.nargs == 0 or action.choices else f" {metavar}"
    return f"{action.option_strings[-1]}{value}"


def _cell(text: str) -> str:
    """Write a text so that Markdown shows it as it is."""
    parts = text.replace("|", "\\|").split("`")
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([*<_])", r"\\\1", parts[number])
    return "`".join(parts)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
