"""The container image and the set-up of conf/compose.yaml, built and started by an engine in a network of its own."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import shutil
import ssl
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Ran, printed_password, registry_program, run
from tests.integration.engines.engines import (
    SBIN,
    companion,
    end_processes_of,
    engine_program,
    find,
    start,
    unmount_below,
)
from tests.integration.release import standins
from tests.integration.release.conftest import ROOT
from tests.support.http import basic
from tests.support.machine import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

NAME = "registry.example.com"
MEGABYTE = 1_000_000


class Network:
    """A network of its own, with one cable to this machine's, which has two addresses in it."""

    def __init__(self, stack: ExitStack) -> None:
        for program, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("iptables", "iptables")):
            engine_program(program, f"install Debian's {package}")
        name = f"rel{uuid.uuid4().hex[:8]}"
        # From the range for tests of networks: nobody's.
        self.prefix = f"198.18.{SystemRandom().randrange(256)}"
        self.server, self.clients = f"{self.prefix}.1", (f"{self.prefix}.2", f"{self.prefix}.3")
        self.enter = ["nsenter", f"--net=/run/netns/{name}"]
        for command in (
            f"ip netns add {name}",
            f"ip link add {name} type veth peer name cable netns {name}",
            *(f"ip address add {client}/24 dev {name}" for client in self.clients),
            f"ip link set {name} up",
            f"ip -netns {name} address add {self.server}/24 dev cable",
            f"ip -netns {name} link set cable up",
            f"ip -netns {name} link set lo up",
        ):
            made = run(*shlex.split(command), env={"PATH": SBIN})
            if "netns add" in command:
                stack.callback(run, "ip", "netns", "delete", name, env={"PATH": SBIN})
            if made.code:
                pytest.skip(f"no network can be made here: {command}: {made.stderr.strip()}")


