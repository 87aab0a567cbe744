"""One signing key follows another while people push and pull."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tokenissuer.signing.keys import load_private_key, self_signed_certificate

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Issuer, Ran
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration

LIFETIME = 900


@pytest.fixture
def keys(host: Host) -> Callable[..., Ran]:
    """Runs `tokenissuer keys`."""

    def run(issuer: Issuer, *arguments: str) -> Ran:
        return host.run(host.tokenissuer(), "keys", *arguments, "--config", str(issuer.config))

    return run


@pytest.fixture(params=[2, 3], ids=["registry2", "registry3"])
def generation(request: pytest.FixtureRequest) -> int:
    """The two generations of the registry."""
    number: int = request.param
    return number


def mover(client: Client, registry: str, image: Image, folder: Path) -> Callable[[], str]:
    """Somebody who pushes and pulls again and again, each time with new tokens.

    Each has a repository of their own: Distribution 2 empties a tag's file before it writes it, and answers 500 to
    whoever reads the same tag at that moment.
    """
    turn = iter(range(10**6))

    def push_and_pull() -> str:
        number = next(turn)
        reference = f"{registry}/alice/{folder.name}:t{number}"
        pushed = client.push(image, reference)
        if pushed.code:
            return str(pushed)
        pulled = client.pull(reference, folder / f"pulled{number}")
        return str(pulled) if pulled.code else ""

    return push_and_pull


@contextmanager
def moving(
    production: Production, registry: str, issuer: Issuer, make: tuple[Callable[[], Client], Callable[[], Image]]
) -> Iterator[Any]:
    """Two people at work; nothing may fail."""
    new_client, new_image = make
    work = []
    for _ in range(2):
        client = new_client()
        client.login(registry, "alice", issuer.passwords["alice"]).succeeded()
        work.append(mover(client, registry, new_image(), client.home))
    with production.under_load(work) as load:
        load.wait_for(3)
        yield load
        load.wait_for(3)
    assert load.failures == []


def signer(production: Production, front: Front) -> str:
    """The name of the key that signs."""
    return production.kid(front.ask().json()["token"])


def listed(keys: Callable[..., Ran], issuer: Issuer) -> list[tuple[str, str]]:
    """The states and names that `keys list` shows."""
    lines = keys(issuer, "list").succeeded().splitlines()
    return [(line.split()[0], line.split()[-1]) for line in lines]


def let_tokens_end(issuer: Issuer) -> None:
    """As if the time of the last token of the old key had passed."""
    progress = issuer.folder / "auth.key.rotation"
    noted = json.loads(progress.read_text())
    earlier = {name: noted[name] - LIFETIME - 200 for name in ("switched", "taken") if noted[name]}
    progress.write_text(json.dumps({**noted, **earlier}))


def test_a_new_key_while_people_push_and_pull(
    production: Production,
    host: Host,
    keys: Callable[..., Ran],
    new_client: Callable[[], Client],
    new_image: Callable[[], Image],
    generation: int,
) -> None:
    """Two registries behind nginx are restarted one after the other, and nobody notices anything."""
    port = host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth")
    production.serve(issuer)
    replicas = production.replicas(issuer, generation, 2)
    servers = "\n    ".join(f"server {replica.address} max_fails=0;" for replica in replicas)
    places = {"server 127.0.0.1:5000 max_fails=0;": servers, "server 127.0.0.1:5001": f"server 127.0.0.1:{issuer.port}"}
    front = production.nginx(issuer, port, production.nginx_site("nginx.conf", port, places))
    before = signer(production, front)
    old_token = front.ask(user="alice").json()["token"]
    registries = [word for replica in replicas for word in ("--registry", f"http://{replica.address}")]

    def restart() -> None:
        for replica in replicas:
            gap = replica.restart()
            print(f"registry {generation} was away for {gap:.2f} s")

    with moving(production, front.address, issuer, (new_client, new_image)) as load:
        assert "The key signs nothing yet" in keys(issuer, "add").succeeded()
        ((_, first), (_, second)) = listed(keys, issuer)
        load.wait_for(2)
        # The registries do not know it yet, and that is found out before anybody is refused.
        assert "does not accept tokens of this key" in keys(issuer, "switch", *registries).failed()
        assert signer(production, front) == before == first
        restart()
        keys(issuer, "switch", *registries).succeeded()
        assert host.wait_until(lambda: {signer(production, front) for _ in range(10)} == {second})
        load.wait_for(2)
        for replica in replicas:
            bearer = {"Authorization": f"Bearer {old_token}"}
            assert production.ask_registry(replica.address, bearer) == 200
        assert "are valid until" in keys(issuer, "retire").failed()
        let_tokens_end(issuer)
        keys(issuer, "retire").succeeded()
        load.wait_for(2)
        restart()
    assert listed(keys, issuer) == [("signs", second)]
    assert production.ask_registry(replicas[0].address, {"Authorization": f"Bearer {old_token}"}) == 401


def manual(heading: str, folder: Path) -> list[str]:
    """The commands of a section of docs/keys.md, with this folder and this user."""
    text = (Path(__file__).parents[3] / "docs" / "keys.md").read_text()
    (section,) = re.findall(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text)
    scripts = re.findall(r"(?s)```sh\n(.*?)```", section)
    # Nobody else serves here: owner and group are whoever runs the tests.
    own = [script.replace("-o root -g root ", "").replace("-o root -g tokenissuer ", "") for script in scripts]
    return [script.replace("--user tokenissuer", "").replace("/etc/tokenissuer", str(folder)) for script in own]


def sign_key(host: Host, folder: Path, number: int) -> None:
    """Make a key whose certificate the authority in the folder signs, as docs/keys.md says."""
    host.program("openssl", "install openssl")
    authority, key = manual("Keys that your own certificate authority signs", folder)
    # `check` looks at what this test has left out: whom the key belongs to is in the manual's words alone.
    key = key.partition("tokenissuer check")[0]
    for script in [authority, key] if number == 1 else [key]:
        host.run("/bin/bash", "-ec", f"cd '{folder}'\n{script}").succeeded()


def test_a_certificate_that_has_ended_is_followed_by_another_key(
    production: Production, host: Host, new_client: Callable[[], Client], generation: int
) -> None:
    """The manual's commands: the registry is restarted in the middle, and what did not start serves again."""
    issuer = production.issuer("set-up")
    private = load_private_key(issuer.folder / "auth.key")
    ended = self_signed_certificate(private, "tokenissuer", time.time() - 3700 * 86400)
    (issuer.folder / "auth.crt").write_bytes(ended.public_bytes(Encoding.PEM))
    serving = ("serve", "--config", str(issuer.config), "--listen", f"127.0.0.1:{issuer.port}")
    assert "the certificate ended on" in host.run(host.tokenissuer(), *serving).failed()
    (replica,) = production.replicas(issuer, generation, 1)
    (script,) = manual("The certificate ends, or has ended", issuer.folder)
    before, restart, after = re.split(r"(?m)^(systemctl restart docker-registry.*\n)", script)
    assert restart
    path = os.pathsep.join([str(Path(host.tokenissuer()).parent), os.environ["PATH"]])
    host.run("/bin/bash", "-ec", before, env={"PATH": path}).succeeded()
    replica.restart()
    after = production.fill_in(after, {"http://127.0.0.1:5000": f"http://{replica.address}"})
    switched, _, check = after.partition("tokenissuer check")
    host.run("/bin/bash", "-ec", switched, env={"PATH": path}).succeeded()
    checked = host.run("/bin/bash", "-ec", f"tokenissuer check{check}", env={"PATH": path})
    assert "certificate ended" not in checked.stdout + checked.stderr
    production.serve(issuer)
    new_client().login(replica.address, "alice", issuer.passwords["alice"]).succeeded()


