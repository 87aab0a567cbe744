"""A Docker engine at work: log in, push, pull, run, build on a private image, log out."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import run
from tests.integration.engines.clients import Machine
from tests.integration.engines.engines import find

if TYPE_CHECKING:
    from tests.integration.conftest import Ran, Site
    from tests.integration.engines.engines import Dockerd, Engines

pytestmark = pytest.mark.integration


class Person:
    """Somebody at a machine with the engine."""

    def __init__(self, engine: Dockerd, machine: Machine) -> None:
        self.engine = engine
        self.machine = machine

    def docker(self, *arguments: str, stdin: str = "", **env: str) -> Ran:
        """The command line."""
        env = {**self.machine.env, "DOCKER_HOST": self.engine.host, **env}
        return run(self.engine.client, *arguments, stdin=stdin, env=env, seconds=90)

    def login(self, site: Site, user: str) -> Ran:
        """`docker login`."""
        return self.docker("login", site.registry, "-u", user, "--password-stdin", stdin=site.issuer.passwords[user])

    def config(self) -> str:
        """What docker keeps."""
        path = self.machine.docker_config / "config.json"
        return path.read_text() if path.exists() else "{}"


@pytest.fixture
def new_person(engines: Engines, new_machine: Callable[[], Machine]) -> Callable[[], Person]:
    """Makes people who have not logged in."""
    engine = engines.dockerd()
    return lambda: Person(engine, new_machine())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with a shell, packed."""
    busybox = find("busybox")
    if busybox is None:
        pytest.skip("no busybox program: install busybox-static")
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "cat", "echo"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        text = b"from the private base\n"
        entry = tarfile.TarInfo("words")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return archive


@pytest.fixture
def base(site: Site, new_person: Callable[[], Person], root: Path) -> Iterator[str]:
    """A private image with a shell, that is in the registry and no longer at the engine."""
    alice = new_person()
    alice.login(site, "alice").succeeded()
    reference = site.reference(site.repository())
    alice.docker("import", str(root), reference).succeeded()
    alice.docker("push", reference).succeeded()
    alice.docker("rmi", reference).succeeded()
    yield reference
    alice.docker("rmi", "--force", reference)


def test_what_login_keeps_and_logout_removes(site: Site, new_person: Callable[[], Person]) -> None:
    """The password, or the identity token where the issuer gives one, and then no password."""
    alice = new_person()
    password = site.issuer.passwords["alice"]
    assert "Login Succeeded" in alice.login(site, "alice").succeeded()
    kept = json.loads(alice.config())["auths"][site.registry]
    if "[refresh]" in site.issuer.config.read_text():
        assert kept["identitytoken"].startswith("tir_")
        assert base64.b64decode(kept["auth"]).decode() == "alice:"
    else:
        assert kept == {"auth": base64.b64encode(f"alice:{password}".encode()).decode()}
    alice.docker("logout", site.registry).succeeded()
    assert not json.loads(alice.config()).get("auths")


def test_what_is_pushed_is_pulled_and_runs(site: Site, new_person: Callable[[], Person], base: str) -> None:
    """Pulled by somebody who may only pull, and run without the network of a bridge."""
    bob = new_person()
    bob.login(site, "bob").succeeded()
    assert "Downloaded newer image" in bob.docker("pull", base).succeeded()
    said = bob.docker("run", "--rm", "--network=host", base, "cat", "/words").succeeded()
    assert said == "from the private base\n"


@pytest.mark.parametrize("buildkit", ["0", "1"], ids=["classic", "buildkit"])
def test_builds_on_a_private_image(
    site: Site, new_person: Callable[[], Person], base: str, tmp_path: Path, buildkit: str
) -> None:
    """The base is pulled, a command runs in it, and what was built is pushed to another repository."""
    alice = new_person()
    alice.login(site, "alice").succeeded()
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "Dockerfile").write_text(f"FROM {base}\nRUN cat /words > /copy && echo more >> /copy\n")
    target = site.reference(site.repository())
    command = ("build", "--network=host", "--pull", "-t", target, str(tmp_path / "build"))
    alice.docker(*command, DOCKER_BUILDKIT=buildkit).succeeded()
    alice.docker("push", target).succeeded()
    alice.docker("rmi", target).succeeded()
    said = alice.docker("run", "--rm", "--network=host", target, "cat", "/copy").succeeded()
    assert said == "from the private base\nmore\n"
    alice.docker("rmi", "--force", target)


@pytest.mark.parametrize("buildkit", ["0", "1"], ids=["classic", "buildkit"])
def test_does_not_build_on_a_private_image_without_a_login(
    site: Site, new_person: Callable[[], Person], base: str, tmp_path: Path, buildkit: str
) -> None:
    """What was pulled before by others is no way around: `--pull` asks the registry."""
    stranger = new_person()
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "Dockerfile").write_text(f"FROM {base}\n")
    command = ("build", "--network=host", "--pull", str(tmp_path / "build"))
    refused = stranger.docker(*command, DOCKER_BUILDKIT=buildkit).failed()
    # BuildKit shows no more than the status.
    assert ("403 Forbidden" if buildkit == "1" else "denied: access forbidden; ") in refused


def test_after_logout_nothing_private_is_pulled_or_pushed(
    site: Site, new_person: Callable[[], Person], base: str
) -> None:
    """And the words say what to do."""
    alice = new_person()
    alice.login(site, "alice").succeeded()
    alice.docker("pull", base).succeeded()
    alice.docker("logout", site.registry).succeeded()
    for refused in (alice.docker("pull", base), alice.docker("push", base)):
        assert "denied: access forbidden; if you have an account here, log in first" in refused.failed()


def test_a_wrong_password_does_not_log_in(site: Site, new_person: Callable[[], Person]) -> None:
    """Nothing is kept."""
    alice = new_person()
    refused = alice.docker("login", site.registry, "-u", "alice", "--password-stdin", stdin="wrong")
    assert "unauthorized: wrong user name or password" in refused.failed()
    assert not json.loads(alice.config()).get("auths")


def test_an_image_goes_to_another_repository_without_being_sent_again(
    site: Site, new_person: Callable[[], Person], base: str
) -> None:
    """Docker asks for both repositories at once and mounts the layers."""
    alice = new_person()
    alice.login(site, "alice").succeeded()
    target = site.reference(site.repository("alice"))
    alice.docker("pull", base).succeeded()
    alice.docker("tag", base, target).succeeded()
    assert "Mounted from team/" in alice.docker("push", target).succeeded()
    alice.docker("rmi", target).succeeded()
