"""Real clients against real registries that trust the issuer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokenissuer.errors import FORBIDDEN

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Image, Site

pytestmark = pytest.mark.integration

NewClient = Callable[[], "Client"]
LoggedIn = Callable[[str], "Client"]
NewImage = Callable[[], "Image"]


def test_login_push_pull_and_delete_work_with_every_registry_key_and_way_of_trust(
    every_site: Site, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """The main job, end to end."""
    client, image = new_client(), new_image()
    reference = every_site.reference(every_site.repository())
    client.login(every_site.registry, "alice", every_site.issuer.passwords["alice"]).succeeded()
    client.push(image, reference).succeeded()
    client.pull(reference, tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    client.skopeo("delete", "--tls-verify=false", f"docker://{reference}").succeeded()
    assert "manifest unknown" in client.pull(reference, tmp_path / "gone").failed()


def test_a_right_password_logs_in(site: Site, new_client: NewClient) -> None:
    """Docker keeps the password, or the identity token where the issuer gives one."""
    client, password = new_client(), site.issuer.passwords["alice"]
    assert "Login Succeeded" in client.login(site.registry, "alice", password).succeeded()
    stored = client.stored_logins()[site.registry]
    user, _, kept = base64.b64decode(stored["auth"]).decode().partition(":")
    assert user == "alice"
    if "[refresh]" in site.issuer.config.read_text():
        assert stored["identitytoken"]
        assert kept == ""
    else:
        assert stored.keys() == {"auth"}
        assert kept == password


@pytest.mark.parametrize("user", ["alice", "nobody-of-that-name"])
def test_a_wrong_password_is_refused_with_the_issuers_own_words(site: Site, new_client: NewClient, user: str) -> None:
    """Docker shows the sentence of the token endpoint, the same for known and unknown names, and stores nothing."""
    client = new_client()
    answer = site.issuer.ask(user=user, password="wrong")
    assert answer.status == 401
    sentence = answer.json()["errors"][0]["message"]
    assert f"unauthorized: {sentence}" in client.login(site.registry, user, "wrong").failed()
    assert not client.stored_logins()


def test_after_logout_the_registry_is_closed_again(site: Site, logged_in: LoggedIn, new_image: NewImage) -> None:
    """`docker logout` takes effect for all that share docker's configuration."""
    client, image = logged_in("alice"), new_image()
    client.push(image, site.reference(site.repository())).succeeded()
    client.docker("logout", site.registry).succeeded()
    client.push(image, site.reference(site.repository())).failed()


