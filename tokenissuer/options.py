"""Typed structures that are the configuration's schema and its manual: TOML table → frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tokenissuer.errors import ConfigurationError

T = TypeVar("T")

_TYPE_NAMES: Final = {str: "a string", int: "a whole number", bool: "true or false", Path: "a path in quotes"}


class Secret:
    """A value that shows in no log, traceback or `repr`.

    Args:
        value: the value.
        file: where it was read from, if from a file of its own.
    """

    __slots__ = ("__value", "file")

    def __init__(self, value: str, file: Path | None = None) -> None:
        self.__value = value
        self.file: Final = file

    def reveal(self) -> str:
        """Return the value itself."""
        return self.__value

    def __repr__(self) -> str:
        return "Secret(***)"


def option(doc: str, *, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """Declare one key of a table.

    Args:
        doc: one line for the manual: meaning and unit.
        default: the value when the key is absent; without one the key is required.
        default_factory: makes the default, where one value must not be shared.
    """
    return dataclasses.field(default=default, default_factory=default_factory, metadata={"doc": doc})


def near_match(word: str, known: Iterable[str]) -> str:
    """Say which of the known words comes near, or list them all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are: {', '.join(names)}" if names else "none is known"


def decode(schema: type[T], table: Mapping[str, Any], where: str, folder: Path) -> T:
    """Make an instance of a dataclass of options from a TOML table.

    A key of type `Secret` may also be given as `<key>_file`, a file whose content (less one final newline) is the
    secret. A `ValueError` from the dataclass's own `__post_init__` is reported with the place.

    Args:
        schema: a dataclass whose fields are the keys.
        table: what the file says.
        where: the table's name for error messages.
        folder: what relative paths are relative to.

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


def files_in(value: Any) -> Iterator[Path]:
    """Return every path in decoded options, and every file that a secret was read from.

    Args:
        value: an instance of a dataclass of options, or what a field of one holds.
    """
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Secret):
        if value.file is not None:
            yield value.file
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from files_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from files_in(item)
    elif isinstance(value, (tuple, frozenset)):
        for item in value:
            yield from files_in(item)


def _is_secret(hint: Any) -> bool:
    return hint is Secret or Secret in typing.get_args(hint)


def _secret_from_file(path: Path, where: str) -> Secret:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{where}: cannot read {path}: {reason}") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigurationError(f"{where}: {path} is empty; put the secret into it")
    return Secret(text, path)


def _decode_value(hint: Any, raw: Any, where: str, folder: Path) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _decode_value(hint, raw, where, folder)
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
            raise ConfigurationError(f"{where}: expected a string that is not empty")  # the value stays unsaid
        return Secret(raw)
    if hint is Path:
        text = _decode_value(str, raw, where, folder)
        if not text:
            raise ConfigurationError(f"{where}: the path is empty")
        if "\0" in text:
            raise ConfigurationError(f"{where}: a path holds no NUL character")
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
    """Name what was found: a scalar as written, anything larger by its kind."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, (int, float)):
        return str(raw)
    if isinstance(raw, str):
        return f"the string '{raw}'"
    return "a table" if isinstance(raw, dict) else "a list" if isinstance(raw, list) else type(raw).__name__
