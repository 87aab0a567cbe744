"""Plug-ins: classes that installed packages name by entry point, each with `Options` of its own."""

from __future__ import annotations

import importlib.metadata
from typing import TypeVar

from tokenissuer.errors import ConfigurationError
from tokenissuer.options import near_match

T = TypeVar("T")


def load_plugin(group: str, kind: str, type_: str, base: type[T]) -> type[T]:
    """Find a plug-in class by the name of its entry point.

    Args:
        group: the entry points' group.
        kind: what messages call such a plug-in.
        type_: the entry point's name.
        base: what the class must derive from.

    Raises:
        ConfigurationError: if no installed package has it, two have it, it cannot be imported, or it is no such class.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    known: set[str] = set()
    for entry_point in importlib.metadata.entry_points(group=group):
        known.add(entry_point.name)
        if entry_point.name == type_:
            found[entry_point.dist.name if entry_point.dist else entry_point.value] = entry_point
    if not found:
        raise ConfigurationError(f"no installed package has a {kind} of type '{type_}'; {near_match(type_, known)}")
    if len(found) > 1:
        raise ConfigurationError(
            f"the packages {' and '.join(sorted(found))} both have a {kind} of type '{type_}'; uninstall one"
        )
    ((package, entry_point),) = found.items()
    try:
        plugin = entry_point.load()
    except Exception as error:
        raise ConfigurationError(
            f"the {kind} '{type_}' of the package {package} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(plugin, type) and issubclass(plugin, base) and hasattr(plugin, "Options")):
        raise ConfigurationError(
            f"the entry point '{type_}' of the package {package} is no {base.__module__}.{base.__name__} with Options"
        )
    return plugin
