"""The whole application, asked without a network."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import bcrypt
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from webob import Request

from tests.support.http import Answer, basic
from tests.support.ldap_fixtures import new_backend, new_directory
from tests.support.machine import free_port
from tokenissuer.config import load_config
from tokenissuer.signing.keys import SigningKey, private_pem
from tokenissuer.web.app import Application

# Fixtures of the tests with a fake directory.
__all__ = ["new_backend", "new_directory"]

SERVICE = "registry.example"
ISSUER = "test-issuer"
PASSWORDS = {
    "admin": "root-word",
    "alice": "a:colon and sp\N{LATIN SMALL LETTER A WITH DIAERESIS}ce",
    "bob": "pw",
    "**": "star-word",
}
CONFIGURATION = """\
[issuer]
name = "test-issuer"
services = ["registry.example"]
realm = "https://auth.example.com/token"

[signing]
key = "auth.key"
certificate = "auth.crt"

[[backends]]
type = "htpasswd"
path = "users.htpasswd"
groups = "users.groups"

# Wrong passwords of many tests come from one address.
[throttle]
account = 0
address = 0

[[access]]
accounts = ["admin"]
repositories = ["**"]
catalog = true
actions = ["*"]

[[access]]
authenticated = true
repositories = ["{account}/**"]
actions = ["pull", "push", "delete"]

[[access]]
groups = ["developers"]
repositories = ["team/**"]
actions = ["pull", "push"]

[[access]]
everyone = true
repositories = ["public/**", "host:5000/public/**"]
actions = ["pull"]

[[access]]
authenticated = true
repositories = ["team/secret"]
actions = ["*"]
effect = "deny"
"""


class TokenAnswer(Answer):
    """What the application said."""

    def json(self) -> dict[str, Any]:
        """The body, which is always JSON."""
        assert self.headers["Content-Type"] == "application/json"
        found = super().json()
        assert isinstance(found, dict)
        return found

    @property
    def claims(self) -> dict[str, Any]:
        """The token's claims, the token having been verified with the certificate in its header."""
        assert self.status == 200, self.body
        token = self.json()["token"]
        header = jwt.get_unverified_header(token)
        leaf = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0], validate=True))
        claims: dict[str, Any] = jwt.decode(
            token,
            leaf.public_key(),  # type: ignore[arg-type]
            algorithms=["ES256"],
            audience=SERVICE,
            issuer=ISSUER,
            options={"require": ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"], "strict_aud": True},
        )
        return claims

    @property
    def access(self) -> dict[str, list[str]]:
        """What the token allows: `type:name` → actions."""
        entries = self.claims["access"]
        found = {f"{entry['type']}:{entry['name']}": entry["actions"] for entry in entries}
        assert len(found) == len(entries)
        return found


@dataclass(frozen=True)
class Client:
    """Asks one application."""

    application: Application

    def ask(self, path: str = "/token", method: str = "GET", body: bytes | None = None, **environ: Any) -> TokenAnswer:
        """Send a request; `environ` as WSGI names it."""
        request = Request.blank(path, environ={"REMOTE_ADDR": "192.0.2.1", **environ}, method=method)
        if body is not None:
            request.environ["wsgi.input"] = BytesIO(body)
            request.environ.setdefault("CONTENT_LENGTH", str(len(body)))
            request.environ.setdefault("CONTENT_TYPE", "application/x-www-form-urlencoded")
        response = request.get_response(self.application)
        return TokenAnswer(response.status_int, dict(response.headers), response.body)

    def send(self, environ: Mapping[str, Any], path: str = "/token", method: str = "POST") -> TokenAnswer:
        """Send a request whose body and everything else is in `environ`."""
        return self.ask(path, method, None, **environ)

    def get(self, user: str | None = None, scope: str = "", **environ: Any) -> TokenAnswer:
        """Ask for a token by GET, logged in as one of the known accounts."""
        query = urlencode({"service": SERVICE, **({"scope": scope} if scope else {})})
        if user is not None:
            environ["HTTP_AUTHORIZATION"] = basic(user, PASSWORDS[user])
        return self.ask(f"/token?{query}", **environ)

    def post(self, form: Mapping[str, Any] | bytes, path: str = "/token", **environ: Any) -> TokenAnswer:
        """Ask for a token by POST."""
        body = form if isinstance(form, bytes) else urlencode(form, doseq=True).encode()
        return self.ask(path, "POST", body, **environ)


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Callable[[str], Path]:
    """Write a configuration into a folder of its own, and the files it names."""

    def written(text: str = CONFIGURATION) -> Path:
        folder = tmp_path_factory.mktemp("set-up")
        (folder / "auth.key").write_bytes(private_pem(key.private))
        (folder / "auth.crt").write_bytes(key.certificate.public_bytes(Encoding.PEM))
        lines = [f"{name}:{_hash(password)}\n" for name, password in PASSWORDS.items()]
        (folder / "users.htpasswd").write_text("".join(lines))
        (folder / "users.groups").write_text("developers: bob\n")
        path = folder / "tokenissuer.toml"
        path.write_text(text)
        for name in ("auth.key", "users.htpasswd"):
            (folder / name).chmod(0o600)
        return path

    return written


@pytest.fixture(scope="session")
def build(write: Callable[[str], Path]) -> Callable[[str], Application]:
    """Build an application from the text of a configuration."""
    return lambda text: load_config(write(text)).application()


@dataclass
class Server:
    """`tokenissuer serve` in a process of its own, saying all it can."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path

    def talk(self, sent: bytes, *more: bytes, seconds: float = 10) -> bytes:
        """Send bytes as they are, in several pieces where there are more, and return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as connection:
            back = b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
                for piece in more:
                    time.sleep(0.05)
                    connection.sendall(piece)
                # It may be gone already.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(65536):
                    back += data
            return back

    def stop(self) -> str:
        """End it and return everything it wrote."""
        self.process.terminate()
        self.process.wait(20)
        return self.output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Start `tokenissuer serve` for a configuration; it ends with the module's tests."""
    with contextlib.ExitStack() as started:

        def start(config: Path) -> Server:
            port = free_port()
            output = tmp_path_factory.mktemp("serve") / "output"
            options = ["serve", "--config", str(config), "--listen", f"127.0.0.1:{port}", "--log-level", "debug"]
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "tokenissuer", *options], stdout=file, stderr=file
                )
            started.callback(process.wait, 20)
            started.callback(process.kill)
            for _ in range(400):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return Server(process, port, output)
                assert process.poll() is None, output.read_text()
                time.sleep(0.05)
            raise AssertionError(output.read_text())

        yield start


def _hash(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


@pytest.fixture(scope="session")
def client(build: Callable[[str], Application]) -> Client:
    """A client of the application that most tests ask."""
    return Client(build(CONFIGURATION))


@pytest.fixture(scope="session")
def client_of(build: Callable[[str], Application]) -> Callable[[str, str], Client]:
    """A client of an application whose configuration differs: in the usual one `old` is replaced with `new`."""

    def changed(old: str, new: str) -> Client:
        assert old in CONFIGURATION
        return Client(build(CONFIGURATION.replace(old, new)))

    return changed
