"""Engines, the clients that use them, and registries in every state that a client can meet."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import bcrypt
import pytest

from tests.integration.conftest import SERVICE, Server, make_image, request, tokenissuer
from tests.integration.engines.clients import Machine
from tests.integration.engines.engines import Engines
from tests.integration.engines.engines import engines as started
from tests.support.http import basic
from tests.support.machine import free_port

if TYPE_CHECKING:
    from tests.integration.conftest import Issuer, Site, Sites

ACCESS = """
[[access]]
accounts = ["alice"]
repositories = ["team/**"]
actions = ["pull", "push", "delete"]

[[access]]
accounts = ["bob", "erin"]
repositories = ["team/**"]
actions = ["pull"]

[[access]]
accounts = ["alice"]
catalog = true
"""


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """The engines of this session."""
    with started() as made:
        yield made


@pytest.fixture
def new_machine(engines: Engines) -> Callable[[], Machine]:
    """Makes machines nobody has logged in on."""
    # Podman wants a short path for what it keeps while it runs.
    return lambda: Machine(engines.folder / uuid.uuid4().hex[:8])


@dataclass
class World:
    """A registry whose accounts work, one whose clients are refused for a while, one whose accounts are away."""

    well: Site
    log: Path
    throttled: Site
    away: Site
    base: str

    def requests(self, method: str, text: str) -> list[str]:
        """The lines of the registry's log about requests with this method and this text in the address."""
        return [line for line in self.log.read_text().splitlines() if f'"{method} ' in line and text in line]

    def session(self, user: str) -> str:
        """A refresh token, as `docker login` asks for it."""
        issuer = self.well.issuer
        query = urlencode({"service": SERVICE, "offline_token": "true", "client_id": "docker"})
        answer = request("GET", f"{issuer.realm}?{query}", {"Authorization": basic(user, issuer.passwords[user])})
        assert answer.status == 200, answer
        return str(answer.json()["refresh_token"])

    def end_sessions(self, user: str) -> None:
        """End every login of the account."""
        config = str(self.well.issuer.config)
        tokenissuer("sessions", "revoke", "--account", user, "--config", config).succeeded()


def make_issuer(sites: Sites, name: str, more: str = "") -> Issuer:
    """An issuer whose passwords cost little to check."""
    issuer = sites.new_issuer(name, "ec")
    issuer.set_access(ACCESS)
    users = ""
    for user in ("alice", "bob", "carol", "erin"):
        issuer.passwords[user] = f"{user}'s own sécret: {uuid.uuid4().hex[:8]}"
        users += f"{user}:{bcrypt.hashpw(issuer.passwords[user].encode(), bcrypt.gensalt(4)).decode()}\n"
    (issuer.folder / "users.htpasswd").write_text(users)
    if more:
        issuer.drop_tables(more.strip().lstrip("[").partition("]")[0])
        with issuer.config.open("a") as config:
            config.write(more)
    issuer.start()
    return issuer


@pytest.fixture(scope="session")
def world(sites: Sites, tmp_path_factory: pytest.TempPathFactory) -> World:
    """All that the clients meet."""
    well = by_name(sites.registry(make_issuer(sites, "well"), 3))
    log = Server.running[-1].log
    guarded = make_issuer(sites, "throttled", "\n[throttle]\naccount = 2\naddress = 3\nwindow = 3600\n")
    throttled = by_name(sites.registry(guarded, 3))
    for guess in range(4):
        refused = throttled.issuer.ask(user=f"guess-{guess}", password=f"guess {guess}")
    assert refused.status == 429, refused
    directory = f'\n[[backends]]\ntype = "ldap"\nservers = ["ldap://127.0.0.1:{free_port()}"]\nallow_plaintext = true\n'
    directory += '[backends.user]\nbase = "dc=example,dc=test"\n'
    away = by_name(sites.registry(make_issuer(sites, "away", directory), 3))
    image = make_image(tmp_path_factory.mktemp("base") / "image", "the base of others")
    base = well.reference("team/base")
    machine = Machine(tmp_path_factory.mktemp("maker"))
    machine.keep_password(well.registry, "alice", well.issuer.passwords["alice"])
    machine.push(image, base).succeeded()
    return World(well, log, throttled, away, base)


def by_name(site: Site) -> Site:
    """The registry by the host name that its realm has: else oras refuses a realm on this machine."""
    return replace(site, registry=site.registry.replace("127.0.0.1", "localhost"))
