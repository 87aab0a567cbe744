"""`docker login` without a password on disk: real clients use the refresh token, and end with it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Site, Sites

pytestmark = pytest.mark.integration

NewClient = Callable[[], "Client"]
NewImage = Callable[[], "Image"]
ENDED = "this login has ended; log in again"


BOTH_GENERATIONS = pytest.mark.parametrize("fresh", [2, 3], ids=["registry2", "registry3"], indirect=True)


@pytest.fixture
def fresh(request: pytest.FixtureRequest, own_sites: Sites) -> Site:
    """A registry and an issuer as `init` made it, for one test alone."""
    issuer = own_sites.new_issuer("set-up")
    site = own_sites.registry(issuer, getattr(request, "param", 2))
    issuer.start()
    return site


@pytest.fixture
def logged_in_client(fresh: Site, new_client: NewClient) -> Client:
    """The machine of alice, on which `docker login` has been done."""
    client = new_client()
    client.login(fresh.registry, "alice", fresh.issuer.first_password).succeeded()
    return client


def sessions(site: Site, host: Host, *arguments: str) -> str:
    """Run `tokenissuer sessions`."""
    return host.run(host.tokenissuer(), "sessions", *arguments, "--config", str(site.issuer.config)).succeeded()


@BOTH_GENERATIONS
def test_docker_login_leaves_no_password_on_disk(fresh: Site, logged_in_client: Client) -> None:
    """What docker keeps is a refresh token with our prefix; the password is in no file of its machine."""
    kept = logged_in_client.stored_logins()[fresh.registry]
    assert kept["identitytoken"].startswith("tir_")
    assert len(kept["identitytoken"]) < 200
    for path in logged_in_client.home.rglob("*"):
        if path.is_file():
            assert fresh.issuer.first_password not in path.read_text()
    # `auth` is base64 of "alice:".
    assert kept["auth"] == "YWxpY2U6"


@BOTH_GENERATIONS
def test_skopeo_pushes_pulls_lists_and_deletes_with_it(
    fresh: Site, logged_in_client: Client, new_image: NewImage, tmp_path: Path
) -> None:
    """By a POST in chunks without a length."""
    client, image = logged_in_client, new_image()
    reference = fresh.reference("team/app")
    client.push(image, reference).succeeded()
    client.pull(reference, tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    assert "v1" in client.skopeo("list-tags", "--tls-verify=false", f"docker://{fresh.registry}/team/app").succeeded()
    client.skopeo("delete", "--tls-verify=false", f"docker://{reference}").succeeded()


@BOTH_GENERATIONS
def test_crane_copies_and_lists_with_it(
    fresh: Site, logged_in_client: Client, new_image: NewImage, tmp_path: Path
) -> None:
    """Over several repositories, mounts included."""
    client = logged_in_client
    client.push(new_image(), fresh.reference("team/app")).succeeded()
    client.crane("copy", fresh.reference("team/app"), fresh.reference("team/other")).succeeded()
    assert client.crane("ls", f"{fresh.registry}/team/other").succeeded().split() == ["v1"]
    assert "team/other" in client.crane("catalog", fresh.registry).succeeded()


def test_a_registry_takes_no_refresh_token_for_an_access_token(fresh: Site, logged_in_client: Client) -> None:
    """Only what it is exchanged for opens anything."""
    kept = logged_in_client.stored_logins()[fresh.registry]["identitytoken"]
    assert fresh.request("GET", "/v2/", kept).status == 401
    assert fresh.request("GET", "/v2/", fresh.issuer.token(user="alice")).status == 200


def test_logging_in_again_with_what_docker_keeps_is_not_needed(fresh: Site, logged_in_client: Client) -> None:
    """`docker login` with a wrong password does not spoil the good login that is kept."""
    before = logged_in_client.stored_logins()
    logged_in_client.login(fresh.registry, "alice", "wrong").failed()
    assert logged_in_client.stored_logins() == before


def test_a_changed_password_ends_the_login(
    fresh: Site, logged_in_client: Client, new_image: NewImage, new_client: NewClient, host: Host
) -> None:
    """The next use says to log in again, the list shows why, and the new password logs in."""
    reference = fresh.reference("team/app")
    logged_in_client.push(new_image(), reference).succeeded()
    fresh.issuer.set_password("alice", "another password")
    assert "ended: the password has changed" in sessions(fresh, host, "list")
    assert host.wait_until(lambda: fresh.issuer.ask(user="alice", password="another password").status == 200)
    assert ENDED in logged_in_client.push(new_image(), reference).failed()
    again = new_client()
    again.login(fresh.registry, "alice", "another password").succeeded()
    again.push(new_image(), reference).succeeded()


def test_a_removed_account_ends_the_login(
    fresh: Site, logged_in_client: Client, new_image: NewImage, host: Host
) -> None:
    """And does not come back when the line does."""
    users = fresh.issuer.folder / "users.htpasswd"
    line = users.read_text()
    users.write_text("# nobody\n")
    assert host.wait_until(lambda: fresh.issuer.ask(user="alice", password=fresh.issuer.first_password).status == 401)
    assert ENDED in logged_in_client.push(new_image(), fresh.reference("team/app")).failed()
    users.write_text(line)
    assert ENDED in logged_in_client.push(new_image(), fresh.reference("team/app")).failed()
    assert "ended: the name is not in the password file" in sessions(fresh, host, "list")


def test_the_administrator_lists_and_revokes(
    fresh: Site, logged_in_client: Client, new_client: NewClient, new_image: NewImage, host: Host
) -> None:
    """By account, by client, by id; the list never shows the token."""
    other = new_client()
    other.login(fresh.registry, "alice", fresh.issuer.first_password).succeeded()
    listed = sessions(fresh, host, "list")
    head, *rows = listed.splitlines()
    assert " ".join(head.split()) == "ID ACCOUNT BACKEND SERVICE CLIENT LOGIN FROM LAST USED FROM STATE"
    assert len(rows) == 2
    assert all(row.split()[1:5] == ["alice", "htpasswd", "container_registry", "docker"] for row in rows)
    assert all("127.0.0.1" in row and row.endswith("valid") for row in rows)
    assert "tir_" not in listed
    assert sessions(fresh, host, "list", "--account", "bob").splitlines()[1:] == []
    assert sessions(fresh, host, "list", "--client", "docker").splitlines()[1:] == rows
    assert sessions(fresh, host, "list", "--older-than", "1").splitlines()[1:] == []
    newest = rows[0].split()[0]
    assert "Revoked: 1." in sessions(fresh, host, "revoke", newest)
    assert ENDED in other.push(new_image(), fresh.reference("team/app")).failed()
    logged_in_client.push(new_image(), fresh.reference("team/app")).succeeded()
    assert "Revoked: 1." in sessions(fresh, host, "revoke", "--account", "alice", "--unused-for", "0")
    assert ENDED in logged_in_client.push(new_image(), fresh.reference("team/app")).failed()
    assert sessions(fresh, host, "list").count("ended: revoked by the administrator") == 2


def test_revoking_wants_it_said_what(fresh: Site, logged_in_client: Client, host: Host) -> None:
    """A forgotten option ends nobody's login; an unknown id is an error."""
    config = str(fresh.issuer.config)
    said = host.run(host.tokenissuer(), "sessions", "revoke", "--config", config).failed()
    assert "name the sessions" in said
    assert (
        "no such session: 123" in host.run(host.tokenissuer(), "sessions", "revoke", "123", "--config", config).failed()
    )
    assert sessions(fresh, host, "list").rstrip().endswith("valid")


