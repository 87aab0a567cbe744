"""The files of conf/ for Caddy, HAProxy and Traefik, with the real programs; and what nginx must do as they do."""

from __future__ import annotations

import os
import posixpath
import re
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlencode

import pytest

from tests.integration.production.conftest import NETWORK_RULES

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Image, Issuer
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration

#: No registry: nobody listens there.
NOWHERE = "127.0.0.1:9"
PAGES = "/jwt/auth /revoke /.well-known/jwks.json"
PAGES_BELOW = "/registry-auth/token /registry-auth/revoke /registry-auth/.well-known/jwks.json"
HAPROXY_USER = "    user haproxy\n    group haproxy\n    chroot /var/lib/haproxy\n"

every_new_proxy = pytest.mark.parametrize("proxy", ["caddy", "haproxy", "traefik"])
every_proxy = pytest.mark.parametrize("proxy", ["nginx", "caddy", "haproxy", "traefik"])

#: What is changed in a copy of the file for a realm below a prefix: the proxy passes the path on as it is.
KEPT: dict[str, dict[str, str]] = {
    "nginx": {
        "location = /jwt/auth {": "location = /registry-auth/token {",
        "proxy_pass http://tokenissuer/jwt/auth;": "proxy_pass http://tokenissuer/registry-auth/token;",
    },
    "caddy": {PAGES: PAGES_BELOW},
    "haproxy": {PAGES: PAGES_BELOW},
    "traefik": {
        "`/jwt/auth`": "`/registry-auth/token`",
        "`/revoke`": "`/registry-auth/revoke`",
        "`/.well-known/jwks.json`": "`/registry-auth/.well-known/jwks.json`",
    },
}
#: The proxy takes the prefix off.
TAKEN_OFF: dict[str, dict[str, str]] = {
    "nginx": {**KEPT["nginx"], "proxy_pass http://tokenissuer/jwt/auth;": "proxy_pass http://tokenissuer/token;"},
    "caddy": {**KEPT["caddy"], "handle @tokenissuer {": "handle @tokenissuer {\n\t\turi strip_prefix /registry-auth"},
    "haproxy": {
        **KEPT["haproxy"],
        "backend tokenissuer\n": "backend tokenissuer\n    http-request replace-path /registry-auth(/.*) \\1\n",
    },
    "traefik": {
        **KEPT["traefik"],
        "[headers, again]": "[headers, again, prefix]",
        "  middlewares:\n": "  middlewares:\n    prefix:\n      stripPrefix:\n        prefixes: [/registry-auth]\n",
    },
}


def begin(
    production: Production,
    proxy: str,
    issuer: Issuer,
    port: int,
    registry: str = NOWHERE,
    changes: Mapping[str, str] | None = None,
    path: str = "/jwt/auth",
) -> Front:
    """Start a proxy with its file of conf/, in which only places are filled in, and perhaps something is changed."""
    certificate, key = str(production.authority.server_certificate), str(production.authority.server_key)
    folder = production.folder / f"{proxy}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()

    def file(name: str, places: Mapping[str, str], changes: Mapping[str, str] | None = None) -> str:
        text = production.fill_in((production.conf / name).read_text(), changes or {})
        (folder / name).write_text(production.fill_in(text, places))
        return str(folder / name)

    if proxy == "nginx":
        places = {
            "server 127.0.0.1:5000 ": f"server {registry} ",
            "server 127.0.0.1:5001 ": f"server 127.0.0.1:{issuer.port} ",
        }
        site = production.nginx_site("nginx.conf", port, places)
        return production.nginx(issuer, port, production.fill_in(site, changes or {}), path=path)
    if proxy == "caddy":
        program = production.daemon_program("caddy", "install Debian's caddy")
        places = {
            "registry.example.com {": f"https://127.0.0.1:{port} {{\n\tbind 127.0.0.1",
            # Where Caddy takes commands is one port of the machine, for which several would quarrel.
            "\tauto_https disable_redirects\n": "\tauto_https disable_redirects\n\tadmin off\n",
            "/etc/caddy/registry.example.com.crt": certificate,
            "/etc/caddy/registry.example.com.key": key,
            " 127.0.0.1:5000 {": f" {registry} {{",
            " 127.0.0.1:5001 {": f" 127.0.0.1:{issuer.port} {{",
        }
        command = [program, "run", "--config", file("Caddyfile", places, changes)]
        return production.proxy(issuer, port, path, *command, env={"HOME": str(folder)})
    if proxy == "haproxy":
        program = production.daemon_program("haproxy", "install Debian's haproxy")
        places = {
            "bind :443 ": f"bind 127.0.0.1:{port} ",
            "/etc/haproxy/registry.example.com.crt": certificate,
            "log /dev/log local0": "log stdout format raw local0",
            "server one 127.0.0.1:5000\n": f"server one {registry}\n",
            "server one 127.0.0.1:5001\n": f"server one 127.0.0.1:{issuer.port}\n",
        }
        if os.geteuid() != 0:
            places[HAPROXY_USER] = ""
        command = [program, "-f", file("haproxy.cfg", places, changes)]
        tried = production.host.run(*command, "-c")
        assert tried.code == 0, str(tried)
        # A warning would be the reader's problem: the files are to be used as they are.
        assert "WARNING" not in tried.stderr, str(tried)
        return production.proxy(issuer, port, path, *command, "-db")
    program = production.host.program("traefik", "put one of version 3 on PATH")
    places = {
        "Host(`registry.example.com`)": "Host(`127.0.0.1`)",
        "/etc/traefik/registry.example.com.crt": certificate,
        "/etc/traefik/registry.example.com.key": key,
        "http://127.0.0.1:5000\n": f"http://{registry}\n",
        "http://127.0.0.1:5001\n": f"http://127.0.0.1:{issuer.port}\n",
    }
    routes = file("traefik-routes.yml", places, changes)
    places = {'":443"': f'"127.0.0.1:{port}"', "filename: /etc/traefik/traefik-routes.yml": f"filename: {routes}"}
    return production.proxy(issuer, port, path, program, f"--configFile={file('traefik.yml', places)}")


