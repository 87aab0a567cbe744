"""`tokenissuer init`: a complete set-up in one folder."""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import json
import os
import re
import secrets
import shlex
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from cryptography.hazmat.primitives import serialization

from tokenissuer.config import FILE_NAME, load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.signing.issuer import check_realm
from tokenissuer.signing.keys import KeyType, SigningKey, generate_private_key, private_pem, self_signed_certificate

#: A name, not 127.0.0.1: crane and Helm refuse a realm whose host is a loopback address.
DEFAULT_REALM: Final = "http://localhost:5001/token"
DEFAULT_ACCOUNT: Final = "admin"

_PASSWORD_LENGTH: Final = 24
_REGISTRY_FILE: Final = "registry.yml"
# What TOML or YAML cannot have in a string, or reads as the end of a line.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class SetUp:
    """The names and the folder of a new set-up.

    Args:
        folder: where its files are written.
        realm: the URL clients are sent to.
        service: the registry's name.
        issuer: the issuer's name, and the certificate's.
        key_type: the kind of key.
        account: the first account; it may do everything.
    """

    folder: Path
    realm: str = DEFAULT_REALM
    service: str = "container_registry"
    issuer: str = "tokenissuer"
    key_type: KeyType = KeyType.EC
    account: str = DEFAULT_ACCOUNT

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / FILE_NAME

    @property
    def registry(self) -> Path:
        """The registry's configuration file."""
        return self.folder / _REGISTRY_FILE

    def write(self) -> str:
        """Write every file of the set-up.

        Returns:
            The first account's new password.

        Raises:
            ConfigurationError: if a file already exists; then nothing is written.
        """
        folder = self.folder.absolute()
        if _UNPRINTABLE.search(str(folder)):
            raise ConfigurationError("the folder's name has a control character or is not UTF-8; name another folder")
        private = generate_private_key(self.key_type)
        key = SigningKey(private, self_signed_certificate(private, self.issuer, time.time()))
        certificate = key.certificate.public_bytes(serialization.Encoding.PEM)
        texts: dict[str, tuple[bytes, int]] = {
            FILE_NAME: (self._configuration().encode(), 0o644),
            "auth.key": (private_pem(private), 0o400),
            "auth.crt": (certificate, 0o644),
            "jwks.json": (json.dumps(key.jwk_set(), indent=2).encode() + b"\n", 0o644),
            "users.htpasswd": (b"# name:hash; `tokenissuer passwd NAME` adds a line or changes it\n", 0o600),
            _REGISTRY_FILE: (self._registry(folder).encode(), 0o644),
        }
        for name in texts:
            if (folder / name).exists() or (folder / name).is_symlink():
                raise ConfigurationError(
                    f"{folder / name} already exists and nothing is overwritten; name another folder"
                )
        with contextlib.ExitStack() as undo:
            _make_folder(folder, undo)
            for name, (content, mode) in texts.items():
                _write_new(folder / name, content, mode, undo)
            password = new_password()
            (backend,) = load_config(folder / FILE_NAME).backends
            backend.build().set_password(self.account, password)
            undo.pop_all()
        return password

    def _configuration(self) -> str:
        return _template("tokenissuer.toml").substitute(
            issuer=_quote(self.issuer),
            service=_quote(self.service),
            service_key=self.service if re.fullmatch(r"[A-Za-z0-9_-]+", self.service) else _quote(self.service),
            realm=_quote(self.realm),
            account=_quote(self.account),
        )

    def _registry(self, folder: Path) -> str:
        return _template("registry.yml").substitute(
            file_plain=folder / _REGISTRY_FILE,
            storage=_quote(str(folder / "registry")),
            certificate=_quote(str(folder / "auth.crt")),
            realm=_quote(self.realm),
            service=_quote(self.service),
            issuer=_quote(self.issuer),
        )


def new_password() -> str:
    """Make a password that needs no quotes in a shell."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_PASSWORD_LENGTH))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    default = SetUp(Path())
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where to write it (default: the working folder)",
    )
    parser.add_argument(
        "--realm",
        type=_argument(_checked_realm),
        default=default.realm,
        metavar="URL",
        help=f"the URL clients are sent to (default: {default.realm})",
    )
    parser.add_argument(
        "--service",
        type=_argument(_name),
        default=default.service,
        metavar="NAME",
        help=f"the registry's name (default: {default.service})",
    )
    parser.add_argument(
        "--issuer",
        type=_argument(_name),
        default=default.issuer,
        metavar="NAME",
        help=f"the issuer's name (default: {default.issuer})",
    )
    parser.add_argument(
        "--key-type",
        type=KeyType,
        choices=list(KeyType),
        default=default.key_type,
        help="ec: P-256, rsa: 4096 bits (default: ec)",
    )
    parser.add_argument(
        "--account",
        type=_argument(_name),
        default=default.account,
        metavar="NAME",
        help=f"the first account (default: {default.account})",
    )


def run(arguments: argparse.Namespace) -> int:
    """write keys, certificate, configuration, first account and the registry's configuration"""
    set_up = SetUp(
        arguments.folder,
        arguments.realm,
        arguments.service,
        arguments.issuer,
        arguments.key_type,
        arguments.account,
    )
    password = set_up.write()
    print(f"Made a set-up in {set_up.folder.absolute()}.")
    print(f"First account: {set_up.account}   password: {password}   (shown only now)")
    print(f"Start the issuer:    tokenissuer serve --config {shlex.quote(str(set_up.config))}")
    print(f"Start the registry:  registry serve {shlex.quote(str(set_up.registry))}")
    print("                     (Debian: docker-registry serve ...)")
    return 0


def _argument(check: Callable[[str], str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _checked_realm(text: str) -> str:
    check_realm(text)
    return _name(text)


def _name(text: str) -> str:
    if not text or _UNPRINTABLE.search(text):
        raise ValueError("it is empty, has a control character or is not UTF-8")
    return text


def _quote(text: str) -> str:
    """Write a string as TOML and YAML read it: as JSON, except for surrogate pairs."""
    return json.dumps(text, ensure_ascii=False)


def _make_folder(folder: Path, undo: contextlib.ExitStack) -> None:
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir()
            undo.callback(each.rmdir)


def _write_new(path: Path, content: bytes, mode: int, undo: contextlib.ExitStack) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    undo.callback(path.unlink)
    with os.fdopen(descriptor, "wb") as file:
        # The umask may have taken away permissions that the file needs.
        os.fchmod(descriptor, mode)
        file.write(content)


def _template(name: str) -> Template:
    """Return a text with placeholders that stand where TOML and YAML take a JSON string or number."""
    return Template((importlib.resources.files("tokenissuer.cli") / "templates" / name).read_text("utf-8"))
