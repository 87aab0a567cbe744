"""The example set-up beside a GitLab from sources: each file as it is, but for folders and ports of this machine."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from tests.support.gitlab import StubGitLab, self_signed, serving, signing_key
from tests.support.http import basic
from tokenissuer.config import load_config
from tokenissuer.options import Secret
from tokenissuer_backends.gitlab import GitLabBackend, GitLabOptions

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Issuer, Sites

pytestmark = pytest.mark.integration

CONF = Path(__file__).parents[2] / "conf"


@dataclass(frozen=True)
class Beside:
    """The whole example: GitLab, tokenissuer, and nginx's port for https."""

    gitlab: StubGitLab
    issuer: Issuer
    https: int


def test_the_example_configuration_is_read_as_it_is() -> None:
    """One GitLab, with grants."""
    config = load_config(CONF / "gitlab.toml")
    (backend,) = config.backends
    assert backend.cls is GitLabBackend
    assert backend.options == GitLabOptions(url="http://127.0.0.1:8181", plain_http=True, grants=True)
    backend.build().close()


def test_every_commented_out_default_is_the_default(tmp_path: Path) -> None:
    """What the comments say holds; and every key is there."""
    text = (CONF / "gitlab.toml").read_text()
    table = text[text.index("# What follows is the default") : text.index("# The other way")]
    (tmp_path / "gitlab-token").write_text("glpat-x\n")
    said = dict(re.findall(r"^#([a-z_]+) = (.+)$", table, re.MULTILINE))
    options = options_with(tmp_path, said)
    assert isinstance(options.token, Secret)
    assert said.keys() == {
        "groups",
        "token_file",
        "ca_file",
        "timeout",
        "connections",
        "anonymous_requests",
        "remember",
    }
    for name in ("groups", "timeout", "connections", "anonymous_requests", "remember"):
        assert getattr(options, name) == GitLabOptions.__dataclass_fields__[name].default


def test_the_other_way_is_read_when_its_comments_are_taken_off(tmp_path: Path) -> None:
    """Mode jwt."""
    text = (CONF / "gitlab.toml").read_text()
    table = text[text.index("# The other way") : text.index("# Accounts for what has none")]
    options = options_with(tmp_path, dict(re.findall(r"^#([a-z_]+) = (.+)$", table, re.MULTILINE)))
    assert options.mode == "jwt"
    assert options.certificate == tmp_path / "gitlab-registry.crt"


def options_with(folder: Path, said: dict[str, str]) -> GitLabOptions:
    """The example with these keys of the backend set."""
    text = (CONF / "gitlab.toml").read_text()
    lines = "".join(f"{name} = {value}\n" for name, value in said.items())
    path = folder / "tokenissuer.toml"
    path.write_text(text.replace("grants = true\n", f"grants = true\n{lines}", 1))
    (backend,) = load_config(path).backends
    assert isinstance(backend.options, GitLabOptions)
    return backend.options


@pytest.fixture
def beside(own_sites: Sites, host: Host, tmp_path: Path) -> Iterator[Beside]:
    """GitLab, the registry, nginx and tokenissuer, each with the file that is shipped."""
    nginx = host.program("nginx", "install Debian's nginx")
    with serving() as gitlab:
        issuer = own_sites.new_issuer("beside-gitlab")
        registry = start_registry(host, issuer.folder / "auth.crt", tmp_path)
        inside = host.free_port()
        ports = {"5000": registry, "5001": issuer.port, "8181": inside, "gitlab": gitlab.port}
        https = start_nginx(host, nginx, tmp_path, ports)
        issuer.config.write_text((CONF / "gitlab.toml").read_text().replace("127.0.0.1:8181", f"127.0.0.1:{inside}"))
        yield Beside(gitlab, issuer, https)