class Engine:
    """A Docker engine that has the network for its own."""

    def __init__(self, network: Network, folder: Path, stack: ExitStack) -> None:
        self.network = network
        # Debian's, which has all its parts with it, such as the proxy for ports.
        engine_program("dockerd", "install Debian's docker.io")
        containerd, dockerd = standins.which("containerd"), standins.which("dockerd")
        if containerd is None or dockerd is None:
            pytest.skip("install Debian's docker.io and containerd")
        self.client = companion(dockerd, "docker")
        self.host = f"unix://{folder}/docker.sock"
        socket = f"{folder}/containerd.sock"
        (folder / "containerd.toml").write_text(
            f'version = 2\nroot = "{folder}/containerd"\nstate = "{folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{socket}"\n'
        )
        (folder / "daemon.json").write_text("{}")
        ctr = companion(containerd, "ctr")
        command = [*network.enter, containerd, "--config", f"{folder}/containerd.toml"]
        start(stack, "containerd", command, folder, lambda: run(ctr, "--address", socket, "version").code == 0)
        command = [*network.enter, dockerd, "--config-file", f"{folder}/daemon.json", "--host", self.host]
        command += ["--containerd", socket, "--data-root", f"{folder}/docker", "--exec-root", f"{folder}/exec"]
        command += ["--pidfile", f"{folder}/docker.pid", "--bridge=none"]
        start(stack, "dockerd", command, folder, lambda: self.docker("version").code == 0)

    def docker(self, *arguments: str, seconds: float = 120) -> Ran:
        """The command line that came with the engine."""
        # The builder that every engine has: BuildKit would first have to be fetched.
        return run(self.client, *arguments, seconds=seconds, env={"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"})

    def inspect(self, what: str) -> dict[str, Any]:
        """What the engine knows of an image or a container."""
        (found,) = json.loads(self.docker("inspect", what).succeeded())
        known: dict[str, Any] = found
        return known

    def load(self, content: bytes, name: str, *changes: str) -> None:
        """Make an image of an archive of files."""
        options = [word for change in changes for word in ("--change", change)]
        loaded = subprocess.run(
            [self.client, "--host", self.host, "import", *options, "-", name],
            input=content,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert loaded.returncode == 0, loaded.stderr.decode()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The engine."""
    # Short: the path of a Unix socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    try:
        with ExitStack() as stack:
            made = Engine(Network(stack), folder, stack)
            yield made
            containers = made.docker("ps", "--all", "--quiet").stdout.split()
            if containers:
                made.docker("rm", "--force", *containers)
    finally:
        end_processes_of(folder)
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(engine: Engine, wheelhouse: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built as the manual says, of what a checkout has, without a network."""
    (base,) = set(re.findall(r"(?m)^FROM (\S+)", (ROOT / "conf" / "Containerfile").read_text()))
    python = standins.interpreter()
    engine.load(
        standins.python(python, wheelhouse(python)), base, 'CMD ["python3"]', "ENV PATH=/usr/local/bin:/usr/bin:/bin"
    )
    context = tmp_path_factory.mktemp("context")
    for name in ("conf", "tokenissuer", "backends", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    file = str(context / "conf" / "Containerfile")
    options = ["--network", "none", "--force-rm", "--quiet"]
    engine.docker("build", *options, "-t", "tokenissuer", "-f", file, str(context), seconds=300).succeeded()
    return "tokenissuer"


@pytest.fixture
def folder(engine: Engine, image: str, tmp_path: Path) -> Path:
    """A set-up that the image itself has made, owned by the user it runs as."""
    made = tmp_path / "tokenissuer"
    made.mkdir()
    shutil.chown(made, 65532, 65532)
    mount = f"{made}:/etc/tokenissuer"
    words = ("init", "/etc/tokenissuer", "--for", "container")
    engine.docker("run", "--rm", "--network", "none", "-v", mount, image, *words).succeeded()
    return made


def test_the_image_adds_little_and_has_nothing_that_it_does_not_need(engine: Engine, image: str) -> None:
    """Less than 60 MB, no pip, no caches of pip, and it runs as nobody."""
    (base,) = set(re.findall(r"(?m)^FROM (\S+)", (ROOT / "conf" / "Containerfile").read_text()))
    added = (engine.inspect(image)["Size"] - engine.inspect(base)["Size"]) / MEGABYTE
    print(f"the image adds {added:.1f} MB to its base")
    assert added < 60
    config = engine.inspect(image)["Config"]
    assert config["User"] == "65532:65532"
    script = (
        "import importlib.metadata, os, sys\n"
        "print(os.getuid(), os.getgid(), sys.prefix)\n"
        "print(*sorted(d.metadata['Name'].lower() for d in importlib.metadata.distributions()))\n"
        "print(*[p for p, _, files in os.walk(sys.prefix) if os.access(p, os.W_OK)])\n"
    )
    python = ("run", "--rm", "--read-only", "--network", "none", "--entrypoint", "python", image, "-c")
    said = engine.docker(*python, script)
    user, packages, writable = said.succeeded().splitlines()
    assert user == "65532 65532 /opt/tokenissuer"
    assert {"pip", "setuptools", "wheel", "pytest"} & set(packages.split()) == set()
    assert "tokenissuer" in packages.split()
    assert writable == ""
    script = (
        "import os, sys, urllib.request, tokenissuer.cli.serve\n"
        "files = [getattr(module, '__cached__', None) for module in list(sys.modules.values())]\n"
        "print(*[file for file in files if file and not os.path.exists(file)])\n"
    )
    said = engine.docker(*python, script)
    assert said.succeeded().strip() == "", "these modules are compiled at each start"


def test_it_starts_at_once_on_a_read_only_root_and_turns_healthy(engine: Engine, image: str, folder: Path) -> None:
    """Without privileges, with the image's own health check."""
    options = ["--detach", "--network", "host", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    options += [
        "--security-opt",
        "no-new-privileges:true",
        "--health-interval",
        "1s",
        "-v",
        f"{folder}:/etc/tokenissuer",
    ]
    container = engine.docker("run", *options, image).succeeded().strip()
    try:
        serving: list[str] = []

        def is_serving() -> bool:
            said = engine.docker("logs", container)
            serving[:] = [line for line in (said.stdout + said.stderr).splitlines() if '"serving ' in line]
            return bool(serving)

        assert wait_until(is_serving, 40), engine.docker("logs", container)
        started = re.sub(r"(\.\d{6})\d*Z$", r"\1Z", engine.inspect(container)["State"]["StartedAt"])
        began, ready = (datetime.fromisoformat(moment) for moment in (started, json.loads(serving[0])["time"]))
        seconds = (ready - began).total_seconds()
        print(f"it serves {seconds:.2f} s after it was started")
        # Less than a second on a machine that has nothing else to do; this one runs other tests too.
        assert seconds < 10
        assert wait_until(lambda: engine.inspect(container)["State"]["Health"]["Status"] == "healthy", 60)
        began_to_stop = time.monotonic()
        engine.docker("stop", "--time", "45", container).succeeded()
        assert engine.inspect(container)["State"]["ExitCode"] == 0
        assert time.monotonic() - began_to_stop < 30
    finally:
        engine.docker("rm", "--force", container)


@dataclass
class Site:
    """What compose.yaml has started."""

    engine: Engine
    folder: Path
    password: str

    def compose(self, *words: str, seconds: float = 120) -> Ran:
        """Compose in the folder conf/, as the manual has it."""
        plugin = run(self.engine.client, "compose", "version").code == 0
        command = [self.engine.client, "compose"] if plugin else [str(find("docker-compose"))]
        place = ("--project-directory", str(self.folder), "-f", str(self.folder / "compose.yaml"), "-p", "conf")
        return run(*command, *place, *words, seconds=seconds, env={"DOCKER_HOST": self.engine.host})

    def ask(self, source: str, user: str, password: str) -> int:
        """The status of a request for a token, from one of two addresses."""
        trusting = ssl.create_default_context(cafile=str(self.folder / "tls" / f"{NAME}.crt"))
        trusting.check_hostname = False
        connection = http.client.HTTPSConnection(
            self.engine.network.server, timeout=20, source_address=(source, 0), context=trusting
        )
        try:
            query = "/jwt/auth?service=container_registry"
            connection.request("GET", query, headers={"Host": NAME, "Authorization": basic(user, password)})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture
def site(engine: Engine, image: str, tmp_path: Path) -> Iterator[Site]:
    """The set-up, started with the commands of the manual."""
    if find("docker-compose") is None and run(engine.client, "compose", "version").code:
        pytest.skip("no docker-compose program: install Debian's docker-compose")
    registry = registry_program(3)
    nginx = engine_program("nginx", "install Debian's nginx")
    compose = (ROOT / "conf" / "compose.yaml").read_text()
    (registry_name,) = re.findall(r"image: (\S*/registry:\S+)", compose)
    (nginx_name,) = re.findall(r"image: (\S*/nginx:\S+)", compose)
    engine.load(standins.registry(registry), registry_name, 'ENTRYPOINT ["/bin/registry"]')
    engine.load(standins.nginx(nginx), nginx_name, 'CMD ["/usr/sbin/nginx", "-g", "daemon off;"]')
    conf = tmp_path / "conf"
    conf.mkdir()
    for name in ("compose.yaml", "nginx.conf"):
        shutil.copy(ROOT / "conf" / name, conf)
    (conf / "tls").mkdir()
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "2"),
        *("-keyout", str(conf / "tls" / f"{NAME}.key"), "-out", str(conf / "tls" / f"{NAME}.crt")),
    ).succeeded()
    (conf / "tokenissuer").mkdir()
    shutil.chown(conf / "tokenissuer", 65532, 65532)
    made = Site(engine, conf, "")
    made.compose("config", "--quiet").succeeded()
    commands = "".join(re.findall(r"(?m)^#   (.*\n)", compose)).replace("\\\n", " ")
    (words,) = re.findall(r"docker compose (run --rm tokenissuer init .*)", commands)
    try:
        made.password = printed_password(made.compose(*shlex.split(words)).succeeded())
        made.compose("up", "-d").succeeded()
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "5")