def test_with_an_authority_of_ones_own_registries_never_change(
    production: Production,
    host: Host,
    keys: Callable[..., Ran],
    new_client: Callable[[], Client],
    new_image: Callable[[], Image],
    generation: int,
) -> None:
    """The registry has the authority's certificate; a new key needs no restart of it."""
    issuer = production.issuer("set-up")
    sign_key(host, issuer.folder, 1)
    production.serve(issuer)
    front = production.direct(issuer)
    ours = (issuer.folder / "auth.crt").read_bytes()
    (issuer.folder / "auth.crt").write_bytes((issuer.folder / "ca.crt").read_bytes())
    (replica,) = production.replicas(issuer, generation, 1)
    (issuer.folder / "auth.crt").write_bytes(ours)
    before = signer(production, front)
    with moving(production, replica.address, issuer, (new_client, new_image)) as load:
        load.wait_for(1)
        sign_key(host, issuer.folder, 2)
        assert host.wait_until(lambda: signer(production, front) != before)
        load.wait_for(2)


def test_a_stolen_key_is_good_for_nothing_after_the_manuals_commands(
    production: Production, host: Host, new_client: Callable[[], Client], generation: int
) -> None:
    """The registry is restarted twice; then a token of the old key is refused although its time is not over."""
    issuer = production.issuer("set-up")
    production.serve(issuer)
    (replica,) = production.replicas(issuer, generation, 1)

    def fresh() -> dict[str, str]:
        return {"Authorization": f"Bearer {production.direct(issuer).ask().json()['token']}"}

    stolen = fresh()
    (script,) = manual("Somebody may have read the key", issuer.folder)
    script = production.fill_in(script, {"http://127.0.0.1:5000": f"http://{replica.address}"})
    path = os.pathsep.join([str(Path(host.tokenissuer()).parent), os.environ["PATH"]])
    for line in script.splitlines():
        assert production.ask_registry(replica.address, stolen) == 200, line
        if line.startswith("#"):
            replica.restart()
        else:
            env = {"PATH": path, "TOKENISSUER_CONFIG": str(issuer.config)}
            host.run("/bin/bash", "-ec", line, env=env).succeeded()
    assert production.ask_registry(replica.address, stolen) == 401
    # The server looks at its files twice a second, and nobody types as fast as this test.
    assert host.wait_until(lambda: production.ask_registry(replica.address, fresh()) == 200)
    new_client().login(replica.address, "alice", issuer.passwords["alice"]).succeeded()