@pytest.mark.parametrize("scopes", [("api",), ("read_registry", "write_registry")], ids=["api", "registry scopes"])
def test_nginx_registry_and_issuer_of_the_example_work_together(beside: Beside, scopes: tuple[str, ...]) -> None:
    """A client is sent from the registry's name to GitLab's, and gets its token there, with each kind of token."""
    gitlab, https = beside.gitlab, beside.https
    token = gitlab.token(gitlab.user("alice"), *scopes)
    gitlab.project("team/app", direct={gitlab.users[0].id: 30})
    beside.issuer.start()
    challenge = ask(https, "registry.example.com", "/v2/")
    assert challenge[0] == 401
    assert 'Bearer realm="https://gitlab.example.com/jwt/auth"' in challenge[1]["www-authenticate"]
    login = {"Authorization": basic("alice", token)}
    scope = "/jwt/auth?service=container_registry&scope=repository:team/app:pull,push"
    status, _, body = ask(https, "gitlab.example.com", scope, login)
    assert status == 200, body
    (access,) = jwt.decode(body["token"], options={"verify_signature": False})["access"]
    assert sorted(access["actions"]) == ["pull", "push"]
    bearer = {"Authorization": f"Bearer {body['token']}"}
    assert ask(https, "registry.example.com", "/v2/team/app/tags/list", bearer)[0] == 404
    assert ask(https, "registry.example.com", "/v2/other/app/tags/list", bearer)[0] == 401
    for other in ("/jwt/auth/", "/jwt/auth.json", "/jwt/auth%2e", "/jwt//auth/"):
        assert ask(https, "gitlab.example.com", f"{other}?service=container_registry", login)[0] in (404, 200)
        assert gitlab.asked("/jwt/auth/") == gitlab.asked("/jwt/auth.") == 0
    # Everything else is still GitLab's.
    assert ask(https, "gitlab.example.com", "/-/health", {})[0] == ask(https, "gitlab.example.com", "/no-such-page")[0]
    assert ask(https, "registry.example.com", "/")[0] == 404


@pytest.mark.parametrize("first", ["ours", "gitlab's"])
def test_one_registry_takes_tokens_of_both(own_sites: Sites, host: Host, tmp_path: Path, first: str) -> None:
    """GitLab lists and deletes images with tokens that it signs. A next key of ours leaves its certificate."""
    with serving() as gitlab:
        issuer = own_sites.new_issuer("beside-gitlab")
        certificate = issuer.folder / "auth.crt"
        theirs = gitlab.certificate()
        bundle = [certificate.read_bytes(), theirs]
        certificate.write_bytes(b"".join(bundle if first == "ours" else bundle[::-1]))
        text = re.sub("^name = .*$", 'name = "gitlab-issuer"', issuer.config.read_text(), count=1, flags=re.M)
        issuer.config.write_text(text)
        issuer.start()
        port = start_registry(host, certificate, tmp_path)

        def status(token: str) -> int:
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            with contextlib.closing(connection):
                connection.request("GET", "/v2/team/app/tags/list", headers={"Authorization": f"Bearer {token}"})
                return connection.getresponse().status

        wanted = [{"type": "repository", "name": "team/app", "actions": ["pull"]}]
        # No such repository yet: it is the registry that says so, and not its token check.
        assert status(issuer.token("repository:team/app:pull", user="alice")) == 404
        assert status(gitlab.sign({"aud": "container_registry", "sub": "", "access": wanted})) == 404
        assert status(gitlab.sign({"aud": "container_registry", "sub": "", "access": []})) == 401
        made = host.run(host.tokenissuer(), "keys", "add", "--config", str(issuer.config))
        assert made.code == 0, made
        assert theirs.strip() in certificate.read_bytes()
        assert certificate.read_bytes().count(b"BEGIN CERTIFICATE") == 3


