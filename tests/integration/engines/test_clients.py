"""Every client with every operation: what works, and what its user reads where something does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.integration.engines import table
from tests.integration.engines.clients import (
    Buildah,
    Buildctl,
    Crane,
    Ctr,
    Docker,
    Helm,
    Machine,
    Oras,
    Podman,
    Regctl,
    Skopeo,
    Tool,
)
from tokenissuer.errors import FORBIDDEN, BackendUnavailable, InvalidCredentials, LoginEnded, TooManyAttempts

if TYPE_CHECKING:
    from tests.integration.conftest import Image, Ran, Site
    from tests.integration.engines.conftest import World
    from tests.integration.engines.engines import Engines

pytestmark = pytest.mark.integration

CLIENTS: dict[str, Callable[[Engines], Tool]] = {
    "docker": lambda engines: Docker(engines.dockerd()),
    "docker, containerd store": lambda engines: Docker(engines.moby()),
    "containerd (ctr)": lambda engines: Ctr(engines.containerd()),
    "podman": lambda _: Podman(),
    "buildah": lambda _: Buildah(),
    "skopeo": lambda _: Skopeo(),
    "crane": lambda _: Crane(),
    "oras": lambda _: Oras(),
    "regctl": lambda _: Regctl(),
    "helm": lambda _: Helm(),
    "BuildKit (buildctl)": lambda engines: Buildctl(engines.buildkitd()),
}

#: What was seen, by client and operation. All tests of a file run in one process.
SEEN: dict[tuple[str, str], str] = {}


@dataclass
class Try:
    """One client that tries one thing."""

    tool: Tool
    world: World
    new_machine: Callable[[], Machine]
    new_image: Callable[[], Image]

    def new_reference(self) -> str:
        """An image of the team's that is not there yet."""
        return self.world.well.reference(self.world.well.repository())

    def machine_of(self, user: str) -> Machine:
        """The machine of somebody who has logged in as people do with this client."""
        machine, site = self.new_machine(), self.world.well
        if self.tool.login:
            self.tool.login(machine, site.registry, user, site.issuer.passwords[user]).succeeded()
        else:
            machine.keep_password(site.registry, user, site.issuer.passwords[user])
        return machine

    def refused(self, ran: Ran, site: Site, logged: int, *status: int) -> str:
        """The words of a refusal. The issuer must have answered with one of these statuses."""
        words = table.essence(ran.failed())
        assert site.issuer.server is not None
        lines = [json.loads(line) for line in site.issuer.server.output(logged).splitlines()]
        answered = {line["status"] for line in lines if line.get("path") == "/token"}
        assert answered & set(status), (answered, str(ran))
        return words

    def refused_login(self, site: Site, password: str, *status: int) -> str:
        """The words where a login is refused; those of a pull, if the client has no login that asks."""
        machine, start = self.new_machine(), log_size(site)
        if self.tool.login:
            return self.refused(self.tool.login(machine, site.registry, "alice", password), site, start, *status)
        machine.keep_password(site.registry, "alice", password)
        return self.refused(self.tool.pull(machine, site.reference("team/base")), site, start, *status)


def log_size(site: Site) -> int:
    """How long the issuer's log is."""
    assert site.issuer.server is not None
    return site.issuer.server.log.stat().st_size


def login(this: Try) -> str:
    """With the right password."""
    if not this.tool.login:
        return table.NOTHING
    this.machine_of("alice")
    return "yes"


def push(this: Try) -> str:
    """An image that is new to the registry; the registry has it afterwards."""
    reference = this.new_reference()
    this.tool.push(this.machine_of("alice"), this.new_image(), reference).succeeded()
    path = f"/v2/{reference.partition('/')[2].rpartition(':')[0]}"
    token = this.world.well.issuer.token(f"repository:{path.removeprefix('/v2/')}:pull", user="alice")
    tags = this.world.well.request("GET", f"{path}/tags/list", token)
    assert len(tags.json()["tags"]) == 1
    return "yes"


