"""Pages in a real browser that log in, list and delete images, as the web interfaces of registries do."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import bcrypt
import pytest

from tests.integration.browser.chromium import Chromium
from tests.support.http import Answer, basic
from tests.support.nginx import nginx_file

if TYPE_CHECKING:
    from tests.integration.browser.chromium import Page
    from tests.integration.conftest import Client, Host, Image, Issuer, Site, Sites

pytestmark = pytest.mark.integration

FILES = Path(__file__).parent / "browser"
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PRIVATE = "repository:team/private:pull"
DOCKER = "docker/27.5.1 go/go1.22.11 kernel/6.1.0 os/linux arch/amd64 UpstreamClient(Docker-Client/27.5.1 \\(linux\\))"

RULES = """
[[access]]
accounts = ["alice"]
repositories = ["team/**"]
catalog = true
actions = ["pull", "push", "delete"]
"""

HTTP = """
    types { text/html html; text/javascript js; }
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
"""

# The registry answers a preflight with 401, which no browser takes for a yes: nginx answers in its place.
APART = """
    server {{
        listen 127.0.0.1:{page};
        location / {{ root {files}; }}
    }}
    server {{
        listen 127.0.0.1:{front};
        add_header Access-Control-Allow-Origin $http_origin always;
        add_header Access-Control-Expose-Headers "WWW-Authenticate, Docker-Content-Digest" always;
        add_header Vary Origin always;
        location /v2/ {{
            if ($request_method = OPTIONS) {{
                add_header Access-Control-Allow-Origin $http_origin;
                add_header Access-Control-Allow-Methods "GET, HEAD, DELETE";
                add_header Access-Control-Allow-Headers "Authorization";
                return 204;
            }}
            proxy_pass http://{registry};
        }}
    }}