def test_an_address_that_leads_back_is_named_at_once(beside: Beside, host: Host, tmp_path: Path) -> None:
    """The public one: there /jwt/auth is tokenissuer's. At the start, by `check`, and in the log of a request."""
    gitlab, issuer = beside.gitlab, beside.issuer
    token = gitlab.token(gitlab.user("alice"), "read_registry", "write_registry")
    text = re.sub("^url = .*$", f'url = "https://127.0.0.1:{beside.https}"', issuer.config.read_text(), flags=re.M)
    text = text.replace("plain_http = true\n", f'ca_file = "{tmp_path / "gitlab.example.com.crt"}"\n')
    issuer.config.write_text(text)
    issuer.start()
    assert issuer.server is not None
    assert host.wait_until(lambda: "'gitlab' is down" in issuer.server.output() if issuer.server else False)
    started = time.monotonic()
    answer = issuer.ask("repository:team/app:pull", user="alice", password=token)
    assert answer.status == 503
    assert time.monotonic() - started < 3
    assert "tokenissuer itself has answered; set the backend's url" in issuer.server.output()
    checked = host.run(host.tokenissuer(), "check", "--config", str(issuer.config))
    assert "tokenissuer itself has answered" in checked.failed()


def start_registry(host: Host, certificate: Path, folder: Path) -> int:
    """The example's registry, and its port."""
    program = host.program("docker-registry", "install Debian's docker-registry")
    text = (CONF / "gitlab-registry.yml").read_text()
    (folder / "registry.yml").write_text(text.replace("/etc/tokenissuer/auth.crt", str(certificate)))
    port = host.free_port()
    (folder / "images").mkdir()
    server = host.start(
        "registry",
        *(program, "serve", str(folder / "registry.yml")),
        env={
            "REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}",
            "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(folder / "images"),
        },
    )
    server.wait_for(lambda: not host.is_free(port))
    return port


def start_nginx(host: Host, program: str, folder: Path, ports: dict[str, int]) -> int:
    """The example's nginx between these, and its port for https; its configuration has passed nginx's own test."""
    key = signing_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name in ("gitlab", "registry"):
        (folder / f"{name}.example.com.key").write_bytes(key)
        (folder / f"{name}.example.com.crt").write_bytes(self_signed(signing_key(), f"{name}.example.com"))
    https = host.free_port()
    text = (CONF / "gitlab-nginx.conf").read_text()
    for old, new in (
        ("/etc/nginx/ssl", str(folder)),
        ("listen 80;", f"listen 127.0.0.1:{host.free_port()};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{https} ssl;"),
        ("unix:/home/git/gitlab/tmp/sockets/gitlab-workhorse.socket", f"127.0.0.1:{ports['gitlab']}"),
        ("127.0.0.1:5000;", f"127.0.0.1:{ports['5000']};"),
        ("127.0.0.1:5001;", f"127.0.0.1:{ports['5001']};"),
        ("127.0.0.1:8181;", f"127.0.0.1:{ports['8181']};"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "site.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {folder}/site.conf;\n}}\n"
    )
    command = (program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"))
    tested = host.run(*command, "-t")
    assert tested.code == 0, tested
    server = host.start("nginx", *command)
    server.wait_for(lambda: not host.is_free(https))
    return https


class _Here(HTTPSConnection):
    """A connection to this machine under another machine's name."""

    def __init__(self, name: str, port: int) -> None:
        self.context = ssl.create_default_context()
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        super().__init__(name, port, timeout=10)

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        self.sock = self.context.wrap_socket(plain, server_hostname=self.host)


def ask(port: int, name: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], Any]:
    """One request to a server of that name: status, headers by lower-case name, and the JSON or text."""
    connection = _Here(name, port)
    try:
        connection.request("GET", path, headers={"Host": name, **(headers or {})})
        response = connection.getresponse()
        body = response.read().decode()
        found = {key.lower(): value for key, value in response.getheaders()}
        is_json = "json" in found.get("content-type", "")
        return response.status, found, json.loads(body) if is_json else body
    finally:
        connection.close()
