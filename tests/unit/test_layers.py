"""The modules import in one direction, and the core knows no backend."""

from __future__ import annotations

import ast
import importlib.metadata
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenissuer
import tokenissuer_backends

CORE = Path(tokenissuer.__path__[0])
BACKENDS = Path(tokenissuer_backends.__path__[0])

#: A module imports only from layers before its own.
LAYERS = [
    {"errors", "finding", "line", "metrics", "pace", "stamp", "step"},
    {"health", "options", "scope", "keys", "turnstile"},
    {"plugin"},
    {"backend", "issuer", "keyring"},
    {"policy", "testing", "trial", "refresh", "memory"},
    {"sqlite", "proxies", "throttle"},
    {"service"},
    {"tally"},
    {"protocol"},
    {"config", "app"},
    {"crowd", "observatory"},
    {"live", "listener", "supervisor", "log"},
    {"wsgi"},
    {"cli"},
    {"__main__"},
]

#: What a backend, ours or anybody's, may need of the core.
FOR_BACKENDS = {"backend", "errors", "scope"}


def imports(path: Path, package: str) -> Iterator[str]:
    """The modules of a package that a file imports, each without the package's name and what is below it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it reaches"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == package and rest:
                yield rest.split(".")[0]


def layer_of(module: str) -> int:
    """The number of a module's layer."""
    (number,) = (number for number, layer in enumerate(LAYERS) if module in layer)
    return number


def core_modules() -> list[str]:
    """Every module and sub-package of the core."""
    return sorted(module.name for module in pkgutil.iter_modules(tokenissuer.__path__))


def files_of(module: str) -> list[Path]:
    """The source files of a module or sub-package."""
    path = CORE / f"{module}.py"
    return [path] if path.exists() else sorted((CORE / module).rglob("*.py"))


def test_every_module_has_one_layer() -> None:
    """A new module is given its place in the table above."""
    assert sorted(module for layer in LAYERS for module in layer) == core_modules()


@pytest.mark.parametrize("module", core_modules())
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    """No module looks back at what uses it."""
    for path in files_of(module):
        for imported in imports(path, "tokenissuer"):
            assert imported == module or layer_of(imported) < layer_of(module), f"{path.name} imports {imported}"


def test_the_core_knows_no_backend() -> None:
    """Backends are found by entry point alone."""
    for module in core_modules():
        for path in files_of(module):
            assert not list(imports(path, "tokenissuer_backends")), path
            assert "tokenissuer_backends" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("path", sorted(BACKENDS.rglob("*.py")), ids=lambda path: str(path.relative_to(BACKENDS)))
def test_a_backend_uses_only_what_everybody_may_use(path: Path) -> None:
    """Our own backends have no door that others have not."""
    assert set(imports(path, "tokenissuer")) <= FOR_BACKENDS


def test_every_module_of_ours_is_shipped() -> None:
    """What setup.cfg names is what there is: nothing is left out of the installed package."""
    files = importlib.metadata.files("tokenissuer")
    assert files is not None
    shipped = {str(file) for file in files if file.suffix == ".py"}
    for package, folder in (("tokenissuer", CORE), ("tokenissuer_backends", BACKENDS)):
        for path in folder.rglob("*.py"):
            assert f"{package}/{path.relative_to(folder)}" in shipped, path
