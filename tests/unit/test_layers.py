"""A room imports only from the rooms above it, and the core knows no backend."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenissuer
import tokenissuer_backends

CORE = Path(tokenissuer.__path__[0])
BACKENDS = Path(tokenissuer_backends.__path__[0])

#: From the top down.
ROOMS = [
    {"errors", "scope", "policy", "net", "files", "options", "diagnosis"},
    {"signing"},
    {"accounts"},
    {"sessions"},
    {"service"},
    {"web"},
    {"monitoring"},
    {"config"},
    {"serving"},
    {"doctor"},
    {"wsgi", "testing", "cli", "__init__"},
    {"__main__"},
]
PLACE = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it reaches"
            yield node.module or ""


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_a_module_imports_only_from_the_rooms_above(path: Path) -> None:
    """Or from its own room."""
    room = path.relative_to(CORE).parts[0].removesuffix(".py")
    for name in imports(path):
        assert not name.startswith("tokenissuer_backends")
        if name.startswith("tokenissuer."):
            other = name.split(".")[1]
            # The words use each other.
            is_word = PLACE[other] == PLACE[room] == 0
            assert PLACE[other] < PLACE[room] or other == room or is_word, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted(BACKENDS.rglob("*.py")), ids=lambda path: str(path.relative_to(BACKENDS)))
def test_a_backend_imports_only_public_names(path: Path) -> None:
    """As anybody's backend must."""
    for name in imports(path):
        assert not name.startswith("tokenissuer."), f"{path} imports {name}"


def test_the_root_stays_small() -> None:
    """It holds the page to read first and the words that everything uses."""
    assert len(list(CORE.glob("*.py"))) <= 12


def test_every_public_name_exists_and_is_listed_once() -> None:
    """What is not in `__all__` may change."""
    assert sorted(set(tokenissuer.__all__)) == sorted(tokenissuer.__all__)
    assert all(hasattr(tokenissuer, name) for name in tokenissuer.__all__)
