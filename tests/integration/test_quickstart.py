"""`tokenissuer quickstart`: from nothing to a working `docker login` with one command."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Server

pytestmark = pytest.mark.integration

NewClient = Callable[[], "Client"]
NewImage = Callable[[], "Image"]

LOGIN = re.compile(r"echo (?P<password>\S+) \| docker login -u (?P<user>\S+) --password-stdin (?P<registry>[\w.:]+)")


@dataclass
class Quickstart:
    """A running quickstart and the ports it was given."""

    server: Server
    issuer_port: int
    registry_port: int

    @property
    def registry(self) -> str:
        """The registry as clients name it."""
        return f"127.0.0.1:{self.registry_port}"


@dataclass
class Starter:
    """Starts `tokenissuer quickstart` in one folder."""

    host: Host
    folder: Path
    path: str
    with_registry: bool = True
    address: str = "127.0.0.1"

    def command(self, issuer_port: int, registry_port: int) -> list[str]:
        """The command with both addresses."""
        return [
            *(self.host.tokenissuer(), "quickstart", str(self.folder)),
            *("--listen", f"{self.address}:{issuer_port}", "--registry-listen", f"{self.address}:{registry_port}"),
        ]

    def __call__(self, issuer_port: int | None = None, registry_port: int | None = None) -> Quickstart:
        """Start it and wait until both servers answer."""
        issuer_port = issuer_port or self.host.free_port()
        registry_port = registry_port or self.host.free_port()
        server = self.host.start("quickstart", *self.command(issuer_port, registry_port), env={"PATH": self.path})
        started = Quickstart(server, issuer_port, registry_port)
        expected = {f"http://127.0.0.1:{issuer_port}/healthz": 200}
        if self.with_registry:
            expected[f"http://{started.registry}/v2/"] = 401

        def ready() -> bool:
            try:
                return all(self.host.get(url).status == status for url, status in expected.items())
            except OSError:
                return False

        server.wait_for(ready)
        return started


@pytest.fixture(params=[2, 3], ids=["registry2", "registry3"])
def quickstart(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> Starter:
    """Quickstart with a registry of each generation on PATH."""
    return Starter(host, tmp_path / "quick", host.path_with_registry(request.param))


@pytest.fixture
def lone_quickstart(host: Host, tmp_path: Path) -> Starter:
    """Quickstart without any registry on PATH."""
    return Starter(host, tmp_path / "quick", host.path_with_registry(None), with_registry=False)


def login_line(server: Server, host: Host) -> re.Match[str]:
    """The command to type, as printed."""
    assert host.wait_until(lambda: LOGIN.search(server.output()) is not None), server.output()
    found = LOGIN.search(server.output())
    assert found
    return found


def test_the_printed_login_line_works_and_so_do_push_and_pull(
    quickstart: Starter, host: Host, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """The line is run by a shell exactly as it is printed."""
    host.program("docker", "install docker.io")
    started = quickstart()
    line, client, image = login_line(started.server, host), new_client(), new_image()
    assert line["registry"].endswith(f":{started.registry_port}")
    assert "Login Succeeded" in host.run("/bin/sh", "-c", line[0], env=client.env).succeeded()
    reference = f"{line['registry']}/{line['user']}/app:v1"
    client.push(image, reference).succeeded()
    client.pull(reference, tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    client.skopeo("delete", "--tls-verify=false", f"docker://{reference}").succeeded()


def test_crane_works_with_what_quickstart_has_made(
    quickstart: Starter, host: Host, new_client: NewClient, new_image: NewImage
) -> None:
    """Crane refuses a realm that is a loopback address rather than a name."""
    started = quickstart()
    line, client, image = login_line(started.server, host), new_client(), new_image()
    host.run("/bin/sh", "-c", line[0], env=client.env).succeeded()
    reference = f"{line['registry']}/{line['user']}/app:v1"
    client.crane("push", str(image.folder), reference).succeeded()
    assert client.crane("digest", reference).succeeded().strip() == image.digest


def test_run_again_it_reuses_the_folder(
    quickstart: Starter, host: Host, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """The old password still works, and what was pushed is still there."""
    first = quickstart()
    line, client, image = login_line(first.server, host), new_client(), new_image()
    name = f"{line['user']}/app:v1"
    client.login(line["registry"], line["user"], line["password"]).succeeded()
    client.push(image, f"{line['registry']}/{name}").succeeded()
    key = (quickstart.folder / "auth.key").read_bytes()
    first.server.send(signal.SIGTERM)
    first.server.wait()
    second = quickstart(first.issuer_port, first.registry_port)
    assert (quickstart.folder / "auth.key").read_bytes() == key
    again = new_client()
    again.login(line["registry"], line["user"], line["password"]).succeeded()
    again.pull(f"{line['registry']}/{name}", tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    assert line["password"] not in second.server.output()


def test_run_again_the_registry_may_have_another_port(
    quickstart: Starter, host: Host, new_client: NewClient, new_image: NewImage
) -> None:
    """The registry's address is in no file that has to stay the same."""
    first = quickstart()
    line = login_line(first.server, host)
    first.server.send(signal.SIGTERM)
    first.server.wait()
    second, client = quickstart(first.issuer_port), new_client()
    client.login(second.registry, line["user"], line["password"]).succeeded()
    client.push(new_image(), f"{second.registry}/{line['user']}/app:v1").succeeded()


