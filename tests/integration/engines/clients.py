"""Every client in one shape: how each of them logs in, pushes, pulls, and the rest."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tests.integration.conftest import Client, Ran, program, run
from tests.integration.engines.engines import Buildkitd, Containerd, Dockerd, engine_program, module_version

if TYPE_CHECKING:
    from tests.integration.conftest import Image

BUILT = "tests/run builds it where Go is installed"


class Machine(Client):
    """One person's machine, and what is kept on it about one registry."""

    user = ""
    password = ""
    session = ""

    def keep_password(self, registry: str, user: str, password: str) -> None:
        """What a login leaves behind that was given no refresh token."""
        self.user, self.password = user, password
        self._write(registry, {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()})

    def keep_session(self, registry: str, user: str, token: str) -> None:
        """What `docker login` leaves behind that was given a refresh token."""
        self.user, self.session = user, token
        self._write(registry, {"auth": base64.b64encode(f"{user}:".encode()).decode(), "identitytoken": token})

    def _write(self, registry: str, login: dict[str, str]) -> None:
        (self.docker_config / "config.json").write_text(json.dumps({"auths": {registry: login}}))


class Tool(ABC):
    """A client. What it lacks it does not define: no operation of that name, no cell in the table."""

    name: ClassVar[str]
    #: How it is called in the text of the table.
    package: ClassVar[str] = ""
    catalog: Callable[[Machine, str], Ran] | None = None
    login: Callable[[Machine, str, str, str], Ran] | None = None
    mount: Callable[[Machine, str, str], Ran] | None = None
    delete: Callable[[Machine, str], Ran] | None = None
    build: Callable[[Machine, str, str], Ran] | None = None

    @abstractmethod
    def version(self) -> str:
        """The version of the program."""

    @abstractmethod
    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        """Bring an image, or what the client has instead, into the registry."""

    @abstractmethod
    def pull(self, machine: Machine, reference: str) -> Ran:
        """Fetch it from the registry, whatever may be here already."""


def number(text: str) -> str:
    """The version number in what a program says of itself."""
    found = re.search(r"\d+\.\d+(?:\.\d+)?(?:-[a-z]+[.]\d+)?", text)
    assert found, text
    return found[0]


def last_of(*ran: Ran) -> Ran:
    """Steps of which all but the last are made on this machine and must succeed."""
    for step in ran[:-1]:
        step.succeeded()
    return ran[-1]


def folder_of(machine: Machine) -> Path:
    """A new folder on the machine."""
    number = sum(1 for _ in machine.home.iterdir())
    folder = machine.home / f"work-{number}"
    folder.mkdir()
    return folder


def context(machine: Machine, base: str, text: str = "built") -> Path:
    """A folder from which an image on this base can be built."""
    folder = folder_of(machine)
    (folder / "Dockerfile").write_text(f"FROM {base}\nCOPY note /note\n")
    (folder / "note").write_text(text)
    return folder


class Docker(Tool):
    """The docker command line and an engine."""

    name = "docker"
    builder = "0"

    def __init__(self, engine: Dockerd) -> None:
        self.engine = engine

    def docker(self, machine: Machine, *arguments: str, stdin: str = "\n\n") -> Ran:
        """The command line that came with the engine; where it asks for name and password, it gets empty lines."""
        env = {**machine.env, "DOCKER_HOST": self.engine.host, "DOCKER_BUILDKIT": self.builder}
        return run(self.engine.client, *arguments, stdin=stdin, env=env, seconds=90)

    def version(self) -> str:
        return number(self.engine.version)

    def login(self, machine: Machine, registry: str, user: str, password: str) -> Ran:
        return self.docker(machine, "login", registry, "-u", user, "--password-stdin", stdin=password)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        archive = machine.home / "root.tar"
        with tarfile.open(archive, "w") as tar:
            entry = tarfile.TarInfo("greeting")
            entry.size = len(image.digest)
            tar.addfile(entry, io.BytesIO(image.digest.encode()))
        return last_of(self.docker(machine, "import", str(archive), reference), self._push(machine, reference))

    def _push(self, machine: Machine, reference: str) -> Ran:
        pushed = self.docker(machine, "push", reference)
        # What is still here would not be pulled.
        self.docker(machine, "rmi", reference)
        return pushed

    def pull(self, machine: Machine, reference: str) -> Ran:
        self.docker(machine, "rmi", reference)
        return self.docker(machine, "pull", reference)

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return last_of(
            self.docker(machine, "pull", source),
            self.docker(machine, "tag", source, target),
            self._push(machine, target),
        )

    def build(self, machine: Machine, base: str, target: str) -> Ran:
        self.docker(machine, "rmi", base)
        return self.docker(machine, "build", "--network=host", "--pull", "-t", target, str(context(machine, base)))


