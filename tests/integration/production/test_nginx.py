"""The nginx sites of conf/, with the real nginx."""

from __future__ import annotations

import posixpath
import re
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from tests.integration.production.conftest import NETWORK_RULES

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Image, Issuer
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration


def one_host(production: Production, issuer: Issuer, port: int, registry: str, *servers: int) -> str:
    """The site with registry and issuer under one name."""
    listed = "\n    ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in servers or (issuer.port,))
    places = {"server 127.0.0.1:5000 ": f"server {registry} ", "server 127.0.0.1:5001 max_fails=0;": listed}
    return production.nginx_site("nginx.conf", port, places)


@pytest.fixture
def front(production: Production) -> Front:
    """nginx, in front of an issuer and nothing that could be the registry."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth", rules=NETWORK_RULES)
    production.serve(issuer)
    return production.nginx(issuer, port, one_host(production, issuer, port, "127.0.0.1:9"))


@pytest.mark.parametrize("generation", [2, 3], ids=["registry2", "registry3"])
def test_login_push_pull_and_delete_over_https(
    production: Production, new_client: Callable[[], Client], new_image: Callable[[], Image], generation: int
) -> None:
    """The site as it is: everything under https://registry.example.com."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth")
    production.serve(issuer)
    site = production.registry(issuer, generation)
    front = production.nginx(issuer, port, one_host(production, issuer, port, site.registry))
    production.flow(front, new_client(), new_image())
    for chunked in (True, False):
        answer = front.post("repository:alice/app:pull", "alice", chunked=chunked)
        assert production.claims(answer.json()["access_token"])["access"][0]["name"] == "alice/app", answer


