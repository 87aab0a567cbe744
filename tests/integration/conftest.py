"""Real registries, real clients and the installed `tokenissuer` command, all on 127.0.0.1."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tarfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import bcrypt
import pytest

from tests.support.http import Answer, basic
from tests.support.machine import free_port, is_free, wait_until

SERVICE = "container_registry"
ISSUER = "gitlab-issuer"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(__file__).parents[2] / ".cache" / "bin")])


@cache
def find(name: str) -> str | None:
    """The program of this name on PATH, or built by tests/run."""
    return shutil.which(name, path=PATH)


def program(name: str, reason: str) -> str:
    """The program, or the end of the test with the reason why it cannot be had."""
    found = find(name)
    if found is None:
        pytest.skip(f"no {name} program: {reason}")
    return found


def registry_program(generation: int) -> str:
    """A registry of Distribution 2.x (Debian's) or 3.x (built with Go)."""
    if generation == 2:
        return program("docker-registry", "install Debian's docker-registry")
    found = program("registry", "tests/run builds Distribution 3.x where Go is installed")
    if " v3." not in version_of(found):
        pytest.skip(f"{found} is no Distribution 3.x: {version_of(found)}")
    return found


@cache
def version_of(command: str) -> str:
    """What the program says to --version."""
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout.strip()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The little a program needs, so that nothing of this machine's user leaks into a test."""
    return {"PATH": PATH, "LANG": "C.UTF-8", **(more or {})}


def request(method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    """One plain HTTP request, without redirects."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        # Lower case: the two generations of the registry spell header names differently.
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
    finally:
        connection.close()


class Server:
    """A program that runs until it is stopped: a process group of its own, its output in a file."""

    running: list[Server] = []  # noqa: RUF012 (shared on purpose: the failure report reads it)

    def __init__(self, name: str, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self.started: list[Path] = []
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env),
                start_new_session=True,
            )
        self.running.append(self)

    def output(self, start: int = 0) -> str:
        """What it has written so far, from the given byte on."""
        # The server writes its log in batches.
        time.sleep(0.08)
        return self.log.read_bytes()[start:].decode(errors="replace")

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready, or fail with its output."""
        if not wait_until(lambda: ready() or self.process.poll() is not None) or self.process.poll() is not None:
            code = self.process.poll()
            self.stop(signal.SIGKILL)
            state = "was not ready in time" if code is None else f"ended with {code} before it was ready"
            pytest.fail(f"{self.name} {state}:\n{self.output()}", pytrace=False)
        self.started = self.children()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the program, or (as Ctrl-C does) to everything it started too."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self, seconds: float = 15) -> int:
        """The exit code; fails with the output if it does not end by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds} seconds:\n{self.output()}", pytrace=False)

    def children(self) -> list[Path]:
        """The processes it has started and that still run, as folders of /proc."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [Path("/proc", number) for number in listed.split()]

    def group_is_gone(self) -> bool:
        """Whether nothing of its process group is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and everything it started, the hard way if need be."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(number)
                self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if not self.group_is_gone():
                os.killpg(self.process.pid, signal.SIGKILL)
            for child in self.started:
                # What has left the group and outlived its parent: a failed test must not keep ports busy.
                with suppress(OSError):
                    if b"serve" in (child / "cmdline").read_bytes():
                        os.kill(int(child.name), signal.SIGKILL)
            self.process.wait(10)
            if self in self.running:
                self.running.remove(self)


def answers(url: str, *status: int) -> Callable[[], bool]:
    """A readiness check: the URL answers with one of these statuses."""

    def ready() -> bool:
        try:
            return request("GET", url).status in status
        except OSError:
            return False

    return ready


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    command: list[str]
    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"$ {' '.join(self.command)}\n{self.stdout}{self.stderr}(exit code {self.code})"

    def succeeded(self) -> str:
        """What it printed on standard output; fails unless it ended with 0."""
        __tracebackhide__ = True
        if self.code != 0:
            pytest.fail(f"expected to succeed:\n{self}")
        return self.stdout

    def failed(self) -> str:
        """All it printed; fails if it ended with 0."""
        __tracebackhide__ = True
        if self.code == 0:
            pytest.fail(f"expected to fail:\n{self}")
        return self.stdout + self.stderr


def run(*command: str, stdin: str = "", seconds: float = 60, env: Mapping[str, str] | None = None) -> Ran:
    """Run a command to its end."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False, env=environment(env)
    )
    return Ran(list(command), done.returncode, done.stdout, done.stderr)


def tokenissuer(*arguments: str, stdin: str = "", seconds: float = 60) -> Ran:
    """Run the installed command."""
    return run(tokenissuer_command(), *arguments, stdin=stdin, seconds=seconds)


def tokenissuer_command() -> str:
    """The command of the environment the tests run in, whatever PATH says."""
    return str(Path(sysconfig.get_path("scripts")) / "tokenissuer")


@dataclass(frozen=True)
class Image:
    """A tiny image made here: an OCI layout with the one tag v1."""

    folder: Path
    digest: str

    @property
    def source(self) -> str:
        """How skopeo names it."""
        return f"oci:{self.folder}:v1"

    def is_in(self, layout: Path) -> bool:
        """Whether the OCI layout holds exactly this image: the same manifest, configuration and layer."""
        ours, theirs = (
            {path.name: path.read_bytes() for path in (folder / "blobs" / "sha256").iterdir()}
            for folder in (self.folder, layout)
        )
        return ours == theirs


def make_image(folder: Path, text: str) -> Image:
    """An image of one layer with one file."""
    store = folder / "blobs" / "sha256"
    store.mkdir(parents=True)

    def put(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (store / digest).write_bytes(content)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("greeting")
        entry.size = len(text.encode())
        tar.addfile(entry, io.BytesIO(text.encode()))
    diff = hashlib.sha256(archive.getvalue()).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff}"]}
    config = put(
        "config.v1+json",
        json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode(),
    )
    layer = put("layer.v1.tar+gzip", gzip.compress(archive.getvalue(), mtime=0))
    media_type = "application/vnd.oci.image.manifest.v1+json"
    document = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}
    manifest = put("manifest.v1+json", json.dumps(document).encode())
    entry_of_index = {**manifest, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry_of_index]}))
    return Image(folder, str(manifest["digest"]))