def pull(this: Try) -> str:
    """By somebody who may only pull."""
    reference = this.new_reference()
    this.tool.push(this.machine_of("alice"), this.new_image(), reference).succeeded()
    this.tool.pull(this.machine_of("bob"), reference).succeeded()
    return "yes"


def build(this: Try) -> str:
    """An image on a base that not everybody may pull."""
    if not this.tool.build:
        return table.NOTHING
    this.tool.build(this.machine_of("alice"), this.world.base, this.new_reference()).succeeded()
    return "yes"


def mount(this: Try) -> str:
    """A copy within the registry, for which nothing is sent again."""
    if not this.tool.mount:
        return table.NOTHING
    target = this.new_reference()
    this.tool.mount(this.machine_of("alice"), this.world.base, target).succeeded()
    repository = target.partition("/")[2].rpartition(":")[0]
    asked = this.world.requests("POST", f"/v2/{repository}/blobs/uploads/")
    return "yes" if any("mount=" in line and '" 201 ' in line for line in asked) else "sends again"


def delete(this: Try) -> str:
    """What has been deleted cannot be pulled any more."""
    if not this.tool.delete:
        return table.NOTHING
    machine, reference = this.machine_of("alice"), this.new_reference()
    this.tool.push(machine, this.new_image(), reference).succeeded()
    this.tool.delete(this.machine_of("bob"), reference).failed()
    this.tool.delete(machine, reference).succeeded()
    this.tool.pull(machine, reference).failed()
    return "yes"


def catalog(this: Try) -> str:
    """The list of all repositories."""
    if not this.tool.catalog:
        return table.NOTHING
    assert "team/base" in this.tool.catalog(this.machine_of("alice"), this.world.well.registry).succeeded()
    return "yes"


def catalog_denied(this: Try) -> str:
    """It is a right of its own."""
    if not this.tool.catalog:
        return table.NOTHING
    start, site = log_size(this.world.well), this.world.well
    return this.refused(this.tool.catalog(this.machine_of("bob"), site.registry), site, start, 200)


def session(this: Try) -> str:
    """A refresh token that `docker login` has stored is enough to pull."""
    reference = this.new_reference()
    this.tool.push(this.machine_of("alice"), this.new_image(), reference).succeeded()
    machine = this.new_machine()
    machine.keep_session(this.world.well.registry, "erin", this.world.session("erin"))
    this.tool.pull(machine, reference).succeeded()
    return "yes"


def ended(this: Try) -> str:
    """The login is revoked."""
    machine, site = this.new_machine(), this.world.well
    machine.keep_session(site.registry, "erin", this.world.session("erin"))
    this.world.end_sessions("erin")
    start = log_size(site)
    return this.refused(this.tool.pull(machine, this.world.base), site, start, LoginEnded.status)


def push_denied(this: Try) -> str:
    """By somebody who may only pull."""
    machine, site = this.machine_of("bob"), this.world.well
    start = log_size(site)
    return this.refused(this.tool.push(machine, this.new_image(), this.new_reference()), site, start, 200)


def pull_denied(this: Try) -> str:
    """By somebody who may do nothing in this repository."""
    machine, site = this.machine_of("carol"), this.world.well
    start = log_size(site)
    return this.refused(this.tool.pull(machine, this.world.base), site, start, 200)


def anonymous(this: Try) -> str:
    """Without a login."""
    start, site = log_size(this.world.well), this.world.well
    return this.refused(this.tool.pull(this.new_machine(), this.world.base), site, start, 403)


def wrong(this: Try) -> str:
    """A wrong password."""
    return this.refused_login(this.world.well, "wrong", InvalidCredentials.status)


def changed(this: Try) -> str:
    """A stored password that is no longer right."""
    machine, site = this.new_machine(), this.world.well
    machine.keep_password(site.registry, "alice", "wrong")
    start = log_size(site)
    return this.refused(this.tool.pull(machine, this.world.base), site, start, InvalidCredentials.status)


def throttled(this: Try) -> str:
    """The right password, after too many wrong ones from here."""
    site = this.world.throttled
    return this.refused_login(site, site.issuer.passwords["alice"], 429)