class Ctr(Tool):
    """containerd with its own command line, which keeps no logins."""

    name = "containerd (ctr)"

    def __init__(self, engine: Containerd) -> None:
        self.engine = engine

    def ctr(self, *arguments: str) -> Ran:
        """The command line."""
        return run(self.engine.client, "--address", self.engine.address, "--namespace", "tests", *arguments)

    def _remote(self, machine: Machine, *arguments: str) -> Ran:
        login = [f"--user={machine.user}:{machine.password}"] if machine.user else []
        if machine.session:
            login = [f"--refresh={machine.session}"]
        return self.ctr("images", arguments[0], "--plain-http", *login, *arguments[1:])

    def version(self) -> str:
        return number(self.engine.version)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        archive = machine.home / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(image.folder, ".")
        name = reference.rpartition(":")[0]
        self.ctr("images", "import", "--snapshotter=native", f"--base-name={name}", str(archive)).succeeded()
        return self._push(machine, reference)

    def _push(self, machine: Machine, reference: str) -> Ran:
        pushed = self._remote(machine, "push", reference)
        self.ctr("images", "rm", "--sync", reference)
        return pushed

    def pull(self, machine: Machine, reference: str) -> Ran:
        self.ctr("images", "rm", "--sync", reference)
        return self._remote(machine, "pull", "--snapshotter=native", reference)

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return last_of(
            self.pull(machine, source), self.ctr("images", "tag", source, target), self._push(machine, target)
        )


class Libpod(Tool):
    """What podman and buildah have in common."""

    command: ClassVar[str]
    pull_options: tuple[str, ...] = ()

    def run(self, machine: Machine, *arguments: str, stdin: str = "") -> Ran:
        """The program with a storage of its own on the machine."""
        found = engine_program(self.command, f"install Debian's {self.command}")
        # They read docker's logins by themselves, but where the variable names a file it must be there.
        env = {key: value for key, value in machine.env.items() if key != "DOCKER_CONFIG"}
        storage = [f"--root={machine.home}/storage", f"--runroot={machine.home}/run", "--storage-driver=vfs"]
        return run(found, *storage, *self.options(machine), *arguments, stdin=stdin, env=env, seconds=90)

    def options(self, machine: Machine) -> list[str]:
        """More options that go with every command."""
        return []

    def version(self) -> str:
        return number(run(engine_program(self.command, f"install Debian's {self.command}"), "--version").stdout)

    def login(self, machine: Machine, registry: str, user: str, password: str) -> Ran:
        secret = ("--username", user, "--password-stdin")
        return self.run(machine, "login", "--tls-verify=false", *secret, registry, stdin=password)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        fetched = self.run(machine, "pull", "--quiet", f"oci:{image.folder}:v1").succeeded().strip()
        return self._push(machine, fetched, reference)

    def _push(self, machine: Machine, image: str, reference: str) -> Ran:
        return self.run(machine, "push", "--tls-verify=false", image, f"docker://{reference}")

    def pull(self, machine: Machine, reference: str) -> Ran:
        return self.run(machine, "pull", "--tls-verify=false", reference)

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return last_of(self.pull(machine, source), self._push(machine, source, target))

    def build(self, machine: Machine, base: str, target: str) -> Ran:
        folder = context(machine, base)
        options = ("--tls-verify=false", "--isolation=chroot", "--pull-always", "-t", target)
        return self.run(machine, "build", *options, str(folder))


