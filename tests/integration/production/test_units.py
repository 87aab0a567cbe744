"""The systemd units and the container files of conf/, as far as they can be checked without starting them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokenissuer.cli import init

if TYPE_CHECKING:
    from tests.integration.conftest import Host
    from tests.integration.production.conftest import Production

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


@pytest.fixture
def units(production: Production, tmp_path: Path, host: Host) -> Path:
    """The units, with the command that is installed here."""
    folder = tmp_path / "units"
    folder.mkdir()
    shutil.copy(production.conf / "tokenissuer.socket", folder)
    text = (production.conf / "tokenissuer.service").read_text()
    text = production.fill_in(text, {"/opt/tokenissuer/bin/tokenissuer": host.tokenissuer()})
    (folder / "tokenissuer.service").write_text(text)
    return folder


@pytest.mark.parametrize("server", ["granian", "gunicorn"])
def test_systemd_finds_nothing_wrong_with_the_other_servers(
    production: Production, host: Host, units: Path, server: str
) -> None:
    """Each is a drop-in that changes the command, which is the one of the manual."""
    text = (production.conf / f"{server}.conf").read_text()
    command = production.documented(server)
    assert f"ExecStart=/opt/tokenissuer/bin/{command}\n" in text
    text = production.fill_in(text, {"/opt/tokenissuer/bin/": f"{Path(host.tokenissuer()).parent}/"})
    (units / "tokenissuer.service.d").mkdir()
    (units / "tokenissuer.service.d" / f"{server}.conf").write_text(text)
    analyze = production.daemon_program("systemd-analyze", "install systemd")
    checked = host.run(analyze, "verify", str(units / "tokenissuer.service"))
    assert checked.code == 0, str(checked)


def test_systemd_finds_nothing_wrong_with_the_units(production: Production, host: Host, units: Path) -> None:
    """Neither an unknown key nor a missing program."""
    analyze = production.daemon_program("systemd-analyze", "install systemd")
    checked = host.run(
        analyze, "verify", *(str(units / name) for name in ("tokenissuer.service", "tokenissuer.socket"))
    )
    assert checked.code == 0, str(checked)
    complaints = [line for line in checked.stderr.splitlines() if "tokenissuer" in line]
    assert complaints == []


def test_systemd_finds_the_service_well_locked_up(production: Production, host: Host, units: Path) -> None:
    """Its exposure is 1.5 at most, of 10: what is left are the network and Unix sockets."""
    analyze = production.daemon_program("systemd-analyze", "install systemd")
    service = str(units / "tokenissuer.service")
    checked = host.run(analyze, "security", "--offline=true", "--threshold=15", "--no-pager", service)
    if "unrecognized option" in checked.stderr:
        pytest.skip("this systemd-analyze looks at running services only")
    assert checked.code == 0, str(checked)


def test_the_service_is_started_as_the_command_line_has_it(production: Production, host: Host, units: Path) -> None:
    """Its options are options, and secrets are not among them."""
    (command,) = re.findall(r"(?m)^ExecStart=(.*)$", (units / "tokenissuer.service").read_text())
    refused = host.run(*command.replace("/etc/tokenissuer", str(units)).split()).failed()
    assert "cannot read" in refused
    assert "tokenissuer.toml" in refused


def test_the_container_gets_what_the_package_is_built_of(production: Production) -> None:
    """Every folder and file that setup.cfg names, and no root."""
    text = (production.conf / "Containerfile").read_text()
    copied = {word for line in re.findall(r"(?m)^COPY (?!--)(.*) /source/\S*$", text) for word in line.split()}
    pins = {"conf/requirements.txt", "conf/requirements-build.txt"}
    assert copied == {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "tokenissuer", "backends", *pins}
    assert all((ROOT / name).exists() for name in copied)
    # Nothing else of the checkout is sent to the engine.
    ignored = (production.conf / "Containerfile.dockerignore").read_text()
    assert set(re.findall(r"(?m)^!(.*)$", ignored)) == copied
    assert re.search(r"(?m)^USER [1-9]\d+:[1-9]\d+$", text)
    # What it runs, and what compose.yaml gives it, are paths that `init` makes there.
    assert "/etc/tokenissuer/tokenissuer.toml" in text
    compose = (production.conf / "compose.yaml").read_text()
    for name in ("registry.yml", "auth.crt"):
        assert f"./tokenissuer/{name}:/etc/tokenissuer/{name}:ro" in compose
    (gateway,) = re.findall(r"gateway: (.*)", compose)
    assert f"network's own address, {gateway}:" in compose
    made = init.SetUp(Path("made"), purpose=init.Purpose.CONTAINER)
    assert f'trusted_proxies = ["{gateway}"]' in made._configuration()