def test_what_skopeo_pushes_comes_back_byte_for_byte(
    site: Site, logged_in: LoggedIn, new_image: NewImage, tmp_path: Path
) -> None:
    """Manifest, configuration and layer are compared."""
    client, image = logged_in("alice"), new_image()
    reference = site.reference(site.repository())
    client.push(image, reference).succeeded()
    client.pull(reference, tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")


def test_what_crane_pushes_comes_back_byte_for_byte(
    site: Site, logged_in: LoggedIn, new_image: NewImage, tmp_path: Path
) -> None:
    """Crane reads the login that docker stored."""
    client, image = logged_in("alice"), new_image()
    reference = site.reference(site.repository())
    client.crane("push", str(image.folder), reference).succeeded()
    assert client.crane("digest", reference).succeeded().strip() == image.digest
    client.crane("pull", "--format=oci", reference, str(tmp_path / "pulled")).succeeded()
    assert image.is_in(tmp_path / "pulled")


def test_tags_are_listed_to_those_who_may_pull(site: Site, logged_in: LoggedIn, new_image: NewImage) -> None:
    """Skopeo lists tags for bob, whose only right is to pull."""
    image, repository = new_image(), site.repository()
    for tag in ("v1", "v2"):
        logged_in("alice").push(image, site.reference(repository, tag)).succeeded()
    listing = logged_in("bob").skopeo("list-tags", "--tls-verify=false", f"docker://{site.registry}/{repository}")
    assert json.loads(listing.succeeded())["Tags"] == ["v1", "v2"]


def test_skopeo_deletes_for_those_who_may(site: Site, logged_in: LoggedIn, new_image: NewImage, tmp_path: Path) -> None:
    """Skopeo asks for the action `*`, which stands for all that the account may do."""
    client, image = logged_in("alice"), new_image()
    reference = site.reference(site.repository())
    client.push(image, reference).succeeded()
    logged_in("bob").skopeo("delete", "--tls-verify=false", f"docker://{reference}").failed()
    client.pull(reference, tmp_path / "still-there").succeeded()
    client.skopeo("delete", "--tls-verify=false", f"docker://{reference}").succeeded()
    assert "manifest unknown" in client.pull(reference, tmp_path / "gone").failed()


def test_crane_deletes_for_those_who_may(site: Site, logged_in: LoggedIn, new_image: NewImage) -> None:
    """Crane names the actions it wants."""
    client, image = logged_in("alice"), new_image()
    repository = site.repository()
    client.push(image, site.reference(repository)).succeeded()
    manifest = f"{site.registry}/{repository}@{image.digest}"
    logged_in("bob").crane("delete", manifest).failed()
    client.crane("delete", manifest).succeeded()
    client.crane("manifest", manifest).failed()


def test_the_catalog_is_shown_to_those_who_may_see_it(site: Site, logged_in: LoggedIn, new_image: NewImage) -> None:
    """The catalog is a right of its own, asked for as `registry:catalog:*`."""
    repository = site.repository()
    logged_in("alice").push(new_image(), site.reference(repository)).succeeded()
    assert repository in logged_in("alice").crane("catalog", site.registry).succeeded().split()
    assert "authentication required" in logged_in("bob").crane("catalog", site.registry).failed()


def test_the_catalog_is_shown_for_a_token_asked_for_by_hand(
    site: Site, logged_in: LoggedIn, new_image: NewImage
) -> None:
    """As `curl` would do it."""
    repository = site.repository()
    logged_in("alice").push(new_image(), site.reference(repository)).succeeded()
    shown = site.request("GET", "/v2/_catalog?n=1000", site.issuer.token("registry:catalog:*", user="alice"))
    assert shown.status == 200
    assert repository in shown.json()["repositories"]
    refused = site.request("GET", "/v2/_catalog", site.issuer.token("registry:catalog:*", user="bob"))
    assert refused.status == 401


def test_crane_copies_between_repositories_by_mounting(site: Site, logged_in: LoggedIn, new_image: NewImage) -> None:
    """One token for two repositories: nothing is sent twice."""
    client, image = logged_in("alice"), new_image()
    source, target = site.reference(site.repository()), site.reference(site.repository("alice"))
    client.push(image, source).succeeded()
    copied = client.crane("copy", source, target)
    copied.succeeded()
    assert "mounted blob" in copied.stderr
    assert client.crane("digest", target).succeeded().strip() == image.digest


def test_a_mount_from_a_repository_one_may_not_read_gives_nothing_away(
    site: Site, logged_in: LoggedIn, new_image: NewImage
) -> None:
    """Carol knows the digest of alice's layer and still cannot bring it into her own repository."""
    image, source, target = new_image(), site.repository(), site.repository("carol")
    logged_in("alice").push(image, site.reference(source)).succeeded()
    token = site.issuer.token(f"repository:{target}:pull,push", f"repository:{source}:pull", user="carol")
    answer = site.request("POST", f"/v2/{target}/blobs/uploads/?mount={image.digest}&from={source}", token)
    assert answer.status == 401


def test_one_who_may_only_pull_is_refused_a_push(
    site: Site, logged_in: LoggedIn, new_image: NewImage, tmp_path: Path
) -> None:
    """Bob can pull from the team's repositories, and no more."""
    image, repository = new_image(), site.repository()
    logged_in("alice").push(image, site.reference(repository)).succeeded()
    bob = logged_in("bob")
    bob.pull(site.reference(repository), tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    assert (
        "denied: requested access to the resource is denied"
        in bob.push(new_image(), site.reference(repository, "v2")).failed()
    )
    bob.crane("push", str(new_image().folder), site.reference(repository, "v2")).failed()
    assert json.loads(
        bob.skopeo("list-tags", "--tls-verify=false", f"docker://{site.registry}/{repository}").succeeded()
    )["Tags"] == ["v1"]


def test_everyone_has_a_namespace_that_is_closed_to_others(
    site: Site, logged_in: LoggedIn, new_image: NewImage, tmp_path: Path
) -> None:
    """`{account}/**` opens carol's namespace to carol alone."""
    reference = site.reference(site.repository("carol"))
    logged_in("carol").push(new_image(), reference).succeeded()
    logged_in("carol").pull(reference, tmp_path / "own").succeeded()
    for other in ("alice", "bob"):
        logged_in(other).push(new_image(), reference).failed()
        logged_in(other).pull(reference, tmp_path / other).failed()


def test_a_public_repository_is_pulled_without_login(
    site: Site, logged_in: LoggedIn, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """Open to read, closed to write."""
    image, reference = new_image(), site.reference(site.repository("public"))
    logged_in("alice").push(image, reference).succeeded()
    anonymous = new_client()
    anonymous.pull(reference, tmp_path / "pulled").succeeded()
    assert image.is_in(tmp_path / "pulled")
    anonymous.push(new_image(), reference).failed()


def test_crane_pulls_a_public_repository_without_login(
    site: Site, logged_in: LoggedIn, new_client: NewClient, new_image: NewImage
) -> None:
    """Crane asks for a token without credentials."""
    image, reference = new_image(), site.reference(site.repository("public"))
    logged_in("alice").push(image, reference).succeeded()
    assert new_client().crane("digest", reference).succeeded().strip() == image.digest


def test_a_wrong_password_does_not_fall_back_to_what_everyone_may(
    site: Site, logged_in: LoggedIn, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """Not even where no password would be needed."""
    reference = site.reference(site.repository("public"))
    logged_in("alice").push(new_image(), reference).succeeded()
    refused = new_client().pull(reference, tmp_path / "pulled", "--src-creds", "alice:wrong")
    assert "unauthorized" in refused.failed()


def test_crane_without_login_is_told_denied_access_forbidden(
    site: Site, new_client: NewClient, new_image: NewImage
) -> None:
    """Crane prints the token endpoint's words, as docker does."""
    refused = new_client().crane("push", str(new_image().folder), site.reference(site.repository()))
    assert "DENIED: access forbidden" in refused.failed()


def test_skopeo_without_login_is_refused_at_the_token_endpoint(
    site: Site, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """Skopeo shows no more than the status."""
    reference = site.reference(site.repository())
    assert "403 (Forbidden)" in new_client().push(new_image(), reference).failed()
    assert "403 (Forbidden)" in new_client().pull(reference, tmp_path / "pulled").failed()


def test_without_login_the_token_endpoint_says_denied_access_forbidden(site: Site) -> None:
    """The words `docker push` shows as `denied: access forbidden`; an engine would be needed to see it do so."""
    answer = site.issuer.ask(f"repository:{site.repository()}:pull,push")
    assert answer.status == 403
    error = answer.json()["errors"][0]
    assert (error["code"], error["message"]) == ("DENIED", FORBIDDEN)


def test_a_token_for_one_repository_opens_no_other(site: Site, logged_in: LoggedIn, new_image: NewImage) -> None:
    """The registry holds clients to what was granted."""
    one, other = site.repository(), site.repository()
    for repository in (one, other):
        logged_in("alice").push(new_image(), site.reference(repository)).succeeded()
    token = site.issuer.token(f"repository:{one}:pull", user="alice")
    assert site.request("GET", f"/v2/{one}/tags/list", token).status == 200
    assert site.request("GET", f"/v2/{other}/tags/list", token).status == 401
    assert site.request("DELETE", f"/v2/{one}/manifests/sha256:{'0' * 64}", token).status == 401


def test_podman_style_logins_work_without_docker(site: Site, new_client: NewClient, new_image: NewImage) -> None:
    """`skopeo login` keeps its own file of logins."""
    client = new_client()
    authfile = f"--authfile={client.home / 'auth.json'}"
    password = site.issuer.passwords["alice"]
    wrong = client.skopeo("login", authfile, "--tls-verify=false", "-u", "alice", "-p", "wrong", site.registry)
    assert "invalid username/password" in wrong.failed()
    client.skopeo("login", authfile, "--tls-verify=false", "-u", "alice", "-p", password, site.registry).succeeded()
    client.push(new_image(), site.reference(site.repository()), authfile).succeeded()