@pytest.fixture
def make(production: Production) -> Callable[..., Front]:
    """Makes a proxy in front of a new issuer."""

    def make(proxy: str, registry: int | str = NOWHERE, changes: Mapping[str, str] | None = None) -> Front:
        port = production.host.free_port()
        issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth", rules=NETWORK_RULES)
        production.serve(issuer)
        if isinstance(registry, int):
            registry = production.registry(issuer, registry).registry
        return begin(production, proxy, issuer, port, registry, changes)

    return make


@every_new_proxy
@pytest.mark.parametrize("generation", [2, 3], ids=["registry2", "registry3"])
def test_login_push_pull_and_delete_over_https(
    production: Production,
    make: Callable[..., Front],
    new_client: Callable[[], Client],
    new_image: Callable[[], Image],
    proxy: str,
    generation: int,
) -> None:
    """The file as it is: everything under https://registry.example.com."""
    front = make(proxy, generation)
    production.flow(front, new_client(), new_image())
    answer = front.ask(user="alice")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


@every_new_proxy
def test_each_page_of_the_issuer_and_no_other(make: Callable[..., Front], proxy: str) -> None:
    """However the path is written: neither its pages for operators nor tokens by another name."""
    front = make(proxy, 2)
    assert front.request("GET", "/.well-known/jwks.json").json()["keys"]
    metadata = front.request("GET", "/.well-known/oauth-authorization-server").json()
    assert metadata["token_endpoint"] == f"https://{front.address}/jwt/auth"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert front.request("POST", "/revoke", form, b"token=nonsense").status == 200
    roots = ["/token", "/healthz", "/readyz", "/auth", "/auth/token"]
    ways = ["{}", "/jwt/auth{}", "/jwt/auth/..{}", "/jwt/auth/../..{}", "/v2/..{}", "/v2/%2e%2e{}", "/v2/%2E%2E%2f{}"]
    ways += ["//{}", "/jwt/auth;{}", "/jwt/auth%00{}", "/jwt/auth%3f{}", "/jwt/auth%2f..{}", "http://127.0.0.1:5001{}"]
    ways += ["/revoke/..{}", "/.well-known/jwks.json/../..{}", "/revoke/%2e%2e{}"]
    for way in ways:
        for root in roots:
            if posixpath.normpath(unquote(way.format(root))) == "/jwt/auth":
                continue
            answer = exchange(front, way.format(root))
            # 301 is the registry, which writes paths in another way.
            assert answer.split(b" ", 2)[1] in (b"301", b"400", b"401", b"404"), (way.format(root), answer)
            assert not any(each in answer for each in (b'"token"', b'"keys"', b'"up"', b'"ready"')), answer