def test_the_restarted_issuer_still_knows_it(fresh: Site, logged_in_client: Client, new_image: NewImage) -> None:
    """Even after kill -9."""
    server = fresh.issuer.server
    assert server is not None
    server.stop(signal.SIGKILL)
    fresh.issuer.start()
    logged_in_client.push(new_image(), fresh.reference("team/app")).succeeded()


def test_without_the_table_docker_keeps_the_password(
    own_sites: Sites, new_client: NewClient, new_image: NewImage
) -> None:
    """And everything works as before."""
    issuer = own_sites.new_issuer("set-up")
    text = issuer.config.read_text()
    start, end = text.index("\n[refresh]\n"), text.index("\n# Access rules.")
    issuer.config.write_text(text[:start] + text[end:])
    site = own_sites.registry(issuer, 2)
    issuer.start()
    client = new_client()
    client.login(site.registry, "alice", issuer.first_password).succeeded()
    assert client.stored_logins()[site.registry].keys() == {"auth"}
    client.push(new_image(), site.reference("team/app")).succeeded()


def test_no_refresh_token_is_in_the_log(fresh: Site, logged_in_client: Client, new_image: NewImage) -> None:
    """Nor in the store's files."""
    client = logged_in_client
    client.push(new_image(), fresh.reference("team/app")).succeeded()
    token = json.loads((client.docker_config / "config.json").read_text())["auths"][fresh.registry]["identitytoken"]
    for path in fresh.issuer.folder.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