class Client:
    """One person's machine: docker, skopeo and crane sharing one home folder and so one docker login."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.docker_config = home / ".docker"
        self.docker_config.mkdir(parents=True)
        self.env = {
            "HOME": str(home),
            "DOCKER_CONFIG": str(self.docker_config),
            "XDG_RUNTIME_DIR": str(home),
            # A machine with an engine must test the same thing: the login done by the command line itself.
            "DOCKER_HOST": f"unix://{home}/no-engine.sock",
        }

    def docker(self, *arguments: str, stdin: str = "") -> Ran:
        """The docker command line, without an engine."""
        return run(program("docker", "install docker.io"), *arguments, stdin=stdin, env=self.env)

    def login(self, registry: str, user: str, password: str) -> Ran:
        """`docker login`."""
        return self.docker("login", registry, "-u", user, "--password-stdin", stdin=password)

    def stored_logins(self) -> dict[str, Any]:
        """What `docker login` has written, by registry."""
        path = self.docker_config / "config.json"
        auths: dict[str, Any] = json.loads(path.read_text()).get("auths", {}) if path.exists() else {}
        return auths

    def skopeo(self, *arguments: str) -> Ran:
        """Skopeo without a signature policy, which a bare machine does not have."""
        return run(program("skopeo", "install skopeo"), "--insecure-policy", *arguments, env=self.env)

    def push(self, image: Image, reference: str, *options: str) -> Ran:
        """Copy the image to a registry with skopeo."""
        return self.skopeo("copy", "--dest-tls-verify=false", *options, image.source, f"docker://{reference}")

    def pull(self, reference: str, folder: Path, *options: str) -> Ran:
        """Copy an image from a registry into an OCI layout with skopeo."""
        return self.skopeo("copy", "--src-tls-verify=false", *options, f"docker://{reference}", f"oci:{folder}:v1")

    def crane(self, *arguments: str) -> Ran:
        """Crane over plain HTTP."""
        reason = "tests/run builds it where Go is installed"
        return run(program("crane", reason), *arguments, "--insecure", env=self.env)


@dataclass
class Issuer:
    """A folder made by `tokenissuer init` and the issuer serving it."""

    folder: Path
    port: int
    first_account: str
    first_password: str
    stack: ExitStack
    passwords: dict[str, str] = field(default_factory=dict)
    server: Server | None = None

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "tokenissuer.toml"

    @property
    def realm(self) -> str:
        """Where registries send their clients."""
        return realm(self.port)

    def set_password(self, user: str, password: str) -> None:
        """Add or change an account with the command meant for it."""
        tokenissuer("passwd", user, "--config", str(self.config), stdin=password + "\n").succeeded()
        self.passwords[user] = password

    def drop_tables(self, name: str) -> None:
        """Take every table of this name, and those within it, out of the configuration that init wrote."""
        text = re.sub(rf"(?ms)^\[+{name}[].].*?(?=^\[|\Z)", "", self.config.read_text())
        self.config.write_text(text)

    def set_access(self, rules: str) -> None:
        """Replace the access rules that init wrote."""
        self.drop_tables("access")
        with self.config.open("a") as config:
            config.write(rules)

    def command(self, port: int | None = None) -> list[str]:
        """How it is served."""
        listen = f"127.0.0.1:{port or self.port}"
        return [tokenissuer_command(), "serve", "--config", str(self.config), "--listen", listen, "--threads", "4"]

    def start(self) -> Server:
        """Serve until the test, or the session, ends."""
        self.server = Server("issuer", self.command(), self.folder / "serve.log")
        self.stack.callback(self.server.stop)
        self.server.wait_for(answers(f"http://127.0.0.1:{self.port}/healthz", 200))
        return self.server

    def ask(self, *scopes: str, user: str | None = None, password: str | None = None) -> Answer:
        """Ask the token endpoint, as the user or anonymously."""
        query = urlencode([("service", SERVICE), *(("scope", scope) for scope in scopes)])
        headers = {}
        if user:
            headers["Authorization"] = basic(user, self.passwords[user] if password is None else password)
        return request("GET", f"{self.realm}?{query}", headers)

    def token(self, *scopes: str, user: str | None = None) -> str:
        """An access token for the scopes."""
        answer = self.ask(*scopes, user=user)
        assert answer.status == 200, answer
        return str(answer.json()["token"])


def realm(port: int) -> str:
    """The issuer's URL; by name, because crane >= 0.21.4 refuses a loopback address literal in a realm."""
    return f"http://localhost:{port}/token"


