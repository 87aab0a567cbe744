"""TOML file → `Config`: find, read, decode. Each table's options stand beside what they configure."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tokenissuer.accounts.backend import load_backend
from tokenissuer.accounts.cache import CacheOptions
from tokenissuer.accounts.throttle import ThrottleOptions
from tokenissuer.config.config import BackendConfig, Config, RefreshConfig
from tokenissuer.errors import ConfigurationError
from tokenissuer.files import read_text
from tokenissuer.monitoring.metrics import MetricsOptions
from tokenissuer.options import decode, near_match, with_place
from tokenissuer.policy import AccessOptions, Rule
from tokenissuer.policy.expectation import TestOptions
from tokenissuer.sessions.store import load_store
from tokenissuer.sessions.tokens import RefreshOptions
from tokenissuer.signing.issuer import IssuerOptions
from tokenissuer.signing.keys import SigningOptions
from tokenissuer.web.proxies import ServerOptions
from tokenissuer.web.routes import check_pages

T = TypeVar("T")

ENVIRONMENT_VARIABLE: Final = "TOKENISSUER_CONFIG"
FILE_NAME: Final = "tokenissuer.toml"
SYSTEM_FILE: Final = Path("/etc/tokenissuer") / FILE_NAME

# A header of an access rule; what looks like one in a text of several lines is rare, and costs a wrong number only.
_ACCESS_TABLE: Final = re.compile(r"^[ \t]*\[\[[ \t]*[\"']?access[\"']?[ \t]*\]\]", re.MULTILINE)

_SINGLE_TABLE: Final = re.compile(r"^[ \t]*\[[ \t]*(access|backends|test)[ \t]*\]", re.MULTILINE)


def find_config(given: Path | None) -> Path:
    """Return the configuration file to use.

    Args:
        given: from the command line; if None, the environment variable, the working folder and /etc are tried.

    Raises:
        ConfigurationError: if there is none.
    """
    if given is not None:
        return given
    if variable := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(variable)
    for path in (Path(FILE_NAME), SYSTEM_FILE):
        if path.exists():
            return path
    raise ConfigurationError(
        f"no configuration found: neither ./{FILE_NAME} nor {SYSTEM_FILE}; use --config FILE, or make one with "
        "`tokenissuer init`"
    )


def load_config(path: Path | str) -> Config:
    """Read a configuration file.

    Raises:
        ConfigurationError: if anything in it cannot be understood; the text names file, table and key.
    """
    path = Path(path)
    try:
        text = read_text(path)
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = ""
        # One such table was written as if there were one only; the error is at the next.
        if (single := _SINGLE_TABLE.search(text)) and re.search(rf"\[\[\s*{single[1]}\s*\]\]", text):
            hint = f"; write [[{single[1]}]] each time (line {text.count(chr(10), 0, single.start()) + 1})"
        raise ConfigurationError(f"{path}: not TOML: {error}{hint}") from None
    return with_place(str(path), lambda: _decode_config(path, path.absolute().parent, table, text))


def parse_config(table: Mapping[str, Any], folder: Path | str = ".") -> Config:
    """Read a configuration from a table, as the file would hold it.

    Args:
        table: the tables and keys.
        folder: the folder that relative paths start from.

    Raises:
        ConfigurationError: if anything in it cannot be understood.
    """
    return _decode_config(Path(folder), Path(folder).absolute(), table)


def _decode_config(path: Path, folder: Path, table: Mapping[str, Any], text: str = "") -> Config:
    lines = [text.count("\n", 0, found.start()) + 1 for found in _ACCESS_TABLE.finditer(text)]
    known = ("issuer", "signing", "backends", "access", "test", "cache", "metrics", "refresh", "server", "throttle")
    for key in table:
        if key not in known:
            raise ConfigurationError(f"unknown table [{key}]; {near_match(key, known)}")
    for key in ("issuer", "signing"):
        if key not in table:
            raise ConfigurationError(f"the table [{key}] is missing")

    def options(schema: type[T], key: str) -> T:
        return decode(schema, _table(table, key), f"[{key}]", folder)

    issuer, signing = options(IssuerOptions, "issuer"), options(SigningOptions, "signing")
    try:
        check_pages(issuer.realm)
    except ValueError as error:
        raise ConfigurationError(f"[issuer]: {error}") from None
    for service in signing.key_forms:
        _check_service(service, issuer.services, "[signing.key_forms]")
    backends = [_decode_backend(item, f"[[backends]] {n}", folder) for n, item in _tables(table, "backends")]
    if not backends:
        raise ConfigurationError("no backend is configured; add a [[backends]] table")
    names = [backend.name for backend in backends]
    return Config(
        path=path,
        issuer=issuer,
        signing=signing,
        backends=tuple(_with_own_names(backends)),
        rules=tuple(
            _decode_rule(item, n, lines, issuer.services, names, folder) for n, item in _tables(table, "access")
        ),
        tests=tuple(_decode_test(item, n, issuer.services, names, folder) for n, item in _tables(table, "test")),
        refresh=_decode_refresh(_table(table, "refresh"), issuer.services, folder) if "refresh" in table else None,
        server=options(ServerOptions, "server"),
        cache=options(CacheOptions, "cache"),
        throttle=options(ThrottleOptions, "throttle"),
        metrics=options(MetricsOptions, "metrics") if "metrics" in table else None,
    )


def _decode_refresh(table: Mapping[str, Any], services: Sequence[str], folder: Path) -> RefreshConfig:
    rest = dict(table)
    store = rest.pop("store", None)
    if not isinstance(store, dict) or not isinstance(type_ := store.get("type"), str):
        raise ConfigurationError('[refresh]: it needs a table [refresh.store] with a type, such as type = "sqlite"')
    options = decode(RefreshOptions, rest, "[refresh]", folder)
    for service in options.except_services:
        _check_service(service, services, "[refresh]")
    where = f"[refresh.store] ({type_})"
    cls = with_place("[refresh.store]", lambda: load_store(type_))
    return RefreshConfig(
        options, cls, decode(cls.Options, {key: store[key] for key in store if key != "type"}, where, folder)
    )


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise ConfigurationError(f"'{key}' must be a table: write [{key}]")
    return found


def _tables(table: Mapping[str, Any], key: str) -> Iterable[tuple[int, dict[str, Any]]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConfigurationError(f"'{key}' must be a list of tables: write [[{key}]]")
    return enumerate(found, 1)


def _decode_backend(table: dict[str, Any], where: str, folder: Path) -> BackendConfig:
    rest = dict(table)
    type_ = rest.pop("type", None)
    if not isinstance(type_, str):
        raise ConfigurationError(f"{where}: the key 'type' is missing (for example type = \"htpasswd\")")
    name = rest.pop("name", type_)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: 'name' must be a string that is not empty")
    cls = with_place(where, lambda: load_backend(type_))
    return BackendConfig(name, cls, decode(cls.Options, rest, f"{where} ({type_})", folder))


def _with_own_names(backends: Sequence[BackendConfig]) -> Iterator[BackendConfig]:
    seen: set[str] = set()
    for number, backend in enumerate(backends, 1):
        if backend.name in seen:
            raise ConfigurationError(
                f"[[backends]] {number}: two backends are called '{backend.name}'; give one its own name = \"…\""
            )
        seen.add(backend.name)
        yield backend


def _decode_rule(
    table: dict[str, Any],
    number: int,
    lines: Sequence[int],
    services: Sequence[str],
    backends: Sequence[str],
    folder: Path,
) -> Rule:
    line = lines[number - 1] if number <= len(lines) else 0
    where = f"{f'line {line}, ' if line else ''}[[access]] {number}"
    options = decode(AccessOptions, table, where, folder)
    for service in options.services or ():
        _check_service(service, services, where)
    for backend in options.backends or ():
        _check_backend(backend, backends, where)
    return options.rule(number, line)


def _decode_test(
    table: dict[str, Any], number: int, services: Sequence[str], backends: Sequence[str], folder: Path
) -> TestOptions:
    where = f"[[test]] {number}"
    options = decode(TestOptions, table, where, folder)
    if options.service:
        _check_service(options.service, services, where)
    if options.backend:
        _check_backend(options.backend, backends, where)
    return options


def _check_service(service: str, services: Sequence[str], where: str) -> None:
    if service not in services:
        raise ConfigurationError(
            f"{where}: the service '{service}' is not in [issuer] services; {near_match(service, services)}"
        )


def _check_backend(backend: str, backends: Sequence[str], where: str) -> None:
    if backend not in backends:
        raise ConfigurationError(f"{where}: no backend is called '{backend}'; {near_match(backend, backends)}")
