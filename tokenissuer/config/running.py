"""A running application and its parts, which a reload keeps where nothing about them has changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from tokenissuer.monitoring.health import Health
from tokenissuer.web.app import Application

T = TypeVar("T")

_log: Final = logging.getLogger("tokenissuer")

#: What tells one version of a file from the next; empty if there is no file.
Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a running application that a reload keeps if nothing about it has changed.

    Args:
        source: everything it was made from, to be compared.
        value: the part, with its remembered answers, counts and connections.
        close: closes it.
    """

    source: object = field(repr=False)
    value: Any
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Running:
    """An application, and what it is made of.

    Args:
        application: answers requests.
        health: whether backends and store can be asked.
        key_id: the thumbprint of the signing key.
        parts: what a reload may keep.
    """

    application: Application
    health: Health
    key_id: str
    parts: tuple[Part, ...] = field(repr=False)

    def close(self, keep: Sequence[Running] = ()) -> None:
        """Close every part.

        Args:
            keep: other applications; the parts that they use stay open.
        """
        kept = [part.value for running in keep for part in running.parts]
        for part in self.parts:
            if not any(part.value is value for value in kept):
                try:
                    part.close()
                except Exception as error:
                    # One plug-in's failure must not end the thread that reads the files again.
                    _log.error("a part of the old configuration could not be closed (%s)", type(error).__name__)


class Parts:
    """The parts of a new application: each is made, or taken from the application that it replaces."""

    def __init__(self, before: Running | None, undo: ExitStack) -> None:
        self._before: Final = before.parts if before else ()
        self._undo: Final = undo
        self.made: Final[list[Part]] = []

    def get(self, source: object, make: Callable[[], T], close: Callable[[T], None] = lambda value: None) -> T:
        """Return the part.

        Args:
            source: everything it is made from: a part that was made from the same is taken over.
            make: makes it.
            close: closes it.
        """
        for part in self._before:
            if part.source == source:
                self.made.append(part)
                kept: T = part.value
                return kept
        value = make()
        self._undo.callback(close, value)
        self.made.append(Part(source, value, lambda: close(value)))
        return value


def file_stamps(paths: Iterable[Path]) -> tuple[tuple[Path, Stamp], ...]:
    """Return what changes whenever one of these files changes."""
    return tuple((path, _stamp(path)) for path in sorted(paths))


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