def test_a_registry_with_a_jwk_set_follows_too(
    production: Production, host: Host, keys: Callable[..., Ran], new_client: Callable[[], Client]
) -> None:
    """The set has the next key before it signs."""
    issuer = production.issuer("set-up")
    with issuer.config.open("a") as config:
        config.write('\n[signing.key_forms]\ncontainer_registry = "thumbprint"\n')
    production.serve(issuer)
    front = production.direct(issuer)
    (replica,) = production.replicas(issuer, 3, 1, "jwks")
    before = signer(production, front)
    keys(issuer, "add").succeeded()
    assert host.wait_until(lambda: len(front.request("GET", "/.well-known/jwks.json").json()["keys"]) == 2)
    replica.restart()
    keys(issuer, "switch", "--registry", f"http://{replica.address}").succeeded()
    assert host.wait_until(lambda: signer(production, front) != before)
    new_client().login(replica.address, "alice", issuer.passwords["alice"]).succeeded()


def test_the_commands_refuse_what_would_hurt_and_show_no_key(
    production: Production, host: Host, keys: Callable[..., Ran]
) -> None:
    """One line each, and the files stay as they were; a key is never printed, and only its owner may read it."""
    issuer = production.issuer("set-up")
    bundle = issuer.folder / "auth.crt"
    key = (issuer.folder / "auth.key").read_bytes()
    assert "keys add" in keys(issuer, "switch", "--unproven").failed()
    assert "there is no previous key" in keys(issuer, "retire").failed()
    bundle.write_text(f"# a note of ours\n{bundle.read_text()}")
    output = keys(issuer, "add").succeeded()
    assert bundle.read_text().startswith("# a note of ours\n")
    assert "already exists" in keys(issuer, "add").failed()
    assert "--registry" in keys(issuer, "switch").failed()
    nobody = f"http://127.0.0.1:{host.free_port()}"
    assert "does not answer" in keys(issuer, "switch", "--registry", nobody).failed()
    production.serve(issuer)
    assert (
        "is not a registry that asks for tokens"
        in keys(issuer, "switch", "--registry", f"http://127.0.0.1:{issuer.port}").failed()
    )
    assert (issuer.folder / "auth.key").read_bytes() == key
    for path in issuer.folder.glob("auth.key*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        body = "".join(path.read_text().splitlines()[1:-1])
        assert body not in output.replace("\n", "")
    # A next key that is not wanted after all.
    assert "keys retire --next" in keys(issuer, "retire").failed()
    keys(issuer, "retire", "--next").succeeded()
    assert bundle.read_text().count("BEGIN CERTIFICATE") == 1
    assert bundle.read_text().startswith("# a note of ours\n")
    assert keys(issuer, "add").code == 0
    keys(issuer, "switch", "--unproven").succeeded()
    assert (issuer.folder / "auth.key.previous").read_bytes() == key
    keys(issuer, "add").succeeded()
    assert "keys retire" in keys(issuer, "switch", "--unproven").failed()
    assert not re.search(r"PRIVATE|Traceback", keys(issuer, "list").succeeded())


def test_a_copy_made_by_systemd_is_never_changed(production: Production, keys: Callable[..., Ran]) -> None:
    """The file that the copy is made of is named instead."""
    issuer = production.issuer("set-up")
    copy = "/run/credentials/tokenissuer.service/auth.key"
    issuer.config.write_text(issuer.config.read_text().replace('key = "auth.key"', f'key = "{copy}"'))
    assert "--key" in keys(issuer, "add").failed()
    source = str(issuer.folder / "auth.key")
    keys(issuer, "add", "--key", source).succeeded()
    output = keys(issuer, "switch", "--unproven", "--key", source).succeeded()
    assert "systemctl restart tokenissuer" in output


def test_the_old_key_stays_while_a_service_has_a_copy_of_it(production: Production, keys: Callable[..., Ran]) -> None:
    """A service that was not restarted signs with it still."""
    issuer = production.issuer("set-up")
    source, copy = issuer.folder / "auth.key", issuer.folder / "copy.key"
    copy.write_bytes(source.read_bytes())
    issuer.config.write_text(issuer.config.read_text().replace('key = "auth.key"', 'key = "copy.key"'))
    named = ("--key", str(source))
    keys(issuer, "add", *named).succeeded()
    keys(issuer, "switch", "--unproven", *named).succeeded()
    let_tokens_end(issuer)
    assert "still signs with" in keys(issuer, "retire", *named).failed()
    copy.write_bytes(source.read_bytes())
    assert "are valid until" in keys(issuer, "retire", *named).failed()
    let_tokens_end(issuer)
    keys(issuer, "retire", *named).succeeded()
