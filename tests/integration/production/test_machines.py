"""Several machines, as docs/servers.md sets them up; here each is a folder and a port."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.machine import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Host
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[3] / "docs" / "servers.md").read_text()


def blocks(heading: str, language: str) -> list[str]:
    """The blocks of a section."""
    (section,) = re.findall(rf"(?ms)^### {re.escape(heading)}\n(.*?)(?=^##)", PAGE)
    return re.findall(rf"(?s)```{language}\n(.*?)```", section)


def signer(production: Production, front: Front, source: str = "127.0.0.1") -> str:
    """The name of the key that signs for a client with this address."""
    return production.kid(front.ask(source=source).json()["token"])


def test_each_client_goes_to_one_machine(production: Production) -> None:
    """Always to the same one, both have work, and one that is down is not missed. Each has a key here, to tell them."""
    port = production.host.free_port()
    issuers = [production.issuer(name, f"https://127.0.0.1:{port}/jwt/auth") for name in ("one", "two")]
    servers = [production.serve(issuer) for issuer in issuers]
    (block,) = blocks("Send each client to one machine", "nginx")
    places = {"127.0.0.1:5001": f"127.0.0.1:{issuers[0].port}", "10.0.0.2:5001": f"127.0.0.1:{issuers[1].port}"}
    (shipped,) = re.findall(r"(?ms)^upstream tokenissuer \{.*?^\}\n", (production.conf / "nginx.conf").read_text())
    site = production.nginx_site("nginx.conf", port, {shipped: production.fill_in(block, places)})
    front = production.nginx(issuers[0], port, site)
    clients = [f"127.0.0.{number}" for number in range(2, 22)]
    first = {client: signer(production, front, client) for client in clients}
    assert len(set(first.values())) == 2
    for _ in range(3):
        assert {client: signer(production, front, client) for client in clients} == first
    servers[0].stop()
    assert len({signer(production, front, client) for client in clients}) == 1


def test_a_key_follows_another_on_two_machines(production: Production, host: Host) -> None:
    """The manual's commands; after each of them both machines sign with a key that the registry knows."""
    issuer = production.issuer("first")
    second = issuer.folder.with_name("second")
    shutil.copytree(issuer.folder, second)
    production.serve(issuer)
    port = host.free_port()
    listen = ("--listen", f"127.0.0.1:{port}")
    host.start("second", host.tokenissuer(), "serve", "--config", str(second / "tokenissuer.toml"), *listen)
    assert wait_until(lambda: production.is_up(port), 30)
    fronts = [production.direct(issuer), production.direct(issuer, port)]
    (replica,) = production.replicas(issuer, 3, 1)
    before = {signer(production, front) for front in fronts}
    assert len(before) == 1

    def accepted() -> bool:
        tokens = [front.ask().json()["token"] for front in fronts]
        return all(
            production.ask_registry(replica.address, {"Authorization": f"Bearer {each}"}) == 200 for each in tokens
        )

    rotate, _ = blocks("Another key on several machines", "sh")
    places = {
        "ssh root@10.0.0.2 tar -C /etc/tokenissuer": f"tar -C {second}",
        "/etc/tokenissuer": str(issuer.folder),
        "http://127.0.0.1:5000": f"http://{replica.address}",
    }
    path = os.pathsep.join([str(Path(host.tokenissuer()).parent), os.environ["PATH"]])
    for line in production.fill_in(rotate, places).splitlines():
        if line.startswith("#"):
            replica.restart()
        else:
            host.run("/bin/bash", "-ec", line, env={"PATH": path}).succeeded()
        assert accepted(), line
    assert wait_until(lambda: len({signer(production, front) for front in fronts} - before) == 1, 20)
    assert wait_until(lambda: {signer(production, front) for front in fronts}.isdisjoint(before), 20)
    assert accepted()
    assert not [*second.glob("auth.key.*")]
