"""TOML table → options: what a backend author gets for declaring them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tokenissuer.config import load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.net import tls_context
from tokenissuer.options import Secret, decode, near_match, option


@dataclass(frozen=True)
class Inner:
    """A table within."""

    depth: int = option("how deep")


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    text: str = option("a text")
    number: int = option("a number", default=1)
    flag: bool = option("a flag", default=False)
    path: Path | None = option("a path", default=None)
    names: tuple[str, ...] = option("names", default=())
    numbers: frozenset[int] = option("numbers", default=frozenset())
    choice: Literal["a", "b"] = option("a or b", default="a")
    table: Mapping[str, int] = option("numbers by name", default_factory=dict)
    inner: Inner | None = option("a table", default=None)
    inners: tuple[Inner, ...] = option("tables", default=())
    password: Secret | None = option("a secret", default=None)

    def __post_init__(self) -> None:
        if self.number == 13:
            raise ValueError("'number' is 13; use another")


def made(**table: Any) -> Options:
    return decode(Options, {"text": "x", **table}, "[x]", Path("/etc/x"))


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ({"text": ""}, "text", ""),
        ({"number": -5}, "number", -5),
        ({"flag": True}, "flag", True),
        ({"path": "a/b"}, "path", Path("/etc/x/a/b")),
        ({"path": "/a"}, "path", Path("/a")),
        ({"names": ["b", "a", "b"]}, "names", ("b", "a", "b")),
        ({"numbers": [1, 1, 2]}, "numbers", frozenset({1, 2})),
        ({"choice": "b"}, "choice", "b"),
        ({"table": {"a": 1}}, "table", {"a": 1}),
        ({"inner": {"depth": 2}}, "inner", Inner(2)),
        ({"inners": [{"depth": 2}, {"depth": 3}]}, "inners", (Inner(2), Inner(3))),
        ({}, "number", 1),
        ({}, "path", None),
    ],
)
def test_values_are_read_as_declared(table: dict[str, Any], name: str, expected: object) -> None:
    """Paths are made absolute, lists keep or lose their order as declared."""
    assert getattr(made(**table), name) == expected


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"text": 5}, "[x]: 'text': found 5, expected a string"),
        ({"text": None}, "'text'"),
        ({"number": 5.0}, "'number': found 5.0, expected a whole number"),
        ({"number": True}, "'number': found true, expected a whole number"),
        ({"number": "5"}, "'number': found the string '5'"),
        ({"number": 13}, "[x]: 'number' is 13; use another"),
        ({"flag": 0}, "'flag': found 0, expected true or false"),
        ({"path": 5}, "'path': found 5"),
        ({"path": ""}, "'path': the path is empty"),
        ({"path": "a\0b"}, "'path': "),
        ({"password_file": "a\0b"}, "'password_file': "),
        ({"names": "a"}, "'names': found the string 'a', expected a list in square brackets"),
        ({"names": ["a", 5]}, "'names' item 2: found 5"),
        ({"names": {"a": 1}}, "'names': found a table"),
        ({"numbers": [True]}, "'numbers' item 1: found true"),
        ({"choice": "c"}, "'choice': found the string 'c', expected one of 'a', 'b'"),
        ({"choice": ["a"]}, "'choice': found a list"),
        ({"table": {"a": "b"}}, "'table' 'a': found the string 'b'"),
        ({"table": []}, "'table': found a list, expected a table"),
        ({"inner": {}}, "'inner': the key 'depth' is missing (how deep)"),
        ({"inner": {"dept": 1}}, "'inner': unknown key 'dept'; did you mean 'depth'?"),
        ({"inners": [{"depth": 1}, {}]}, "'inners' item 2: the key 'depth' is missing"),
        ({"password": ""}, "'password': expected a string that is not empty"),
        ({"password": 5}, "'password': expected a string that is not empty"),
        ({"password_file": 5}, "'password_file': found 5"),
        ({"password_file": "/nowhere/at/all"}, "'password_file': cannot read /nowhere/at/all: No such file"),
        ({"password_fil": "x"}, "unknown key 'password_fil'; did you mean 'password_file'?"),
        ({"text_file": "x"}, "unknown key 'text_file'"),
        ({"__class__": "x"}, "unknown key '__class__'"),
    ],
)
def test_what_is_not_as_declared_is_refused(table: dict[str, Any], says: str) -> None:
    """With table, key, what was found and what is expected."""
    with pytest.raises(ConfigurationError) as caught:
        made(**table)
    assert str(caught.value).startswith("[x]: ")
    assert says in str(caught.value)


def test_a_missing_key_is_named_with_its_meaning() -> None:
    """So that nobody need look it up."""
    with pytest.raises(ConfigurationError, match=r"^\[x\]: the key 'text' is missing \(a text\)$"):
        decode(Options, {}, "[x]", Path())


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    """An empty password is never meant."""
    for content in ("", "\n", "\r\n"):
        (tmp_path / "s").write_text(content, newline="")
        with pytest.raises(ConfigurationError, match="is empty"):
            made(password_file=str(tmp_path / "s"))


def test_only_the_last_line_end_is_taken_off_a_secret(tmp_path: Path) -> None:
    """What else stands there belongs to it."""
    (tmp_path / "s").write_text(" a \nb\n\n", newline="")
    secret = made(password_file=str(tmp_path / "s")).password
    assert secret is not None
    assert secret.reveal() == " a \nb\n"


@pytest.mark.parametrize(
    ("word", "known", "says"),
    [
        ("naem", ["name", "path"], "did you mean 'name'?"),
        ("zzz", ["name", "path"], "known: name, path"),
        ("x", [], "there are none"),
    ],
)
def test_a_near_match_is_offered(word: str, known: list[str], says: str) -> None:
    """Or the whole list."""
    assert near_match(word, known) == says


@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\ufeff", "\u200b", "\u2060\ufeff"])
def test_what_starts_a_file_invisibly_is_dropped_in_every_file(set_up: Path, mark: str) -> None:
    """Editors on Windows write it, and people paste it."""
    redis = set_up / "redis"
    redis.write_text("redis://127.0.0.1:1/0\n")
    with (set_up / "tokenissuer.toml").open("a") as file:
        file.write(f'[throttle]\nredis_file = "{redis}"\n')
    for path in set_up.iterdir():
        path.write_bytes(mark.encode() + path.read_bytes())
    config = load_config(set_up / "tokenissuer.toml")
    assert config.throttle.redis is not None
    assert config.throttle.redis.reveal() == "redis://127.0.0.1:1/0"
    assert config.load_key().certificate.serial_number
    listing = config.backends[0].build().listing()
    assert listing is not None
    assert listing.accounts == {"alice"}
    assert not listing.unusable
    assert len(tls_context(set_up / "auth.crt").get_ca_certs()) == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_says_so(set_up: Path, encoding: str) -> None:
    """As PowerShell writes it; the advice is the right one."""
    for name in ("tokenissuer.toml", "users.htpasswd", "auth.crt"):
        path = set_up / name
        before = path.read_bytes()
        path.write_bytes("\ufeff".encode(encoding) + before.decode().encode(encoding))
        with pytest.raises(ConfigurationError, match=f"{name} is saved as UTF-16; save it as UTF-8"):
            load_config(set_up / "tokenissuer.toml").build()
        path.write_bytes(before)


def test_a_file_of_certificates_without_one_trusts_nobody(tmp_path: Path) -> None:
    """Least of all those that the system trusts."""
    path = tmp_path / "ca.pem"
    for text in ("", "words", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="has no PEM certificate"):
            tls_context(path)