@pytest.fixture
def at_home(site: Site, tmp_path: Path) -> Callable[[str], list[str]]:
    """How to run a program on a machine that knows the registry by its name, without a change to this one."""
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{site.engine.network.server} {NAME}\n")

    def wrap(command: str) -> list[str]:
        return ["unshare", "--mount", "sh", "-ec", f"mount --bind {hosts} /etc/hosts; exec {command}"]

    return wrap


def test_the_compose_set_up_serves_a_login_from_outside(
    site: Site,
    at_home: Callable[[str], list[str]],
    new_client: Callable[[], Client],
    new_image: Callable[[], Image],
    tmp_path: Path,
) -> None:
    """Registry, nginx with TLS and issuer, with nothing changed in their files; push, pull and the addresses."""
    client, image = new_client(), new_image()
    env = {**client.env, "SSL_CERT_FILE": str(site.folder / "tls" / f"{NAME}.crt"), "PATH": SBIN}

    def logs() -> str:
        return site.compose("logs", "--no-color").stdout

    def is_up() -> bool:
        try:
            return site.ask(site.engine.network.clients[0], "admin", site.password) == 200
        except OSError:
            return False

    assert wait_until(is_up, 60), logs()
    login = at_home(f"docker login -u admin --password-stdin {NAME}")
    ran = run(*login, stdin=site.password, env=env)
    assert "Login Succeeded" in ran.succeeded(), logs()
    reference = f"docker://{NAME}/admin/app:v1"
    run(*at_home(f"skopeo --insecure-policy copy {image.source} {reference}"), env=env).succeeded()
    pulled = tmp_path / "pulled"
    run(*at_home(f"skopeo --insecure-policy copy {reference} oci:{pulled}:v1"), env=env).succeeded()
    assert image.is_in(pulled)
    # Ten wrong passwords from one address: it has to wait, and the other has not. So nginx is believed.
    near, far = site.engine.network.clients
    assert [site.ask(far, "admin", f"guess {number}") for number in range(11)] == [401] * 10 + [429]
    assert site.ask(near, "admin", site.password) == 200
    requests = [json.loads(line) for line in re.findall(r'(?m)\| (\{.*"method".*\})\s*$', logs())]
    assert {entry["client"] for entry in requests if entry["path"] == "/jwt/auth"} == {near, far}
    # The manual's way to another key.
    page = (ROOT / "docs" / "containers.md").read_text().replace("\\\n", " ")
    rotate = re.findall(r"(?m)^docker compose (.* keys .*|restart registry)$", page)
    assert len(rotate) == 3

    def succeeds(words: str) -> bool:
        return site.compose(*shlex.split(words)).code == 0

    for words in rotate:
        # The registry takes a moment to start again.
        assert wait_until(partial(succeeds, words), 30), words
    assert "Login Succeeded" in run(*login, stdin=site.password, env=env).succeeded()
    # Nothing else of the issuer can be reached, and its containers have no privileges.
    for name in ("tokenissuer", "registry", "nginx"):
        container = site.engine.inspect(site.compose("ps", "-q", name).succeeded().strip())
        assert container["HostConfig"]["ReadonlyRootfs"] is True
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        assert container["State"]["Restarting"] is False
        assert container["RestartCount"] == 0
