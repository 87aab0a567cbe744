"""docs/troubleshooting.md quotes what clients and registries say: here they say it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Issuer
    from tests.integration.production.conftest import Production, Replica

pytestmark = pytest.mark.integration

#: In one line: a quotation may go over the end of a line of the page.
PAGE = " ".join((Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text().split())


def quoted(words: str, said: str) -> None:
    """The page has these words, and so has what was said."""
    assert words in PAGE, words
    assert words in said.replace('\\"', '"'), said


def logins(client: Client, replica: Replica, issuer: Issuer) -> tuple[str, str]:
    """What docker and skopeo say to the right password, each with 'failed' as its outcome."""
    password = issuer.passwords["alice"]
    docker = client.login(replica.address, "alice", password).failed()
    words = ("--tls-verify=false", "-u", "alice", "-p", password, "--authfile", str(client.home / "auth.json"))
    return docker, client.skopeo("login", *words, replica.address).failed()


@pytest.fixture(params=[2, 3], ids=["registry2", "registry3"])
def generation(request: pytest.FixtureRequest) -> int:
    """The two generations of the registry."""
    number: int = request.param
    return number


def edit(issuer: Issuer, pattern: str, line: str) -> None:
    """Change a line of the registry's file."""
    file = issuer.folder / "registry.yml"
    text, count = re.subn(pattern, line, file.read_text())
    assert count == 1
    file.write_text(text)


def test_another_certificate(production: Production, new_client: Callable[[], Client], generation: int) -> None:
    """The registry has that of another key."""
    issuer, other = production.issuer("set-up"), production.issuer("other")
    production.serve(issuer)
    edit(issuer, "rootcertbundle: .*", f"rootcertbundle: {other.folder / 'auth.crt'}")
    (replica,) = production.replicas(issuer, generation, 1)
    docker, skopeo = logins(new_client(), replica, issuer)
    quoted("failed with status: 401 Unauthorized", docker)
    quoted("invalid username/password", skopeo)
    assert replica.server is not None
    log = replica.server.output()
    before = {2: "unable to verify certificate chain", 3: "failed to verify token"}[generation]
    quoted(f"{before}: x509: certificate signed by unknown authority", log)
    quoted("invalid token", log)


def test_another_issuer(production: Production, new_client: Callable[[], Client], generation: int) -> None:
    """The names differ."""
    issuer = production.issuer("set-up")
    production.serve(issuer)
    edit(issuer, "issuer: .*", "issuer: somebody-else")
    (replica,) = production.replicas(issuer, generation, 1)
    _, skopeo = logins(new_client(), replica, issuer)
    quoted("invalid username/password", skopeo)
    assert replica.server is not None
    quoted("token from untrusted issuer", replica.server.output())


def test_another_service(production: Production, new_client: Callable[[], Client]) -> None:
    """The registry has a name that is not served."""
    issuer = production.issuer("set-up")
    production.serve(issuer)
    edit(issuer, "service: .*", "service: foo")
    (replica,) = production.replicas(issuer, 3, 1)
    docker, skopeo = logins(new_client(), replica, issuer)
    quoted("unknown service 'foo'; served here: ", docker)
    quoted("invalid status code from registry 400", skopeo)
    quoted("Requesting bearer token", skopeo)


def test_another_path(production: Production, new_client: Callable[[], Client]) -> None:
    """The realm leads to a page that is not there."""
    issuer = production.issuer("set-up")
    production.serve(issuer)
    edit(issuer, "realm: .*", f"realm: http://localhost:{issuer.port}/nothing")
    (replica,) = production.replicas(issuer, 3, 1)
    docker, skopeo = logins(new_client(), replica, issuer)
    quoted("the token server has no page ", docker)
    assert "Requesting bearer token: invalid status code from registry 404" in skopeo


def test_a_token_server_that_cannot_answer(production: Production, new_client: Callable[[], Client]) -> None:
    """Its directory is away."""
    issuer = production.issuer("set-up")
    (issuer.folder / "secret").write_text("secret")
    text = issuer.config.read_text()
    away = '[[backends]]\ntype = "ldap"\nservers = ["ldaps://127.0.0.1:9"]\n[backends.user]\nbase = "dc=example"\n'
    text, count = re.subn(r'(?ms)^\[\[backends\]\]\ntype = "htpasswd"\n.*?(?=^\[)', away, text)
    assert count == 1
    issuer.config.write_text(text)
    production.serve(issuer)
    (replica,) = production.replicas(issuer, 3, 1)
    docker, skopeo = logins(new_client(), replica, issuer)
    quoted("received unexpected HTTP status: 503 Service Unavailable", docker)
    assert "Requesting bearer token: invalid status code from registry 503" in skopeo