class Podman(Libpod):
    """Podman, whose storage needs no service."""

    name = "podman"
    command = "podman"

    def options(self, machine: Machine) -> list[str]:
        return [f"--tmpdir={machine.home}/tmp", "--events-backend=none", "--cgroup-manager=cgroupfs"]

    def catalog(self, machine: Machine, registry: str) -> Ran:
        return self.run(machine, "search", "--tls-verify=false", "--limit=1000", f"{registry}/")


class Buildah(Libpod):
    """Buildah."""

    name = "buildah"
    command = "buildah"


class Skopeo(Tool):
    """Skopeo."""

    name = "skopeo"

    def version(self) -> str:
        return number(run(program("skopeo", "install skopeo"), "--version").stdout)

    def login(self, machine: Machine, registry: str, user: str, password: str) -> Ran:
        secret = ("--username", user, "--password", password)
        return machine.skopeo("login", "--tls-verify=false", *secret, registry)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        return machine.push(image, reference)

    def pull(self, machine: Machine, reference: str) -> Ran:
        return machine.pull(reference, folder_of(machine))

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        both = ("--src-tls-verify=false", "--dest-tls-verify=false")
        return machine.skopeo("copy", *both, f"docker://{source}", f"docker://{target}")

    def delete(self, machine: Machine, reference: str) -> Ran:
        return machine.skopeo("delete", "--tls-verify=false", f"docker://{reference}")


class Crane(Tool):
    """Crane (go-containerregistry), whose login only writes a file."""

    name = "crane"

    def version(self) -> str:
        return number(run(program("crane", BUILT), "version").stdout)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        return machine.crane("push", str(image.folder), reference)

    def pull(self, machine: Machine, reference: str) -> Ran:
        return machine.crane("pull", "--format=oci", reference, str(folder_of(machine)))

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return machine.crane("copy", source, target)

    def delete(self, machine: Machine, reference: str) -> Ran:
        name, _, _ = reference.rpartition(":")
        return machine.crane("delete", f"{name}@{machine.crane('digest', reference).succeeded().strip()}")

    def catalog(self, machine: Machine, registry: str) -> Ran:
        return machine.crane("catalog", registry)


class Oras(Tool):
    """The oras command line."""

    name = "oras"

    def oras(self, machine: Machine, *arguments: str, stdin: str = "") -> Ran:
        """The program."""
        return run(program("oras", BUILT), *arguments, stdin=stdin, env=machine.env)

    def version(self) -> str:
        return number(run(program("oras", BUILT), "version").stdout)

    def login(self, machine: Machine, registry: str, user: str, password: str) -> Ran:
        return self.oras(
            machine, "login", "--plain-http", "--username", user, "--password-stdin", registry, stdin=password
        )

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        return self.oras(
            machine, "cp", "--no-tty", "--from-oci-layout", "--to-plain-http", f"{image.folder}:v1", reference
        )

    def pull(self, machine: Machine, reference: str) -> Ran:
        target = f"{folder_of(machine)}:v1"
        return self.oras(machine, "cp", "--no-tty", "--from-plain-http", "--to-oci-layout", reference, target)

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return self.oras(machine, "cp", "--no-tty", "--from-plain-http", "--to-plain-http", source, target)

    def delete(self, machine: Machine, reference: str) -> Ran:
        return self.oras(machine, "manifest", "delete", "--plain-http", "--force", reference)

    def catalog(self, machine: Machine, registry: str) -> Ran:
        return self.oras(machine, "repo", "ls", "--plain-http", registry)