def test_the_issuer_on_a_host_of_its_own(
    production: Production, new_client: Callable[[], Client], new_image: Callable[[], Image]
) -> None:
    """Registry and issuer have a name each; here 127.0.0.1 and localhost."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://localhost:{port}/token")
    production.serve(issuer)
    site = production.registry(issuer, 2)
    own_host = production.nginx_site(
        "nginx-auth-host.conf", port, {"http://127.0.0.1:5001/": f"http://127.0.0.1:{issuer.port}/"}, "localhost"
    )
    registry = one_host(production, issuer, port, site.registry)
    front = production.nginx(issuer, port, registry, own_host)
    production.flow(front, new_client(), new_image())
    by_name = {"Host": f"localhost:{port}"}
    assert front.request("GET", "/token", by_name).status == 200
    assert front.request("GET", "/.well-known/jwks.json", by_name).json()["keys"]
    for path in ("/", "/healthz", "/jwt/auth", "/v2/", "/token/x", "/token/../healthz"):
        assert front.request("GET", path, by_name).status == 404, path


def exchange(front: Front, target: str, headers: str = "") -> bytes:
    """The answer to a request written letter by letter: libraries would tidy the path up."""
    assert front.authority is not None
    trusting = ssl.create_default_context(cafile=str(front.authority.certificate))
    with (
        socket.create_connection(("127.0.0.1", front.port), 10) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        text = f"GET {target} HTTP/1.1\r\nHost: {front.address}\r\nConnection: close\r\n{headers}\r\n"
        connection.sendall(text.encode("latin-1"))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_nothing_but_its_place_of_the_issuer_can_be_reached(front: Front) -> None:
    """However the path is written: neither its other pages nor tokens by another name."""
    assert b'"token"' in exchange(front, "/jwt/auth")
    roots = ["/token", "/healthz", "/revoke", "/.well-known/jwks.json", "/auth", "/auth/token"]
    ways = ["{}", "/jwt/auth{}", "/jwt/auth/..{}", "/jwt/auth/../..{}", "/v2/..{}", "/v2/%2e%2e{}", "/v2/%2E%2E%2f{}"]
    ways += ["//{}", "/jwt/auth;{}", "/jwt/auth%00{}", "/jwt/auth%3f{}", "/jwt/auth%2f..{}", "http://127.0.0.1:5001{}"]
    for way in ways:
        for root in roots:
            if posixpath.normpath(unquote(way.format(root))) == "/jwt/auth":
                continue
            answer = exchange(front, way.format(root))
            status = answer.split(b" ", 2)[1]
            # 502 is the registry, which is not there.
            assert status in (b"404", b"400", b"502"), (way.format(root), answer)
            assert b'"token"' not in answer
            assert b'"keys"' not in answer
            assert b'"up"' not in answer


SPOOFS = [
    {},
    {"X-Forwarded-For": "127.0.0.2"},
    {"X-Forwarded-For": "127.0.0.2, 127.0.0.1"},
    {"X-Real-IP": "127.0.0.2"},
    {"Forwarded": "for=127.0.0.2"},
    {"Forwarded": 'for="127.0.0.2', "X-Forwarded-For": "127.0.0.2"},
    {"X_Forwarded_For": "127.0.0.2"},
    {"x-forwarded-for": "127.0.0.2, 127.0.0.2"},
    {"Client-IP": "127.0.0.2", "True-Client-IP": "127.0.0.2", "CF-Connecting-IP": "127.0.0.2"},
]


def may(front: Front, repository: str, source: str, headers: dict[str, str]) -> bool:
    """Whether alice, calling from there, may pull."""
    answer = front.ask(f"repository:{repository}:pull", user="alice", source=source, headers=headers)
    assert answer.status == 200, answer
    return bool(answer.json()["scope"])


def test_forged_headers_change_nothing_behind_nginx(front: Front) -> None:
    """Who is outside stays outside, who is denied stays denied, who is inside stays inside."""
    for spoof in SPOOFS:
        assert not may(front, "inside/app", "127.0.0.1", spoof), spoof
        assert may(front, "inside/app", "127.0.0.2", dict.fromkeys(spoof, "127.0.0.9")), spoof
        assert not may(front, "kept/app", "127.0.0.3", spoof), spoof


@pytest.mark.parametrize("server", ["serve", "gunicorn"])
def test_forged_headers_change_nothing_without_nginx(production: Production, server: str) -> None:
    """Sent to the issuer itself, from an address that is no proxy of ours."""
    issuer = production.issuer("set-up", rules=NETWORK_RULES)
    if server == "serve":
        production.serve(issuer)
    front = production.direct(issuer) if server == "serve" else production.gunicorn(issuer)
    for spoof in SPOOFS:
        assert not may(front, "inside/app", "127.0.0.4", spoof), spoof
        assert may(front, "inside/app", "127.0.0.2", dict.fromkeys(spoof, "127.0.0.9")), spoof
        assert not may(front, "kept/app", "127.0.0.3", spoof), spoof
    output = front.server.output() if front.server else production.issuers[0].output()
    clients = re.findall(r'"path": "/token", "client": "(\S+)", .*"username": "alice"', output)
    # Two processes write their lines in batches: the order is not that of the requests.
    assert sorted(clients) == sorted(["127.0.0.4", "127.0.0.2", "127.0.0.3"] * len(SPOOFS))


def test_what_a_chain_of_proxies_appends_is_read_from_the_right(production: Production) -> None:
    """An nginx that adds to the header, as one behind another proxy must, is believed for what it added."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth", rules=NETWORK_RULES)
    server = production.serve(issuer)
    text = one_host(production, issuer, port, "127.0.0.1:9")
    text = production.fill_in(text, {"X-Forwarded-For $remote_addr;": "X-Forwarded-For $proxy_add_x_forwarded_for;"})
    front = production.nginx(issuer, port, text)
    assert not may(front, "inside/app", "127.0.0.5", {"X-Forwarded-For": "127.0.0.2"})
    assert may(front, "inside/app", "127.0.0.2", {"X-Forwarded-For": "10.0.0.1, nonsense"})
    assert '"client": "127.0.0.5"' in server.output()
    assert '"client": "127.0.0.2"' in server.output()


def test_an_issuer_that_is_down_is_said_so_that_clients_show_it(production: Production, front: Front) -> None:
    """503 with a body that clients read, not nginx's page."""
    production.issuers[0].stop()
    answer = front.ask(user="alice")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["errors"][0]["code"] == "UNAVAILABLE"


@pytest.mark.parametrize("generation", [2, 3], ids=["registry2", "registry3"])
def test_two_instances_with_the_same_files_are_one_issuer(
    production: Production, new_client: Callable[[], Client], new_image: Callable[[], Image], generation: int
) -> None:
    """What one begins the other goes on with; when one ends, nobody notices."""
    port, second = production.host.free_port(), production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth")
    servers = [production.serve(issuer), production.serve(issuer, port=second)]
    site = production.registry(issuer, generation)
    front = production.nginx(issuer, port, one_host(production, issuer, port, site.registry, issuer.port, second))
    production.flow(front, new_client(), new_image())
    assert all('"path": "/jwt/auth"' in server.output() for server in servers)

    def ask() -> str:
        answer = front.ask("repository:alice/app:pull", user="alice")
        return "" if answer.status == 200 else f"{answer.status} {answer.body!r}"

    with production.under_load([ask] * 3) as load:
        load.wait_for(20)
        servers[0].stop()
        load.wait_for(20)
        servers[0] = production.serve(issuer)
        servers[1].stop()
        load.wait_for(20)
    assert load.failures == []
    production.flow(front, new_client(), new_image())