"""

TOGETHER = """
    server {{
        listen 127.0.0.1:{front};
        location / {{ root {files}; }}
        location = /jwt/auth {{ proxy_pass http://127.0.0.1:{issuer}; }}
        location /v2/ {{ proxy_pass http://{registry}; }}
    }}
"""


@dataclass(frozen=True)
class Place:
    """A page, a registry and an issuer.

    Args:
        site: the registry, as it is without nginx, and its issuer.
        origin: where the page is.
        front: where the page finds the registry.
        realm: where the page finds the issuer.
        logs: what the servers write.
    """

    site: Site
    origin: str
    front: str
    realm: str
    logs: list[Path]

    @property
    def page(self) -> str:
        """The address of the page."""
        return f"{self.origin}/index.html?registry={quote(self.front)}"

    @property
    def password(self) -> str:
        """The password of alice."""
        return self.site.issuer.passwords["alice"]

    def token_url(self, scope: str = PRIVATE) -> str:
        """Where a token for the scope is to be had."""
        return f"{self.realm}?{urlencode({'service': 'container_registry', 'scope': scope})}"

    def requests(self) -> list[tuple[str, int, str]]:
        """The requests for tokens that the issuer has had: method, status and name of the account."""
        assert self.site.issuer.server is not None
        lines = [json.loads(line) for line in self.site.issuer.server.output().splitlines() if line.startswith("{")]
        paths = ("/token", "/jwt/auth")
        return [
            (line["method"], line["status"], line.get("username", "")) for line in lines if line.get("path") in paths
        ]


class Maker:
    """Makes such places."""

    def __init__(self, host: Host, sites: Sites) -> None:
        self.host = host
        self.sites = sites

    def apart(self, generation: int, name: str = "ui.test") -> Place:
        """Page, registry and issuer at an origin each; the issuer knows that of the page, which is at this name."""
        page, front = self.host.free_port(), self.host.free_port()
        origin = f"http://{name}:{page}"
        issuer = self._issuer()
        text = issuer.config.read_text()
        assert "[server]\n" in text
        issuer.config.write_text(text.replace("[server]\n", f'[server]\nallowed_origins = ["{origin}"]\n'))
        issuer.start()
        site = self.sites.registry(issuer, generation)
        log = self._nginx(APART.format(page=page, front=front, registry=site.registry, files=FILES))
        return Place(site, origin, f"http://localhost:{front}", issuer.realm, [log, issuer.folder / "serve.log"])

    def together(self, generation: int) -> Place:
        """Page, registry and issuer at one origin."""
        front = self.host.free_port()
        origin = f"http://localhost:{front}"
        realm = f"{origin}/jwt/auth"
        issuer = self._issuer()
        for path in (issuer.config, issuer.folder / "registry.yml"):
            path.write_text(path.read_text().replace(issuer.realm, realm))
        issuer.start()
        site = self.sites.registry(issuer, generation)
        log = self._nginx(TOGETHER.format(front=front, registry=site.registry, issuer=issuer.port, files=FILES))
        return Place(site, origin, origin, realm, [log, issuer.folder / "serve.log"])

    def _issuer(self) -> Issuer:
        made = self.sites.new_issuer("set-up")
        made.set_access(RULES)
        # With a letter that btoa() writes as Latin-1, and the browser's login box as UTF-8.
        made.passwords["alice"] = f"alice's sécret {uuid.uuid4().hex[:8]}"
        hashed = bcrypt.hashpw(made.passwords["alice"].encode(), bcrypt.gensalt(4)).decode()
        (made.folder / "users.htpasswd").write_text(f"alice:{hashed}\n")
        return made

    def _nginx(self, servers: str) -> Path:
        program = shutil.which("nginx", path=SBIN)
        if program is None:
            pytest.skip("no nginx program: install nginx-light")
        folder = self.host.folder / "nginx"
        folder.mkdir()
        (folder / "nginx.conf").write_text(nginx_file(folder, HTTP + servers))
        server = self.host.start("nginx", program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"))
        server.wait_for(lambda: (folder / "nginx.pid").exists())
        return folder / "access.log"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The browser."""
    with closing(Chromium(tmp_path_factory.mktemp("chromium"))) as browser:
        yield browser


@pytest.fixture
def page(chromium: Chromium) -> Iterator[Page]:
    """An empty page of a browser that remembers nothing."""
    with closing(chromium.new_page()) as page:
        yield page


@pytest.fixture
def maker(host: Host, own_sites: Sites) -> Maker:
    """Makes places for the test."""
    return Maker(host, own_sites)


def settle(page: Page) -> str:
    """What the page says when it has done what it was told."""
    page.wait_for(lambda: page.text("#status") != "busy")
    return page.text("#status")


def log_in(page: Page, user: str, password: str) -> str:
    """Type name and password into the page's form; what the page says then."""
    page.type("#user", user)
    page.type("#password", password)
    page.click("#submit")
    return settle(page)


def fetch(page: Page, url: str, options: str = "{}") -> Any:
    """Status and body of what a script of the page is answered, or why it is not."""
    return page.evaluate(
        f"fetch({json.dumps(url)}, {options}).then(async (answer) => [answer.status, await answer.json()], String)"
    )


@pytest.mark.parametrize("generation", [2, 3], ids=["registry2", "registry3"])
@pytest.mark.parametrize("kind", ["apart", "together"])
def test_a_page_lists_and_deletes_images(
    maker: Maker,
    page: Page,
    new_image: Callable[[], Image],
    new_client: Callable[[], Client],
    kind: str,
    generation: int,
) -> None:
    """Whether page, registry and issuer are at an origin each or all at one; what it types is in no log."""
    place = maker.apart(generation) if kind == "apart" else maker.together(generation)
    site, image, repository = place.site, new_image(), place.site.repository()
    token = site.issuer.token(f"repository:{repository}:pull,push", user="alice")
    new_client().push(image, site.reference(repository), "--dest-registry-token", token).succeeded()
    before = len(place.requests())

    page.go(place.page)
    refused = log_in(page, "alice", "wrong")
    assert re.fullmatch(r"Error: 401 wrong user name or password, request \w{16}", refused), refused
    assert log_in(page, "alice", place.password) == "ready"
    assert page.texts("#repositories li") == [repository]
    page.click("#repositories li", repository)
    assert settle(page) == "ready"
    assert page.texts("#tags li") == ["v1"]
    page.click("#tags li", "v1")
    assert settle(page) == "ready"
    assert page.texts("#tags li") == []
    token = site.issuer.token(f"repository:{repository}:pull", user="alice")
    assert site.request("GET", f"/v2/{repository}/manifests/{image.digest}", token).status == 404

    requests = place.requests()[before:]
    assert ("GET", 401, "alice") in requests
    assert ("GET", 200, "alice") in requests
    # One preflight for each address: its answer is remembered.
    preflights = [request for request in requests if request[0] == "OPTIONS"]
    assert preflights == ([("OPTIONS", 200, "")] * 3 if kind == "apart" else [])
    secrets = [place.password[-8:], basic("alice", place.password).split()[1]]
    secrets.append(b64encode(f"alice:{place.password}".encode("latin-1")).decode())
    for log in [*place.logs, page.log]:
        assert not [secret for secret in secrets if secret in log.read_text(errors="replace")], log


def test_a_page_that_is_not_allowed_gets_no_token(maker: Maker, page: Page) -> None:
    """Its browser does not even send the password; what needs no preflight it may not read."""
    place = maker.apart(2)
    before = len(place.requests())
    page.go(place.page.replace("ui.test", "other.test"))
    assert log_in(page, "alice", place.password) == "TypeError: Failed to fetch"
    assert page.texts("#repositories li") == []
    assert place.requests()[before:] == [("OPTIONS", 405, "")]
    for options in ("{}", "{credentials: 'include'}", "{method: 'POST', body: new URLSearchParams()}"):
        assert fetch(page, place.token_url(), options) == "TypeError: Failed to fetch", options
    page.go("about:blank")
    assert page.evaluate("origin") == "null"
    assert fetch(page, place.token_url("")) == "TypeError: Failed to fetch"
    page.go(place.page)
    assert fetch(page, place.token_url(""))[0] == 200


def test_a_page_sends_forms(maker: Maker, page: Page) -> None:
    """Login, renewal and logout by OAuth, whose forms need no preflight; and the other pages of the issuer."""
    place = maker.apart(2)
    page.go(place.page)
    assert log_in(page, "alice", place.password) == "ready"
    common = "service: 'container_registry', client_id: 'ui'"
    password = f"grant_type: 'password', username: 'alice', password: element('password').value, {common}"
    sent = len(page.preflights)
    status, body = fetch(page, place.realm, form(f"{password}, access_type: 'offline', scope: '{PRIVATE}'"))
    assert (status, body["scope"]) == (200, PRIVATE)
    renewal = form(f"grant_type: 'refresh_token', refresh_token: {json.dumps(body['refresh_token'])}, {common}")
    assert fetch(page, place.realm, renewal)[0] == 200
    base = place.realm.removesuffix("/token")
    assert fetch(page, f"{base}/revoke", form(f"token: {json.dumps(body['refresh_token'])}"))[0] == 200
    assert fetch(page, place.realm, renewal)[0] in (400, 401)
    assert fetch(page, f"{base}/.well-known/jwks.json")[1]["keys"]
    assert fetch(page, f"{base}/.well-known/oauth-authorization-server")[1]["token_endpoint"] == place.realm
    assert len(page.preflights) == sent


def form(fields: str) -> str:
    """The options of fetch() for a form."""
    return f"{{method: 'POST', body: new URLSearchParams({{{fields}}})}}"


@pytest.mark.parametrize("kind", ["apart", "together"])
def test_a_page_leaves_the_login_to_the_browser(maker: Maker, page: Page, kind: str) -> None:
    """It asks without credentials first; for 401, not for 403, the browser opens its login box."""
    # Chromium opens none for a page of another site, such as ui.test (its policy AllowCrossOriginAuthPrompt); one name
    # with two ports is one site.
    place = maker.apart(2, "localhost") if kind == "apart" else maker.together(2)
    page.answer_login_boxes(("alice", "wrong"), ("alice", place.password))
    page.go(f"{place.page}&login=browser")
    page.click("#submit")
    assert settle(page) == "ready"
    assert page.login_boxes == [("basic", "gitlab-issuer")] * 2
    assert place.requests()[-4:] == [("GET", 401, ""), ("GET", 401, ""), ("GET", 401, "alice"), ("GET", 200, "alice")]


def test_opening_the_token_address_asks_for_a_login(maker: Maker, page: Page) -> None:
    """A browser gets 401 and shows its login box; docker gets 403 for the same question."""
    place = maker.together(2)
    page.answer_login_boxes()
    page.go(place.token_url())
    assert page.status == 401
    assert "access forbidden" in page.text("body")
    assert page.login_boxes == [("basic", "gitlab-issuer")]
    page.answer_login_boxes(("alice", place.password))
    page.go(place.token_url())
    assert page.status == 200
    assert json.loads(page.text("body"))["scope"] == PRIVATE

    answer = ask_as_docker(place.token_url())
    assert answer.status == 403
    assert answer.json()["errors"][0]["code"] == "DENIED"
    assert "www-authenticate" not in answer.headers


def ask_as_docker(url: str) -> Answer:
    """What docker is answered, which sends these headers."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
        headers = {"User-Agent": DOCKER, "Accept-Encoding": "gzip", "Connection": "close"}
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def test_a_page_of_the_open_net_asks_an_issuer_within(maker: Maker, tmp_path: Path) -> None:
    """Chromium asks its user then, no longer the server: the preflight is the usual one."""
    place = maker.apart(2, "localhost")
    public = f"--ip-address-space-overrides=127.0.0.1:{urlsplit(place.origin).port}=public"
    with closing(Chromium(tmp_path, public)) as browser:
        page = browser.new_page()
        page.go(place.page)
        before = place.requests()
        assert fetch(page, place.token_url("")) == "TypeError: Failed to fetch"
        assert place.requests() == before
        page.allow_loopback(place.origin)
        assert log_in(page, "alice", place.password) == "ready"
        wanted = {
            (each["access-control-request-method"], each["access-control-request-headers"]) for each in page.preflights
        }
        assert wanted == {("GET", "authorization")}
        assert not [each for each in page.preflights if "access-control-request-private-network" in each]
