"""TOML table → frozen dataclass, which is schema and manual at once; and plug-ins by entry point."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tokenissuer.errors import ConfigurationError
from tokenissuer.files import read_text

T = TypeVar("T")

_TYPE_NAMES: Final = {str: "a string", int: "a whole number", bool: "true or false", Path: "a path in quotes"}


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The keys of a table that needs none."""


class Secret:
    """A value that appears in no log, traceback or `repr`.

    Args:
        value: the value.
        file: the file it was read from, if any.
    """

    __slots__ = ("__value", "file")

    def __init__(self, value: str, file: Path | None = None) -> None:
        self.__value = value
        self.file: Final = file

    def reveal(self) -> str:
        """Return the value itself."""
        return self.__value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self.file, self.__value) == (other.file, other.__value)

    def __hash__(self) -> int:
        return hash(self.__value)

    def __repr__(self) -> str:
        return "Secret(***)"


def option(doc: str, *, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """Declare one key of a table.

    Args:
        doc: one line for the manual: meaning and unit.
        default: the value if the key is absent; a key without default is required.
        default_factory: makes the default, for a value that must not be shared.
    """
    return dataclasses.field(default=default, default_factory=default_factory, metadata={"doc": doc})


def near_match(word: str, known: Iterable[str]) -> str:
    """Name the most similar of the known words, or list them all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "there are none"


def with_place(where: str, build: Callable[[], T]) -> T:
    """Return what `build` returns.

    Args:
        where: the file or table, to be named if it fails.
        build: what may fail.

    Raises:
        ConfigurationError: what `build` raised, with the place before its text.
    """
    try:
        return build()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def decode(schema: type[T], table: Mapping[str, Any], where: str, folder: Path) -> T:
    """Make an instance of a dataclass of options from a TOML table.

    A key of type `Secret` may also be given as `<key>_file`: the file's content, without one final newline, is the
    secret. A `ValueError` from the dataclass's own `__post_init__` is reported with the table's name.

    Args:
        schema: a dataclass whose fields are the keys.
        table: the keys and values of the file.
        where: the table's name for error messages.
        folder: the folder that relative paths start from.

    Raises:
        ConfigurationError: for an unknown, missing or mistyped key; the text names the table, the key and a near match.
    """
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, schema)) if field.init}
    secret_files = {f"{name}_file": name for name in fields if _is_secret(hints[name])}
    values: dict[str, Any] = {}
    for key, raw in table.items():
        name = secret_files.get(key, key)
        if name not in fields:
            raise ConfigurationError(f"{where}: unknown key '{key}'; {near_match(key, [*fields, *secret_files])}")
        if name in values:
            raise ConfigurationError(f"{where}: '{name}' and '{name}_file' are both given; keep one")
        if key in secret_files:
            values[name] = _secret_from_file(_decode_value(Path, raw, f"{where}: '{key}'", folder), f"{where}: '{key}'")
        else:
            values[name] = _decode_value(hints[name], raw, f"{where}: '{key}'", folder)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            doc = field.metadata.get("doc", "")
            raise ConfigurationError(f"{where}: the key '{name}' is missing{f' ({doc})' if doc else ''}")
    try:
        return schema(**values)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def load_plugin(group: str, kind: str, type_: str, base: type[T]) -> type[T]:
    """Find a plug-in class by the name of its entry point.

    Args:
        group: the entry points' group.
        kind: the kind of plug-in, for messages.
        type_: the entry point's name.
        base: what the class must derive from.

    Raises:
        ConfigurationError: if no installed package has it, two have it, or it is not such a class.
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
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise ConfigurationError(
            f"the entry point '{type_}' of the package {package} is not a subclass of {base.__module__}.{base.__name__}"
        )
    return plugin


def files_in(value: Any) -> Iterator[Path]:
    """Return every path in decoded options, and every file that a secret was read from.

    Args:
        value: an instance of a dataclass of options, or the value of one of its fields.
    """
    for leaf in _leaves(value):
        if isinstance(leaf, Path):
            yield leaf
    yield from secrets_in(value)


def secrets_in(value: Any) -> Iterator[Path]:
    """Return every file that a secret in decoded options was read from.

    Args:
        value: as for `files_in`.
    """
    for leaf in _leaves(value):
        if isinstance(leaf, Secret) and leaf.file is not None:
            yield leaf.file


def _leaves(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list, frozenset)):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _is_secret(hint: Any) -> bool:
    return hint is Secret or Secret in typing.get_args(hint)


def _secret_from_file(path: Path, where: str) -> Secret:
    text = with_place(where, lambda: read_text(path)).removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigurationError(f"{where}: {path} is empty; put the secret into it")
    return Secret(text, path)


def _decode_value(hint: Any, raw: Any, where: str, folder: Path) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        hints = [argument for argument in arguments if argument is not type(None)]
        # Of `str | tuple[str, ...]`, a list is read as the tuple and anything else as the other type.
        fitting = [each for each in hints if (typing.get_origin(each) is tuple) == isinstance(raw, list)]
        return _decode_value((fitting or hints)[0], raw, where, folder)
    if origin is Literal:
        if raw not in arguments:
            known = ", ".join(f"'{argument}'" for argument in arguments)
            raise ConfigurationError(f"{where}: found {_show(raw)}, expected one of {known}")
        return raw
    if origin in (tuple, frozenset):
        if not isinstance(raw, list):
            raise ConfigurationError(f"{where}: found {_show(raw)}, expected a list in square brackets")
        items = [_decode_value(arguments[0], item, f"{where} item {n}", folder) for n, item in enumerate(raw, 1)]
        return origin(items)
    if origin is not None and issubclass(origin, Mapping):
        table = _table(raw, where)
        return {key: _decode_value(arguments[1], item, f"{where} '{key}'", folder) for key, item in table.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(Any, hint), _table(raw, where), where, folder)
    if hint is Secret:
        if not isinstance(raw, str) or not raw:
            raise ConfigurationError(f"{where}: expected a string that is not empty")  # the value is secret
        return Secret(raw)
    if hint is Path:
        text = _decode_value(str, raw, where, folder)
        if not text:
            raise ConfigurationError(f"{where}: the path is empty")
        if "\0" in text:
            raise ConfigurationError(f"{where}: a path cannot hold a NUL character")
        return folder / text
    # bool is a subclass of int, so `lifetime = true` would pass for a number.
    if not isinstance(raw, hint) or (hint is int and isinstance(raw, bool)):
        raise ConfigurationError(f"{where}: found {_show(raw)}, expected {_TYPE_NAMES[hint]}")
    return raw


def _table(raw: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{where}: found {_show(raw)}, expected a table")
    return raw


def _show(raw: Any) -> str:
    """Name the value found: a scalar as written, anything else by its kind."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, (int, float)):
        return str(raw)
    if isinstance(raw, str):
        return f"the string '{raw}'"
    return "a table" if isinstance(raw, dict) else "a list" if isinstance(raw, list) else type(raw).__name__