class Regctl(Tool):
    """The regctl command line of regclient."""

    name = "regctl"

    def regctl(self, machine: Machine, registry: str, *arguments: str, stdin: str = "") -> Ran:
        """The program, told that the registry speaks plain HTTP."""
        found = program("regctl", BUILT)
        env = {**machine.env, "REGCTL_CONFIG": str(machine.home / "regctl.json")}
        return run(found, "--host", f"reg={registry},tls=disabled", *arguments, stdin=stdin, env=env)

    def version(self) -> str:
        said = run(program("regctl", BUILT), "version", "--format", "{{.VCSTag}}").stdout
        return number(said)

    def login(self, machine: Machine, registry: str, user: str, password: str) -> Ran:
        self.regctl(machine, registry, "registry", "set", "--tls=disabled", "--skip-check", registry).succeeded()
        return self.regctl(
            machine, registry, "registry", "login", "--user", user, "--pass-stdin", registry, stdin=password
        )

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        return self._copy(machine, f"ocidir://{image.folder}:v1", reference)

    def pull(self, machine: Machine, reference: str) -> Ran:
        return self._copy(machine, reference, f"ocidir://{folder_of(machine)}:v1")

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return self._copy(machine, source, target)

    def _copy(self, machine: Machine, source: str, target: str) -> Ran:
        registry = (target if source.startswith("ocidir") else source).partition("/")[0]
        return self.regctl(machine, registry, "image", "copy", source, target)

    def delete(self, machine: Machine, reference: str) -> Ran:
        registry = reference.partition("/")[0]
        return self.regctl(machine, registry, "manifest", "delete", "--force-tag-dereference", reference)

    def catalog(self, machine: Machine, registry: str) -> Ran:
        return self.regctl(machine, registry, "repo", "ls", "--limit=1000", registry)


class Helm(Tool):
    """Helm, which keeps charts in a registry."""

    name = "helm"

    def helm(self, machine: Machine, *arguments: str, stdin: str = "") -> Ran:
        """The program."""
        return run(program("helm", BUILT), *arguments, stdin=stdin, env=machine.env)

    def version(self) -> str:
        return number(module_version(program("helm", BUILT), "helm.sh/helm/v3"))

    def login(self, machine: Machine, registry: str, user: str, password: str) -> Ran:
        secret = ("--username", user, "--password-stdin")
        return self.helm(machine, "registry", "login", "--plain-http", *secret, registry, stdin=password)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        where, _, name = reference.rpartition(":")[0].rpartition("/")
        chart = folder_of(machine) / name
        chart.mkdir()
        (chart / "Chart.yaml").write_text(f"apiVersion: v2\nname: '{name}'\nversion: 1.0.0\n")
        packed = self.helm(machine, "package", str(chart), "--destination", str(chart.parent))
        archive = str(chart.parent / f"{name}-1.0.0.tgz")
        return last_of(packed, self.helm(machine, "push", archive, f"oci://{where}", "--plain-http"))

    def pull(self, machine: Machine, reference: str) -> Ran:
        name = reference.rpartition(":")[0]
        target = str(folder_of(machine))
        return self.helm(machine, "pull", f"oci://{name}", "--version=1.0.0", "--plain-http", "--destination", target)


class Buildctl(Tool):
    """BuildKit's own command line and daemon."""

    name = "BuildKit (buildctl)"

    def __init__(self, engine: Buildkitd) -> None:
        self.engine = engine

    def buildctl(self, machine: Machine, folder: Path, *arguments: str) -> Ran:
        """Build the folder's Dockerfile."""
        local = [f"--local=context={folder}", f"--local=dockerfile={folder}"]
        command = ("build", "--progress=plain", "--frontend=dockerfile.v0", *local, *arguments)
        return run(self.engine.client, "--addr", self.engine.address, *command, env=machine.env)

    def version(self) -> str:
        return number(self.engine.version)

    def push(self, machine: Machine, image: Image, reference: str) -> Ran:
        folder = context(machine, "scratch", image.digest)
        return self.buildctl(machine, folder, f"--output=type=image,name={reference},push=true")

    def pull(self, machine: Machine, reference: str, *options: str) -> Ran:
        folder = context(machine, reference)
        return self.buildctl(machine, folder, *options, f"--output=type=oci,dest={folder}/pulled.tar")

    def mount(self, machine: Machine, source: str, target: str) -> Ran:
        return self.build(machine, source, target)

    def build(self, machine: Machine, base: str, target: str, *options: str) -> Ran:
        folder = context(machine, base)
        return self.buildctl(machine, folder, *options, f"--output=type=image,name={target},push=true")