@dataclass
class Site:
    """A registry and the issuer it trusts."""

    issuer: Issuer
    registry: str

    def repository(self, namespace: str = "team") -> str:
        """The name of a repository no other test uses."""
        return f"{namespace}/{uuid.uuid4().hex[:12]}"

    def reference(self, repository: str, tag: str = "v1") -> str:
        """How clients name an image of the repository."""
        return f"{self.registry}/{repository}:{tag}"

    def request(self, method: str, path: str, token: str) -> Answer:
        """Ask the registry with an access token."""
        return request(method, f"http://{self.registry}{path}", {"Authorization": f"Bearer {token}"})


class Sites:
    """Makes issuers and registries, and stops them in the end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.issuers: dict[str, Issuer] = {}

    def new_issuer(self, name: str, key_type: str = "ec") -> Issuer:
        """What `tokenissuer init` makes, not yet serving."""
        port = free_port()
        folder = self.folder / name
        printed = tokenissuer(
            *("init", str(folder), "--realm", realm(port), "--service", SERVICE, "--issuer", ISSUER),
            *("--key-type", key_type, "--account", "alice"),
            seconds=120,
        ).succeeded()
        password = printed_password(printed)
        return Issuer(folder, port, "alice", password, self.stack, {"alice": password})

    def shared_issuer(self, key_type: str, key_form: str = "x5c", keeps: str = "identitytoken") -> Issuer:
        """The serving issuer of this kind, made once: a 4096 bit key takes seconds."""
        name = f"issuer-{key_type}-{key_form}-{keeps}"
        if name not in self.issuers:
            issuer = self.new_issuer(name, key_type)
            issuer.set_access(ACCESS)
            if keeps == "password":
                issuer.drop_tables("refresh")
            if key_form == "thumbprint":
                with issuer.config.open("a") as config:
                    config.write(f'\n[signing.key_forms]\n{SERVICE} = "thumbprint"\n')
            for user in ("alice", "bob", "carol"):
                issuer.passwords[user] = f"{user}'s own sécret: {uuid.uuid4().hex[:8]}"
            # Little work per password: the many logins of these tests would take most of their time.
            hashes = {
                user: bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
                for user, password in issuer.passwords.items()
            }
            users = issuer.folder / "users.htpasswd"
            users.write_text("".join(f"{user}:{hashed}\n" for user, hashed in hashes.items()))
            issuer.start()
            self.issuers[name] = issuer
        return self.issuers[name]

    def registry(self, issuer: Issuer, generation: int, trust: str = "rootcertbundle") -> Site:
        """A registry run with the registry.yml that init wrote; only addresses come from the environment."""
        command = registry_program(generation)
        folder = self.folder / f"registry-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        text = (issuer.folder / "registry.yml").read_text()
        if trust == "jwks":
            text, count = re.subn(
                r"(?m)^(\s*)rootcertbundle:.*$", rf"\1jwks: {issuer.folder / 'jwks.json'}", text, count=1
            )
            assert count == 1, text
        (folder / "registry.yml").write_text(text)
        address = f"127.0.0.1:{free_port()}"
        server = Server(
            f"registry{generation}",
            [command, "serve", str(folder / "registry.yml")],
            folder / "registry.log",
            {
                "REGISTRY_HTTP_ADDR": address,
                "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(folder / "data"),
                # Distribution 3 would look for a trace collector.
                "OTEL_TRACES_EXPORTER": "none",
            },
        )
        self.stack.callback(server.stop)
        server.wait_for(answers(f"http://{address}/v2/", 401))
        return Site(issuer, address)


class Host:
    """This machine: its programs and ports."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack

    def run(self, *command: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Ran:
        """Run a command to its end."""
        return run(*command, stdin=stdin, env=env)

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Server:
        """Start a server that is stopped when the test ends."""
        server = Server(name, list(command), self.folder / f"{name}-{uuid.uuid4().hex[:8]}.log", env)
        self.stack.callback(server.stop)
        return server

    def tokenissuer(self) -> str:
        """The installed command."""
        return tokenissuer_command()

    def program(self, name: str, reason: str) -> str:
        """A program the test needs; without it the test is skipped."""
        return program(name, reason)

    def path_with_registry(self, generation: int | None) -> str:
        """A PATH on which this registry, or none, is the only program."""
        folder = self.folder / f"bin-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        if generation is not None:
            command = registry_program(generation)
            (folder / Path(command).name).symlink_to(command)
        return str(folder)

    def free_port(self) -> int:
        """A port nobody listens on."""
        return free_port()

    def is_free(self, port: int) -> bool:
        """Whether a server could listen on the port now."""
        return is_free(port)

    def taken_port(self) -> int:
        """A port somebody listens on until the test ends."""
        listener = self.stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        return port

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Poll until the condition holds or time is over."""
        return wait_until(condition)

    def get(self, url: str) -> Answer:
        """One plain HTTP request."""
        return request("GET", url)


ACCESS = """
[[access]]
accounts = ["alice"]
repositories = ["team/**", "public/**"]
actions = ["pull", "push", "delete"]

[[access]]
accounts = ["bob"]
repositories = ["team/**"]
actions = ["pull"]

[[access]]
authenticated = true
repositories = ["{account}/**"]
actions = ["pull", "push", "delete"]

[[access]]
everyone = true
repositories = ["public/**"]
actions = ["pull"]

[[access]]
accounts = ["alice"]
catalog = true
"""


def printed_password(text: str) -> str:
    """The first account's password in what `init` prints."""
    found = re.search(r"password\W+(\S+)", text)
    assert found, text
    return found[1]


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """The maker of issuers and registries that live as long as the session."""
    with ExitStack() as stack:
        yield Sites(tmp_path_factory.mktemp("sites"), stack)


@pytest.fixture
def own_sites(tmp_path: Path) -> Iterator[Sites]:
    """The maker of issuers and registries for one test alone."""
    with ExitStack() as stack:
        yield Sites(tmp_path, stack)


# The two stand for all in the many tests of behaviour; EVERY_SITE covers each combination once.
# What docker keeps after a login, and all clients then use, is the password or an identity (refresh) token.
SITES = {"registry2-rsa-password": (2, "rsa", "password"), "registry3-ec-identitytoken": (3, "ec", "identitytoken")}
EVERY_SITE = {
    "registry2-rsa": (2, "rsa", "rootcertbundle"),
    "registry2-ec": (2, "ec", "rootcertbundle"),
    "registry3-rsa": (3, "rsa", "rootcertbundle"),
    "registry3-ec": (3, "ec", "rootcertbundle"),
    "registry3-rsa-jwks": (3, "rsa", "jwks"),
    "registry3-ec-jwks": (3, "ec", "jwks"),
}


@pytest.fixture(scope="session", params=list(SITES.values()), ids=list(SITES))
def site(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """A registry of each generation, trusting an issuer with accounts alice, bob and carol."""
    generation, key_type, keeps = request.param
    registry_program(generation)
    return sites.registry(sites.shared_issuer(key_type, keeps=keeps), generation)


@pytest.fixture(scope="session", params=list(EVERY_SITE.values()), ids=list(EVERY_SITE))
def every_site(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """Each generation with each kind of key and each way to trust it."""
    generation, key_type, trust = request.param
    registry_program(generation)
    issuer = sites.shared_issuer(key_type, "thumbprint" if trust == "jwks" else "x5c")
    return sites.registry(issuer, generation, trust)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """This machine, for tests that run programs themselves."""
    with ExitStack() as stack:
        yield Host(tmp_path, stack)


@pytest.fixture
def new_client(tmp_path: Path) -> Callable[[], Client]:
    """Makes machines nobody has logged in on."""

    def make() -> Client:
        return Client(tmp_path / f"home-{uuid.uuid4().hex[:8]}")

    return make


@pytest.fixture
def logged_in(site: Site, new_client: Callable[[], Client]) -> Callable[[str], Client]:
    """The machine of each user, on which `docker login` has been done."""

    @cache
    def make(user: str) -> Client:
        client = new_client()
        client.login(site.registry, user, site.issuer.passwords[user]).succeeded()
        return client

    return make


@pytest.fixture
def new_image(tmp_path: Path) -> Callable[[], Image]:
    """Makes images that share no blob with any other."""

    def make() -> Image:
        name = uuid.uuid4().hex
        return make_image(tmp_path / f"image-{name}", name)

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note where each server's output stands when a test begins."""
    item.stash[LOGGED] = {server.log: server.log.stat().st_size for server in Server.running}
    return (yield)


LOGGED = pytest.StashKey[dict[Path, int]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what every server wrote during the test."""
    report = yield
    if report.failed:
        for server in Server.running:
            written = server.output(item.stash.get(LOGGED, {}).get(server.log, 0))
            if written:
                report.sections.append((f"output of {server.name} ({server.log})", written[-8000:]))
    return report