KEYS = """
entryPoints entryPoints.* entryPoints.*.address entryPoints.*.transport entryPoints.*.transport.respondingTimeouts
entryPoints.*.transport.respondingTimeouts.readTimeout
providers providers.file providers.file.filename global global.checkNewVersion
tls tls.stores tls.stores.default tls.stores.default.defaultCertificate
tls.stores.default.defaultCertificate.certFile tls.stores.default.defaultCertificate.keyFile
tls.options tls.options.default tls.options.default.minVersion
http http.routers http.routers.* http.routers.*.rule http.routers.*.service http.routers.*.middlewares
http.routers.*.tls
http.middlewares http.middlewares.* http.middlewares.*.headers http.middlewares.*.headers.stsSeconds
http.middlewares.*.headers.customRequestHeaders http.middlewares.*.headers.customRequestHeaders.*
http.middlewares.*.retry http.middlewares.*.retry.attempts http.middlewares.*.retry.initialInterval
http.services http.services.* http.services.*.loadBalancer http.services.*.loadBalancer.servers
http.services.*.loadBalancer.servers.url http.services.*.loadBalancer.serversTransport
http.serversTransports http.serversTransports.* http.serversTransports.*.forwardingTimeouts
http.serversTransports.*.forwardingTimeouts.dialTimeout
http.serversTransports.*.forwardingTimeouts.responseHeaderTimeout
""".split()
#: Tables whose keys are names of one's own.
NAMES = ("entryPoints", "http.routers", "http.middlewares", "http.services", "http.serversTransports")


