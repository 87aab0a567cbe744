"""The Apache site of conf/, with the real Apache and mod_wsgi."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.integration.production.conftest import NETWORK_RULES

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Image
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration


@pytest.fixture(params=[2, 3], ids=["registry2", "registry3"])
def front(request: pytest.FixtureRequest, production: Production) -> Front:
    """Apache, with a registry of each generation behind it."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth", rules=NETWORK_RULES)
    site = production.registry(issuer, request.param)
    return production.apache(issuer, port, site.registry)


def test_the_site_serves_registry_and_issuer(
    production: Production, front: Front, new_client: Callable[[], Client], new_image: Callable[[], Image]
) -> None:
    """Everything that clients and attackers do, in one Apache: it takes a moment to start."""
    production.flow(front, new_client(), new_image())
    # Forms, in one piece and in chunks of no known length.
    for chunked in (False, True):
        answer = front.post("repository:alice/app:pull", "alice", chunked=chunked)
        assert answer.status == 200, answer
        assert production.claims(answer.json()["access_token"])["access"][0]["name"] == "alice/app"
        assert front.post("", "alice", chunked=chunked, password="wrong").status == 401
    # Passwords get through to the issuer: who sends a wrong one is not taken for nobody.
    assert front.ask(user="alice", password="wrong").status == 401
    assert front.ask("repository:alice/app:pull").status == 403
    # A request as long as that of an image with many mount sources.
    many = [f"repository:alice/{'x' * 90}{number}:pull" for number in range(150)]
    assert front.ask(*many, user="alice").json()["scope"].startswith(many[0])
    # Nothing else of the issuer is there.
    for path in ("/", "/token", "/healthz", "/jwt/auth/healthz", "/jwt/auth/token", "/jwt/auth/.well-known/jwks.json"):
        assert front.request("GET", path).status in (403, 404), path
    # Nobody's word about an address counts.
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X_Forwarded_For"):
        spoof = {name: "for=127.0.0.2" if name == "Forwarded" else "127.0.0.2"}
        assert front.ask("repository:inside/app:pull", user="alice", headers=spoof).json()["scope"] == ""
    inside = front.ask("repository:inside/app:pull", user="alice", source="127.0.0.2")
    assert inside.json()["scope"] == "repository:inside/app:pull"
    # One line for each request, in Apache's own log.
    server = front.server
    assert server is not None
    assert '"account": "alice"' in server.output()
    assert front.issuer.passwords["alice"] not in server.output()
    # A change of the rules holds within seconds, in every process.
    front.issuer.config.write_text(front.issuer.config.read_text().replace('"127.0.0.2"', '"127.0.0.1"'))
    changed = [0]

    def follows() -> bool:
        answer = front.ask("repository:inside/app:pull", user="alice")
        assert answer.status == 200
        changed[0] = changed[0] + 1 if answer.json()["scope"] else 0
        return changed[0] == 20

    assert production.host.wait_until(follows)
    # Nonsense changes nothing, and one line says so.
    front.issuer.config.write_text("nonsense")
    assert production.host.wait_until(lambda: front.ask().status == 200 and "not TOML" in server.output())
    assert front.ask("repository:inside/app:pull", user="alice").json()["scope"]