def away(this: Try) -> str:
    """The right password, but the account source does not answer."""
    site = this.world.away
    return this.refused_login(site, site.issuer.passwords["alice"], BackendUnavailable.status)


OPERATIONS: dict[str, Callable[[Try], str]] = {
    "login": login,
    "push": push,
    "pull": pull,
    "build": build,
    "mount": mount,
    "delete": delete,
    "catalog": catalog,
    "session": session,
    "anonymous": anonymous,
    "push denied": push_denied,
    "pull denied": pull_denied,
    "catalog denied": catalog_denied,
    "wrong": wrong,
    "changed": changed,
    "throttled": throttled,
    "away": away,
    "ended": ended,
}


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("client", list(CLIENTS))
def test_what_happens(
    client: str,
    operation: str,
    engines: Engines,
    world: World,
    new_machine: Callable[[], Machine],
    new_image: Callable[[], Image],
) -> None:
    """Each test is a cell of the tables in docs/clients.md."""
    tool = CLIENTS[client](engines)
    version = tool.version()
    seen = OPERATIONS[operation](Try(tool, world, new_machine, new_image))
    SEEN[client, operation] = seen
    SEEN[client, "version"] = version
    if os.environ.get("UPDATE_TABLES"):
        return
    said = table.read(table.DOCUMENT.read_text())
    expected = said.get((client, operation), table.NOTHING)
    if said.get((client, "version")) == version or expected in ("yes", table.NOTHING):
        assert seen == expected
    else:
        # Another version may use other words around those that matter.
        assert table.essentials(seen) == table.essentials(expected)


def test_the_document_has_these_tables() -> None:
    """`UPDATE_TABLES=1` writes what was seen; without it the kinds of answers must follow from the words."""
    text = table.DOCUMENT.read_text()
    said = table.read(text)
    if os.environ.get("UPDATE_TABLES"):
        said |= SEEN
        table.DOCUMENT.write_text(table.write(text, list(CLIENTS), said))
    else:
        assert table.write(text, list(CLIENTS), said) == text


def test_the_document_quotes_what_the_token_endpoint_says() -> None:
    """The sentences of which the tables have the beginnings."""
    text = table.DOCUMENT.read_text()
    many = TooManyAttempts(300, "address").description
    for sentence in (
        FORBIDDEN,
        InvalidCredentials.description,
        LoginEnded.description,
        BackendUnavailable.description,
        many,
    ):
        assert f"`{sentence}`" in text


def test_buildkit_keeps_its_cache_in_a_private_repository(
    engines: Engines, world: World, new_machine: Callable[[], Machine], new_image: Callable[[], Image]
) -> None:
    """Pushed by one, and used by another who may only pull."""
    buildctl = Buildctl(engines.buildkitd())
    this = Try(buildctl, world, new_machine, new_image)
    cache = this.new_reference()
    alice = this.machine_of("alice")
    buildctl.build(
        alice, world.base, this.new_reference(), f"--export-cache=type=registry,ref={cache},mode=max"
    ).succeeded()
    used = f"--import-cache=type=registry,ref={cache}"
    said = buildctl.pull(this.machine_of("bob"), world.base, used)
    said.succeeded()
    assert "importing cache manifest from" in said.stderr
    assert "ERROR" not in said.stderr
    refused = buildctl.pull(new_machine(), world.base, used).failed()
    assert "403 Forbidden" in refused


def test_oras_wants_registry_and_realm_of_one_machine_to_have_one_name(
    world: World, new_machine: Callable[[], Machine]
) -> None:
    """A registry that is called by its address, and a realm called localhost, would be two."""
    machine, site = new_machine(), world.well
    address = site.registry.replace("localhost", "127.0.0.1")
    machine.keep_password(address, "bob", site.issuer.passwords["bob"])
    reference = world.base.replace("localhost", "127.0.0.1")
    assert "in blocked prefix 127.0.0.0/8" in Oras().pull(machine, reference).failed()
    machine.keep_password(site.registry, "bob", site.issuer.passwords["bob"])
    Oras().pull(machine, world.base).succeeded()
