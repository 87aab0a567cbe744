"""A release: sdist and wheel as tests/release/make makes them, installed by pip as anybody would, at work."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.integration.release.conftest import ROOT, pip

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

LOGIN = re.compile(r"echo (?P<password>\S+) \| docker login -u (?P<user>\S+) --password-stdin (?P<registry>[\w.:]+)")


@dataclass(frozen=True)
class Release:
    """The files of one release."""

    folder: Path

    def file(self, ending: str) -> Path:
        """The one file with this ending."""
        (found,) = self.folder.glob(f"*{ending}")
        return found

    @property
    def bill(self) -> dict[str, Any]:
        """What the wheel was installed with."""
        read: dict[str, Any] = json.loads(self.file(".cdx.json").read_text())
        return read


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of this checkout."""
    folder = tmp_path_factory.mktemp("release")
    made = subprocess.run(
        [str(ROOT / "tests" / "release" / "make"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=360,
        env={**os.environ, "PYTHON": sys.executable},
    )
    if re.search(r"(?i)connection (broken|refused)|name resolution|no matching distribution", made.stderr):
        pytest.skip(f"no package index can be reached: {made.stderr.strip().splitlines()[-1:]}")
    assert made.returncode == 0, made.stdout + made.stderr
    return Release(folder)


def test_the_sdist_holds_what_a_release_needs(release: Release) -> None:
    """All files of the checkout that are no caches, and nothing else."""
    with tarfile.open(release.file(".tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "LICENSE",
        "CHANGELOG.md",
        "README.md",
        "setup.cfg",
        "pyproject.toml",
        "tests/run",
        "tests/conftest.py",
    ):
        assert name in names
    for folder in ("conf", "docs", "tokenissuer", "backends"):
        files = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
        }
        assert files - names == set()
    assert not [name for name in names if "__pycache__" in name or name.startswith((".cache", ".git"))]


def test_the_wheel_holds_the_packages_alone(release: Release) -> None:
    """Every module and template, the licence, and no tests."""
    with zipfile.ZipFile(release.file(".whl")) as archive:
        names = set(archive.namelist())
    modules = {
        f"{target}/{path.relative_to(ROOT / source)}"
        for source, target in (("tokenissuer", "tokenissuer"), ("backends", "tokenissuer_backends"))
        for path in (ROOT / source).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert modules - names == set()
    others = {name for name in names - modules if ".dist-info/" not in name}
    assert others == set()
    assert [name for name in names if name.endswith("LICENSE")]


def test_the_checksums_are_those_of_the_files(release: Release) -> None:
    """As `sha256sum --check` reads them."""
    lines = [line.split() for line in release.file(".sha256").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    files = [release.file(ending) for ending in (".tar.gz", ".whl", ".cdx.json")]
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_bill_of_materials_names_every_package_that_is_pinned(release: Release) -> None:
    """With its version and what needs it, in CycloneDX, which the tool has checked against its schema."""
    bill = release.bill
    assert bill["bomFormat"] == "CycloneDX"
    found = {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}
    expected = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins()
        if pin.marker is None or pin.marker.evaluate()
    }
    assert found.pop(canonicalize_name("tokenissuer")) in release.file(".whl").name
    assert found == expected
    references = {part["bom-ref"] for part in bill["components"]}
    others = [part for part in bill["components"] if "tokenissuer" not in part["name"]]
    assert all(part["purl"].startswith("pkg:pypi/") for part in others)
    (own,) = (entry for entry in bill["dependencies"] if "tokenissuer" in entry["ref"])
    assert set(own["dependsOn"]) <= references
    assert len(own["dependsOn"]) >= 12


@pytest.mark.parametrize("kind", [".whl", ".tar.gz"], ids=["wheel", "sdist"])
def test_a_release_is_installed_in_an_empty_environment_and_the_quick_start_runs(
    release: Release,
    kind: str,
    host: Host,
    tmp_path: Path,
    new_client: Callable[[], Client],
    new_image: Callable[[], Image],
) -> None:
    """From the ordinary index, far from any checkout; `docker login`, push and pull as the screen says."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    python = tmp_path / "venv" / "bin" / "python"
    installed = pip("--python", str(python), "install", "--quiet", "--no-compile", str(release.file(kind)))
    assert installed.returncode == 0, installed.stderr
    command = str(tmp_path / "venv" / "bin" / "tokenissuer")
    ports = host.free_port(), host.free_port()
    listen = ("--listen", f"127.0.0.1:{ports[0]}", "--registry-listen", f"127.0.0.1:{ports[1]}")
    path = os.pathsep.join([host.path_with_registry(3), "/usr/bin", "/bin"])
    server = host.start("quickstart", command, "quickstart", str(tmp_path / "quick"), *listen, env={"PATH": path})
    server.wait_for(lambda: LOGIN.search(server.output()) is not None)
    line = LOGIN.search(server.output())
    assert line
    host.program("docker", "install docker.io")
    client, image = new_client(), new_image()
    assert "Login Succeeded" in host.run("/bin/sh", "-c", line[0], env=client.env).succeeded()
    reference = f"{line['registry']}/{line['user']}/app:v1"
    client.push(image, reference).succeeded()
    client.pull(reference, tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    server.send(signal.SIGTERM)
    server.wait()


def pins(name: str = "requirements.txt") -> list[Requirement]:
    """The pinned packages of a file in conf/."""
    text = (ROOT / "conf" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all("--hash=sha256:" in line for line in lines)
    return [Requirement(line.partition(" --hash")[0]) for line in lines]


@pytest.mark.parametrize("version", ["3.11.2", "3.12.0", "3.13.0"])
def test_the_pins_satisfy_what_the_package_needs(version: str) -> None:
    """One version of each, for every Python that is supported."""
    python = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
    active = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate(python)]
    found = {canonicalize_name(pin.name): str(pin.specifier) for pin in active}
    assert len(found) == len(active)
    assert all(re.fullmatch(r"==[\w.]+", specifier) for specifier in found.values())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options"]["install_requires"].split("\n"):
        needed = Requirement(line) if line.strip() else None
        if needed is not None and (needed.marker is None or needed.marker.evaluate(python)):
            assert needed.specifier.contains(found[canonicalize_name(needed.name)].removeprefix("=="), prereleases=True)


def test_no_pinned_package_has_a_known_weakness(tmp_path: Path) -> None:
    """As far as the index knows; where it knows nothing, the test is skipped."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    python = tmp_path / "venv" / "bin" / "python"
    if pip("--python", str(python), "install", "--quiet", "--no-compile", "pip-audit==2.10.1").returncode:
        pytest.skip("no package index can be reached")
    command = [str(python), "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command += ["--format", "json", "--timeout", "20", "-r", str(ROOT / "conf" / "requirements.txt")]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
        answers = json.loads(ran.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError) as error:
        pytest.skip(f"the index does not say what is weak: {error}")
    if known := [answer for answer in answers if "vulns" in answer]:
        assert [answer for answer in known if answer["vulns"]] == []
    else:
        pytest.skip(f"the index does not say what is weak: {answers[0]['skip_reason']}")
