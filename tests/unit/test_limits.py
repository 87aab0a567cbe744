"""Unit tests of docs/limits.md: it has every limit of the code, with the value that the code has."""

import re
from importlib import import_module
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `(?P<module>[a-z_.]+)\.(?P<name>[A-Z_0-9]+)` \| (?P<value>[0-9.]+) \| \S", re.MULTILINE)
_ROWS = _ROW.findall((_ROOT / "docs/limits.md").read_text())
# A number with a comment of its own: one without is part of a format.
_CONSTANT = re.compile(r"^#: [^\n]*\n(?P<name>_?[A-Z][A-Z_0-9]*): Final = [0-9]", re.MULTILINE)


@pytest.mark.parametrize(("module", "name", "value"), _ROWS)
def test_a_limit_is_the_one_that_the_code_has(module: str, name: str, value: str) -> None:
    assert getattr(import_module(module), name) == float(value)


def test_every_limit_of_the_code_is_listed() -> None:
    packages = {"tokenissuer": "tokenissuer", "backends": "tokenissuer_backends"}
    found = {
        (".".join([package, *path.relative_to(_ROOT / folder).with_suffix("").parts]), name)
        for folder, package in packages.items()
        for path in (_ROOT / folder).rglob("*.py")
        for name in _CONSTANT.findall(path.read_text())
    }
    assert found - {(module, name) for module, name, _ in _ROWS} == set()


def test_no_limit_is_listed_twice() -> None:
    assert len(_ROWS) == len({row[:2] for row in _ROWS}) > 50