def paths_of(text: str) -> Iterator[str]:
    """The keys in a YAML file of nothing but blocks, each with the keys above it."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.fullmatch(r"( *(?:- )?)(\w+):( .*)?", line)
        if found is None:
            assert re.fullmatch(r"\s*(#.*)?|        \S.*", line), line
            continue
        above = [(indent, key) for indent, key in above if indent < len(found[1])]
        parent = ".".join(key for _, key in above)
        own = parent in NAMES or parent.endswith(".customRequestHeaders")
        above.append((len(found[1]), "*" if own else found[2]))
        yield ".".join(key for _, key in above)


def test_the_files_for_traefik_have_keys_that_traefik_knows(production: Production) -> None:
    """As far as it can be said where there is no Traefik: the keys, and that names used are names given."""
    text = (production.conf / "traefik.yml").read_text() + (production.conf / "traefik-routes.yml").read_text()
    assert "\t" not in text
    assert set(paths_of(text)) == set(KEYS)
    for used in re.findall(r"service: (\w+)|serversTransport: (\w+)", text):
        assert re.search(rf"(?m)^    {''.join(used)}:$", text), used
    for listed in re.findall(r"middlewares: \[(.+)\]", text):
        for name in listed.split(", "):
            assert re.search(rf"(?m)^    {name}:$", text), name


def exchange(front: Front, target: str) -> bytes:
    """The answer to a request written letter by letter: libraries would tidy the path up."""
    assert front.authority is not None
    trusting = ssl.create_default_context(cafile=str(front.authority.certificate))
    with (
        socket.create_connection(("127.0.0.1", front.port), 10) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {front.address}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


SPOOFS = [
    {},
    {"X-Forwarded-For": "127.0.0.2"},
    {"X-Forwarded-For": "127.0.0.2, 127.0.0.1"},
    {"x-forwarded-for": "127.0.0.2, 127.0.0.2", "Connection": "close, X-Forwarded-For"},
    {"X_Forwarded_For": "127.0.0.2"},
    {"X-Real-IP": "127.0.0.2"},
    {"Forwarded": "for=127.0.0.2"},
    {"Forwarded": 'for="127.0.0.2', "X-Forwarded-For": "127.0.0.2"},
    {"Client-IP": "127.0.0.2", "True-Client-IP": "127.0.0.2", "CF-Connecting-IP": "127.0.0.2"},
]


def may(front: Front, repository: str, source: str, headers: dict[str, str]) -> bool:
    """Whether alice, calling from there, may pull."""
    answer = front.ask(f"repository:{repository}:pull", user="alice", source=source, headers=headers)
    assert answer.status == 200, answer
    return bool(answer.json()["scope"])


@every_new_proxy
def test_the_address_of_the_client_arrives_and_a_forged_one_does_not(
    production: Production, make: Callable[..., Front], proxy: str
) -> None:
    """Who is outside stays outside, who is denied stays denied, who is inside stays inside."""
    front = make(proxy)
    for spoof in SPOOFS:
        assert not may(front, "inside/app", "127.0.0.1", spoof), spoof
        inside = {name: value.replace("127.0.0.2", "127.0.0.9") for name, value in spoof.items()}
        assert may(front, "inside/app", "127.0.0.2", inside), spoof
        assert not may(front, "kept/app", "127.0.0.3", spoof), spoof
    assert '"client": "127.0.0.2"' in production.issuers[0].output()
    assert '"client": "127.0.0.9"' not in production.issuers[0].output()


@every_new_proxy
def test_no_header_that_says_who_the_client_is_gets_through(production: Production, proxy: str) -> None:
    """Whatever server runs behind the proxy, and whichever header it reads: there is one, and the proxy wrote it."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/jwt/auth")
    server = production.serve(issuer)
    front = begin(production, proxy, issuer, port)
    server.stop()
    forged = {"X-Forwarded-For": "6.6.6.6", "X_Forwarded_For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    with socket.create_server(("127.0.0.1", issuer.port)) as listener:
        listener.settimeout(20)
        connection = front.connect("127.0.0.4")
        connection.request("GET", front.path, headers={**forged, "x-forwarded-proto": "http"})
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(20)
            received = b""
            while b"\r\n\r\n" not in received:
                received += peer.recv(65536)
        connection.close()
    lines = received.decode().lower().split("\r\n")
    assert "6.6.6.6" not in received.decode(), received
    assert "x-forwarded-for: 127.0.0.4" in lines
    assert "x-forwarded-proto: https" in lines
    assert f"host: {front.address}" in lines


@every_proxy
def test_the_largest_token_and_the_longest_request_pass(make: Callable[..., Front], proxy: str) -> None:
    """A header of 8,000 characters gets to the registry, and a request line of 60,000 to the issuer."""
    front = make(proxy, 2)
    # Long names first, so that the short ones fill what they leave.
    names = [f"alice/{number}{'x' * 180}" for number in range(16)] + [f"alice/{number}" for number in range(16, 40)]
    token = front.ask(*(f"repository:{name}:pull" for name in names), user="alice").json()["token"]
    assert 7850 < len(token) <= 8000, len(token)
    reached = front.request("GET", f"/v2/{names[0]}/tags/list", {"Authorization": f"Bearer {token}"})
    assert reached.status == 404, reached
    assert reached.json()["errors"][0]["code"] == "NAME_UNKNOWN"
    # 40 repositories are as many as a token may name; 60,000 characters are nearly all that the issuer reads.
    for count in (40, 280):
        long = [f"repository:alice/{number:03}{'x' * 190}:pull" for number in range(count)]
        answer = front.ask(*long, user="alice")
        assert answer.status == 200, answer
        assert answer.json()["scope"].startswith(f"{long[0]} {long[1]} {long[2]}")


@every_proxy
def test_a_form_in_chunks(production: Production, make: Callable[..., Front], proxy: str) -> None:
    """podman and skopeo send forms without a length; one that is too large is told so."""
    front = make(proxy)
    for chunked in (False, True):
        answer = front.post("repository:alice/app:pull", "alice", chunked=chunked)
        assert production.claims(answer.json()["access_token"])["access"][0]["name"] == "alice/app", answer
        assert front.post("", "alice", chunked=chunked, password="wrong").status == 401
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    large = urlencode({"grant_type": "password", "username": "alice", "password": "x" * 70_000}).encode()

    def pieces() -> Iterator[bytes]:
        yield large

    assert front.request("POST", front.path, form, large).status == 413
    assert front.request("POST", front.path, form, pieces()).status == 413


@every_proxy
def test_layers_are_passed_on_as_they_come(make: Callable[..., Front], proxy: str) -> None:
    """Neither a layer that is pushed nor one that is pulled is kept until its end."""
    half = 256 * 1024
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        front = make(proxy, f"127.0.0.1:{listener.getsockname()[1]}")
        connection = front.connect()
        connection.putrequest("PATCH", "/v2/alice/app/blobs/uploads/1")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        connection.send(b"%x\r\n%s\r\n" % (half, b"\1" * half))
        registry, _ = listener.accept()
        with registry:
            registry.settimeout(20)
            received = b""
            while received.count(b"\1") < half:
                piece = registry.recv(65536)
                assert piece, "the proxy closed the connection"
                received += piece
            connection.send(b"0\r\n\r\n")
            while not received.endswith(b"0\r\n\r\n"):
                received += registry.recv(65536)
            registry.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (2 * half, b"\1" * half))
            response = connection.getresponse()
            # What is in the program's own small buffers may wait.
            assert len(response.read(half // 2)) == half // 2
            registry.sendall(b"\1" * half)
            assert len(response.read()) == 2 * half - half // 2
        connection.close()


@every_new_proxy
def test_an_issuer_that_is_down_is_said_so(production: Production, make: Callable[..., Front], proxy: str) -> None:
    """503 with a body that clients read; Traefik can say no more than 502."""
    front = make(proxy)
    production.issuers[0].stop()
    answer = front.ask(user="alice")
    if proxy == "traefik":
        assert answer.status == 502
        return
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["errors"][0]["code"] == "UNAVAILABLE"


#: A second issuer beside the first; nobody listens there.
TWO: dict[str, dict[str, str]] = {
    "caddy": {"reverse_proxy 127.0.0.1:5001 {": "reverse_proxy 127.0.0.1:9 127.0.0.1:5001 {"},
    "haproxy": {"    server one 127.0.0.1:5001\n": "    server zero 127.0.0.1:9\n    server one 127.0.0.1:5001\n"},
    "traefik": {
        "          - url: http://127.0.0.1:5001\n": "          - url: http://127.0.0.1:9\n          - url: http://127.0.0.1:5001\n"
    },
}


@every_new_proxy
def test_what_one_instance_does_not_take_the_other_does(
    production: Production, make: Callable[..., Front], proxy: str
) -> None:
    """Two are in the file and one of them is down: nobody notices."""
    front = make(proxy, NOWHERE, TWO[proxy])
    for _ in range(4):
        assert front.ask(user="alice").status == 200
        answer = front.post("repository:alice/app:pull", "alice", chunked=True)
        if proxy == "caddy" and answer.status == 503:
            # Caddy 2.6 has lost the form when it asks the second, and says so clearly.
            assert answer.json()["errors"][0]["code"] == "UNAVAILABLE"
            continue
        assert production.claims(answer.json()["access_token"])["access"][0]["name"] == "alice/app", answer


@every_proxy
@pytest.mark.parametrize("rule", [KEPT, TAKEN_OFF], ids=["kept", "taken-off"])
def test_a_realm_below_a_prefix(production: Production, proxy: str, rule: dict[str, dict[str, str]]) -> None:
    """Whether the proxy takes the prefix off or not: the issuer finds its page."""
    port = production.host.free_port()
    issuer = production.issuer("set-up", f"https://127.0.0.1:{port}/registry-auth/token")
    server = production.serve(issuer)
    front = begin(production, proxy, issuer, port, changes=rule[proxy], path="/registry-auth/token")
    assert front.ask("repository:alice/app:pull", user="alice").json()["scope"] == "repository:alice/app:pull"
    assert front.post("repository:alice/app:pull", "alice", chunked=True).status == 200
    if proxy != "nginx":
        assert front.request("GET", "/registry-auth/.well-known/jwks.json").json()["keys"]
    assert front.request("GET", "/jwt/auth").status == 404
    seen = "/registry-auth/token" if rule is KEPT else "/token"
    assert f'"path": "{seen}"' in server.output()


def test_the_manual_names_the_lines_that_are_tested(production: Production) -> None:
    """What the page says about prefixes and large headers is in the files, or in the copies above."""
    page = (production.conf.parent / "docs" / "proxies.md").read_text()
    tested = [new for rule in (KEPT, TAKEN_OFF) for changes in rule.values() for new in changes.values()]
    for line in (
        "proxy_pass http://tokenissuer/registry-auth/token;",
        "proxy_pass http://tokenissuer/token;",
        "uri strip_prefix /registry-auth",
        r"http-request replace-path /registry-auth(/.*) \1",
    ):
        assert f"`{line}`" in page
        assert any(line in new for new in tested), line
    for name, line in (
        ("nginx.conf", "large_client_header_buffers 4 64k;"),
        ("nginx.conf", "proxy_request_buffering off;"),
        ("apache.conf", "LimitRequestLine 65536"),
        ("apache.conf", "LimitRequestFieldSize 65536"),
        ("haproxy.cfg", "tune.bufsize 98304"),
        ("traefik.yml", "readTimeout"),
    ):
        assert f"`{line}`" in page
        assert line in (production.conf / name).read_text()
