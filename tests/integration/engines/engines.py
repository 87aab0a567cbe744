"""Engines of the tests' own: containerd, a Docker engine and BuildKit, each with its own data folder and socket."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from tests.integration.conftest import PATH, Ran, Server, run
from tests.support.machine import wait_until

#: Engines call runc and others that are not on everybody's PATH.
SBIN = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin", PATH])
BUILT = Path(__file__).parents[3] / ".cache" / "bin"
START = 40
#: The first docker command line that speaks with an engine of today.
OLDEST = 25


def find(name: str) -> str | None:
    """The program of this name, also where only root looks."""
    return shutil.which(name, path=SBIN)


def engine_program(name: str, reason: str) -> str:
    """The program, or the end of the test with the reason why it cannot be had."""
    found = find(name)
    if found is None:
        pytest.skip(f"no {name} program: {reason}")
    if not may_mount():
        pytest.skip(f"{name} mounts and changes owners, which this user may not (root in a container may not either)")
    return found


@cache
def may_mount() -> bool:
    """Whether this process is root with the right to mount (CAP_SYS_ADMIN)."""
    effective = re.search(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
    return os.geteuid() == 0 and effective is not None and bool(int(effective[1], 16) >> 21 & 1)


@cache
def companion(engine: str, client: str) -> str:
    """The command line that came with an engine: another one on PATH may be too new or too old for it."""
    folder = Path(engine).resolve().parent
    for path in (folder / client, folder.parent / "bin" / client):
        if path.is_file():
            return str(path)
    found = find(client)
    if found is None:
        pytest.skip(f"{engine} is here, but no {client} program")
    return found


def start(stack: ExitStack, name: str, command: list[str], folder: Path, ready: Callable[[], bool]) -> None:
    """Start an engine that ends with the stack; where it cannot run, the test is skipped and says why."""
    server = Server(name, command, folder / f"{name}.log", {"PATH": SBIN, "HOME": str(folder), "TMPDIR": str(folder)})
    stack.callback(server.stop)
    in_time = wait_until(lambda: server.process.poll() is not None or ready(), START)
    code = server.process.poll()
    if not in_time or code is not None:
        state = f"was not ready within {START} seconds" if code is None else f"ended with {code}"
        server.stop(signal.SIGKILL)
        lines = server.output().strip().splitlines()[-3:]
        pytest.skip(f"{name} cannot run here: it {state}: {' / '.join(line[-300:] for line in lines)}")


def module_version(command: str, module: str) -> str:
    """The version of a program that was built from its module and says of itself no more than that."""
    found = re.search(rf"(?:mod|dep)\t{re.escape(module)}\tv([0-9a-z.-]+)".encode(), Path(command).read_bytes())
    return found[1].decode() if found else run(command, "--version").stdout


class Containerd:
    """A containerd."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        command = engine_program("containerd", "install Debian's containerd")
        self.client = companion(command, "ctr")
        self.address = str(folder / "containerd.sock")
        self.version = run(command, "--version").stdout
        config = folder / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{folder}/containerd"\nstate = "{folder}/containerd-state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.address}"\n'
        )
        start(stack, "containerd", [command, "--config", str(config)], folder, self._answers)

    def _answers(self) -> bool:
        return run(self.client, "--address", self.address, "version", seconds=START).code == 0


class Dockerd:
    """A Docker engine on the containerd; its containers have this machine's network."""

    name = "dockerd"
    store = "vfs"

    def __init__(self, containerd: Containerd, folder: Path, stack: ExitStack) -> None:
        command, self.client, self.version = self.programs()
        self.host = f"unix://{folder}/{self.name}.sock"
        config = folder / f"{self.name}.json"
        config.write_text("{}")
        options = [
            *("--config-file", str(config), "--host", self.host, "--containerd", containerd.address),
            *("--data-root", f"{folder}/{self.name}", "--exec-root", f"{folder}/{self.name}-exec"),
            *("--pidfile", f"{folder}/{self.name}.pid", f"--storage-driver={self.store}"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
        ]
        start(stack, self.name, [command, *options], folder, self._answers)

    def programs(self) -> tuple[str, str, str]:
        """Engine, command line, and the engine's version."""
        command = engine_program("dockerd", "install Debian's docker.io")
        return command, companion(command, "docker"), run(command, "--version").stdout

    def _ask(self, *arguments: str) -> Ran:
        return run(self.client, "--host", self.host, *arguments, seconds=START)

    def _answers(self) -> bool:
        return self._ask("version").code == 0


class Moby(Dockerd):
    """A Docker engine of today, which leaves images to containerd.

    Debian's runc is too old to run its containers, so it only pushes, pulls and copies into images.
    """

    name = "moby"
    store = "native"

    def programs(self) -> tuple[str, str, str]:
        engine_program("dockerd", "install Debian's docker.io")
        command = BUILT / "dockerd"
        if not command.is_file():
            pytest.skip(f"no {command}: tests/run builds it where Go is at hand")
        client = find("docker")
        said = run(client, "--version").stdout if client else ""
        found = re.search(r"version (\d+)", said)
        if client is None or found is None or int(found[1]) < OLDEST:
            pytest.skip(f"this engine wants a docker command line from {OLDEST} on, and {client} is: {said.strip()}")
        return str(command), client, module_version(str(command), "github.com/moby/moby/v2")


class Buildkitd:
    """A BuildKit daemon."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        command = engine_program("buildkitd", "tests/run builds it where Go is at hand")
        engine_program("runc", "install Debian's runc; BuildKit does not start without it")
        self.client = companion(command, "buildctl")
        self.address = f"unix://{folder}/buildkit.sock"
        self.version = module_version(command, "github.com/moby/buildkit")
        config = folder / "buildkitd.toml"
        config.write_text("")
        options = [
            *("--config", str(config), "--addr", self.address, "--root", f"{folder}/buildkit"),
            *("--oci-worker=true", "--containerd-worker=false"),
            *("--oci-worker-snapshotter=native", "--oci-worker-net=host"),
        ]
        start(stack, "buildkitd", [command, *options], folder, self._answers)

    def _answers(self) -> bool:
        return run(self.client, "--addr", self.address, "debug", "workers", seconds=START).code == 0


class Engines:
    """Starts each engine when it is first asked for, and remembers why one cannot run."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.containerd = cache(lambda: Containerd(folder, stack))
        self.dockerd = cache(lambda: Dockerd(self.containerd(), folder, stack))
        self.moby = cache(lambda: Moby(self.containerd(), folder, stack))
        self.buildkitd = cache(lambda: Buildkitd(folder, stack))


@contextmanager
def engines() -> Iterator[Engines]:
    """Engines that end, and whose data, mounts and left-over processes are gone, with the block."""
    # Short: the path of a Unix socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="engines-"))
    try:
        with ExitStack() as stack:
            yield Engines(folder, stack)
    finally:
        end_processes_of(folder)
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_processes_of(folder: Path) -> None:
    """End what an engine has left: a shim of a container outlives its engine on purpose."""
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and str(folder).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def unmount_below(folder: Path) -> None:
    """Unmount what an engine has left mounted, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for place in sorted((line.split()[4] for line in lines), key=len, reverse=True):
        if Path(place).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", place], check=False, timeout=10, capture_output=True)