def test_run_again_another_port_for_the_issuer_is_one_clear_line(lone_quickstart: Starter, host: Host) -> None:
    """The realm in the folder's files names the old one: it says so instead of handing out a dead address."""
    first = lone_quickstart()
    first.server.send(signal.SIGTERM)
    first.server.wait()
    other = host.free_port()
    refused = host.run(*lone_quickstart.command(other, first.registry_port), env={"PATH": lone_quickstart.path})
    assert refused.code == 1, str(refused)
    assert len(refused.stderr.splitlines()) == 1, str(refused)
    assert str(first.issuer_port) in refused.stderr


@pytest.mark.parametrize("group", [True, False], ids=["to-all", "to-it-alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_issuer_and_registry(
    quickstart: Starter, host: Host, number: signal.Signals, group: bool
) -> None:
    """Ctrl-C and a closed terminal reach the whole group, a service manager may signal the one process it knows."""
    started = quickstart()
    children = started.server.children()
    assert len(children) == 1, children
    started.server.send(number, group=group)
    assert started.server.wait() == 0
    assert host.wait_until(started.server.group_is_gone)
    assert not any(child.exists() for child in children)
    assert host.is_free(started.issuer_port)
    assert host.is_free(started.registry_port)
    assert "Traceback" not in started.server.output()


def test_when_the_registry_ends_so_does_the_issuer(quickstart: Starter, host: Host) -> None:
    """It says why, instead of leaving half of the set-up running."""
    started = quickstart()
    (child,) = started.server.children()
    os.kill(int(child.name), signal.SIGKILL)
    assert started.server.wait() == 1
    assert "the registry ended" in started.server.output()
    assert "Traceback" not in started.server.output()
    assert host.is_free(started.issuer_port)


@pytest.mark.parametrize("taken", ["issuer", "registry"])
def test_a_port_in_use_is_one_clear_line(quickstart: Starter, host: Host, taken: str) -> None:
    """And nothing is left running."""
    busy, free = host.taken_port(), host.free_port()
    ports = (busy, free) if taken == "issuer" else (free, busy)
    refused = host.run(*quickstart.command(*ports), env={"PATH": quickstart.path})
    assert refused.code == 1, str(refused)
    assert len(refused.stderr.splitlines()) == 1, str(refused)
    assert str(busy) in refused.stderr
    assert host.is_free(free)


def test_without_a_registry_it_prints_the_docker_run_line(lone_quickstart: Starter, host: Host) -> None:
    """The line would start the registry with the configuration just made."""
    started = lone_quickstart()
    line = login_line(started.server, host)
    assert line["registry"].endswith(f":{started.registry_port}")
    found = re.search(r"^\s*(docker run .+)$", started.server.output(), re.M)
    assert found, started.server.output()
    assert "registry.yml" in found[1]
    assert "auth.crt" in found[1] or str(lone_quickstart.folder) in found[1]


def test_the_private_key_and_the_passwords_are_for_their_owner_alone(lone_quickstart: Starter) -> None:
    """Nobody else on the machine can read them."""
    lone_quickstart()
    for name in ("auth.key", "users.htpasswd"):
        assert (lone_quickstart.folder / name).stat().st_mode & 0o077 == 0, name


def test_addresses_for_every_interface_are_named_as_this_machine_reaches_them(
    quickstart: Starter, host: Host, new_client: NewClient
) -> None:
    """Docker speaks plain HTTP to loopback addresses only, and a realm of 0.0.0.0 is of no use to anybody."""
    quickstart.address = "0.0.0.0"
    line = login_line(quickstart().server, host)
    client = new_client()
    client.login(line["registry"], line["user"], line["password"]).succeeded()


@pytest.mark.parametrize("flag", ["--listen", "--registry-listen"])
def test_an_open_port_is_refused(host: Host, tmp_path: Path, flag: str) -> None:
    """Issuer and registry are configured with each other's: nothing is made before both are known."""
    said = host.run(host.tokenissuer(), "quickstart", str(tmp_path / "q"), flag, "127.0.0.1:0").failed()
    assert flag in said
    assert "Traceback" not in said
    assert not (tmp_path / "q").exists()
