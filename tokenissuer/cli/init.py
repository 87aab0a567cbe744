"""`tokenissuer init`: a complete set-up in one folder."""

from __future__ import annotations

import argparse
import contextlib
import grp
import importlib.resources
import json
import os
import pwd
import re
import secrets
import shlex
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Final

from cryptography.hazmat.primitives import serialization

from tokenissuer.cli.arguments import argument
from tokenissuer.config import FILE_NAME, SYSTEM_FILE, load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.signing.issuer import check_realm
from tokenissuer.signing.keys import KeyType, SigningKey, generate_private_key, private_pem, self_signed_certificate

_PASSWORD_LENGTH: Final = 24
_STATE_FOLDER: Final = Path("/var/lib/tokenissuer")
_STORE_FILE: Final = "refresh.sqlite3"
_WSGI_FILE: Final = "tokenissuer.wsgi"
_REGISTRY_FILE: Final = "registry.yml"
# What TOML or YAML cannot have in a string, or reads as the end of a line.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class Purpose(StrEnum):
    """What a set-up is for."""

    #: Whoever makes it also serves.
    HERE = "here"
    SYSTEMD = "systemd"
    APACHE = "apache"
    CONTAINER = "container"


#: Whom a proxy is for the server: its address in conf/compose.yaml; Apache itself knows the clients' addresses.
_PROXIES: Final[Mapping[Purpose, Sequence[str]]] = {
    Purpose.HERE: ("127.0.0.1", "::1"),
    Purpose.SYSTEMD: ("127.0.0.1", "::1"),
    Purpose.APACHE: (),
    Purpose.CONTAINER: ("172.31.250.1",),
}
#: The user that serves, by name or number, as the files in conf/ have it.
_USERS: Final[Mapping[Purpose, str]] = {
    Purpose.SYSTEMD: "tokenissuer",
    Purpose.APACHE: "tokenissuer",
    Purpose.CONTAINER: "65532",
}


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
        purpose: what it is for.
        user: the user that serves, by name or number; empty for the one that the purpose has.
    """

    folder: Path
    # A name, not 127.0.0.1: crane and Helm refuse a realm whose host is a loopback address.
    realm: str = "http://localhost:5001/token"
    service: str = "container_registry"
    issuer: str = "tokenissuer"
    key_type: KeyType = KeyType.EC
    account: str = "admin"
    purpose: Purpose = Purpose.HERE
    user: str = ""

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
        if self.purpose is Purpose.APACHE:
            texts[_WSGI_FILE] = (
                importlib.resources.files("tokenissuer.cli").joinpath("templates", _WSGI_FILE).read_bytes(),
                0o644,
            )
        server = self.server()
        for name in texts:
            if (folder / name).exists() or (folder / name).is_symlink():
                raise ConfigurationError(
                    f"{folder / name} already exists and nothing is overwritten; name another folder"
                )
        with contextlib.ExitStack() as undo:
            is_new = _make_folder(folder, undo, is_open=server is not None)
            if server is not None and self.purpose is Purpose.CONTAINER:
                _give_folder(folder, server, is_new=is_new)
            for name, (content, mode) in texts.items():
                owner, mode = self._owner(name, mode, server)
                _write_new(folder / name, content, mode, owner, undo)
            password = new_password()
            (backend,) = load_config(folder / FILE_NAME).backends
            backend.build().set_password(self.account, password)
            if server is not None and self.purpose is not Purpose.CONTAINER and _make_folder(_STATE_FOLDER, undo):
                _STATE_FOLDER.chmod(0o700)
                os.chown(_STATE_FOLDER, *server)
            undo.pop_all()
        return password

    def _owner(self, name: str, mode: int, server: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
        """Return owner and mode of a file: the user that serves reads what it needs."""
        if server is None:
            return (-1, -1), mode
        if self.purpose is Purpose.CONTAINER:
            # There `passwd` and `keys` run as this user too.
            return server, mode
        return ((-1, server[1]), 0o640) if name in ("auth.key", "users.htpasswd") else ((-1, -1), mode)

    def _images(self, folder: Path) -> Path:
        """Where the registry keeps its images: beside the rest, or where Debian's docker-registry may write."""
        is_service = self.purpose in (Purpose.SYSTEMD, Purpose.APACHE)
        return Path("/var/lib/docker-registry") if is_service else folder / "registry"

    @property
    def _store(self) -> str:
        """Where refresh tokens are kept: the user that serves must be able to make files beside it."""
        is_service = self.purpose in (Purpose.SYSTEMD, Purpose.APACHE)
        return str(_STATE_FOLDER / _STORE_FILE) if is_service else _STORE_FILE

    def server(self) -> tuple[int, int] | None:
        """Return user and group of the server; None if that is whoever makes the set-up.

        Raises:
            ConfigurationError: if there is no such user, or the files cannot be given to it.
        """
        name = self.user or _USERS.get(self.purpose, "")
        if not name:
            return None
        try:
            found = (int(name), int(name)) if name.isdigit() else pwd.getpwnam(name)[2:4]
        except KeyError:
            raise ConfigurationError(
                f"there is no user '{name}' to serve; name one with --user, or make it: useradd --system "
                f"--no-create-home --home-dir {_STATE_FOLDER} --shell /usr/sbin/nologin {name}"
            ) from None
        if os.geteuid() not in (0, found[0]):
            raise ConfigurationError(f"only root can give the files to the user '{name}'; use sudo")
        return None if os.geteuid() else found

    def _configuration(self) -> str:
        return _template("tokenissuer.toml").substitute(
            issuer=_quote(self.issuer),
            service=_quote(self.service),
            service_key=self.service if re.fullmatch(r"[A-Za-z0-9_-]+", self.service) else _quote(self.service),
            realm=_quote(self.realm),
            account=_quote(self.account),
            proxies=json.dumps(_PROXIES[self.purpose]),
            store=_quote(self._store),
        )

    def _registry(self, folder: Path) -> str:
        return _template("registry.yml").substitute(
            file_plain=folder / _REGISTRY_FILE,
            storage=_quote(str(self._images(folder))),
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
    for flag, read, value, metavar, text in (
        ("--realm", _checked_realm, default.realm, "URL", "the URL clients are sent to"),
        ("--service", _name, default.service, "NAME", "the registry's name"),
        ("--issuer", _name, default.issuer, "NAME", "the issuer's name"),
        ("--account", _name, default.account, "NAME", "the first account"),
    ):
        parser.add_argument(
            flag, type=argument(read), default=value, metavar=metavar, help=f"{text} (default: {value})"
        )
    parser.add_argument(
        "--key-type",
        choices=[str(key_type) for key_type in KeyType],
        default=str(default.key_type),
        help="ec: P-256, rsa: 4096 bits (default: ec)",
    )
    parser.add_argument(
        "--for",
        dest="purpose",
        choices=[str(purpose) for purpose in Purpose],
        default=str(default.purpose),
        help="what will serve, with the files of conf/: sets owners, modes, proxies and paths (default: here, whoever "
        "runs this command)",
    )
    parser.add_argument(
        "--user", type=argument(_name), metavar="NAME", help="the user that serves (default: as in conf/)"
    )


def run(arguments: argparse.Namespace) -> int:
    """write keys, certificate, configuration, first account and the registry's configuration"""
    set_up = SetUp(
        arguments.folder,
        arguments.realm,
        arguments.service,
        arguments.issuer,
        KeyType(arguments.key_type),
        arguments.account,
        Purpose(arguments.purpose),
        arguments.user or "",
    )
    password = set_up.write()
    print(f"Made a set-up in {set_up.folder.absolute()}.")
    print(f"First account: {set_up.account}   password: {password}   (shown only now)")
    for line in _next_steps(set_up):
        print(line)
    return 0


def _next_steps(set_up: SetUp) -> Sequence[str]:
    registry = shlex.quote(str(set_up.registry))
    match set_up.purpose:
        case Purpose.SYSTEMD:
            return (
                "Start the issuer:    cp conf/tokenissuer.service conf/tokenissuer.socket /etc/systemd/system/",
                *(f"                     in tokenissuer.service, write {line}" for line in _unit_lines(set_up)),
                "                     systemctl daemon-reload && systemctl enable --now tokenissuer.socket tokenissuer",
                f"The registry's file: {registry}",
            )
        case Purpose.APACHE:
            script = shlex.quote(str(set_up.folder.absolute() / _WSGI_FILE))
            return (
                f"Apache runs:         {script} (conf/apache.conf says how)",
                f"The registry's file: {registry}",
            )
        case Purpose.CONTAINER:
            return ("Start both:          docker compose up -d   (in conf/)",)
        case _:
            return (
                f"Start the issuer:    tokenissuer serve --config {shlex.quote(str(set_up.config))}",
                f"Start the registry:  registry serve {registry}",
                "                     (Debian: docker-registry serve ...)",
            )


def _unit_lines(set_up: SetUp) -> Iterator[str]:
    """Return the lines of the systemd unit that are not as in conf/."""
    if set_up.user not in ("", _USERS[set_up.purpose]):
        server = set_up.server()
        yield f"User={set_up.user}"
        yield f"Group={_group_name(server[1]) if server else set_up.user}"
    if (config := set_up.config.absolute()) != SYSTEM_FILE:
        yield f"ExecStart=/opt/tokenissuer/bin/tokenissuer serve --config {config}"


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


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


def _make_folder(folder: Path, undo: contextlib.ExitStack, *, is_open: bool = False) -> bool:
    """Make a folder and those above it; return whether it was not there.

    Args:
        folder: the folder.
        undo: removes them again.
        is_open: whether another user is to enter them, whatever the umask.
    """
    is_new = not folder.is_dir()
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir()
            undo.callback(each.rmdir)
            if is_open:
                each.chmod(0o755)
    return is_new


def _give_folder(folder: Path, server: tuple[int, int], *, is_new: bool) -> None:
    """Give a folder to the user that serves, if this command has made it: anybody may have put anything into another.

    Raises:
        ConfigurationError: if it is somebody else's.
    """
    if is_new:
        os.chown(folder, *server, follow_symlinks=False)
    elif folder.stat().st_uid != server[0]:
        raise ConfigurationError(
            f"{folder} is there and belongs to another user; name a new folder, or make it: install -d -o {server[0]} "
            f"-g {server[1]} {shlex.quote(str(folder))}"
        )


def _write_new(path: Path, content: bytes, mode: int, owner: tuple[int, int], undo: contextlib.ExitStack) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    undo.callback(path.unlink)
    with os.fdopen(descriptor, "wb") as file:
        # By the descriptor: in a folder of somebody else the name may lead to another file already.
        os.fchown(descriptor, *owner)
        # The umask may have taken away permissions that the file needs.
        os.fchmod(descriptor, mode)
        file.write(content)


def _template(name: str) -> Template:
    """Return a text with placeholders that stand where TOML and YAML take a JSON string or number."""
    return Template((importlib.resources.files("tokenissuer.cli") / "templates" / name).read_text("utf-8"))
