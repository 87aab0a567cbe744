"""What stands in front of the issuer in production, as conf/ says it: nginx, Apache, gunicorn; and load on it."""

from __future__ import annotations

import base64
import http.client
import importlib.resources
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import bcrypt
import pytest

from tests.support.http import Answer, basic
from tests.support.nginx import nginx_file
from tests.support.tls import Authority, make_authority

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Issuer, Server, Site, Sites

CONF = Path(__file__).parents[3] / "conf"
SERVICE = "container_registry"
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
FORM = "application/x-www-form-urlencoded"

RULES = """
[[access]]
authenticated = true
repositories = ["{account}/**"]
actions = ["pull", "push", "delete"]
"""

#: With a rule for addresses inside, and one against an address.
NETWORK_RULES = (
    RULES
    + """
[[access]]
authenticated = true
repositories = ["inside/**"]
actions = ["pull"]
networks = ["127.0.0.2"]

[[access]]
authenticated = true
repositories = ["kept/**"]
actions = ["pull"]

[[access]]
authenticated = true
repositories = ["kept/**"]
actions = ["pull"]
networks = ["127.0.0.3"]
effect = "deny"
"""
)

LDAP = """
[[backends]]
type = "ldap"
servers = ["ldaps://127.0.0.1:9"]
bind_dn = "cn=reader,dc=example,dc=test"
bind_password_file = "{secret}"

[backends.user]
base = "dc=example,dc=test"
"""

APACHE = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
Listen 127.0.0.1:{port}
{user}
Mutex file:{folder}
WSGISocketPrefix {folder}/wsgi
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule env_module {modules}/mod_env.so
LoadModule socache_shmcb_module {modules}/mod_socache_shmcb.so
LoadModule ssl_module {modules}/mod_ssl.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule wsgi_module {modules}/mod_wsgi.so
ErrorLog /dev/stderr
# As Debian's apache2.conf has it.
<Directory />
    AllowOverride None
    Require all denied
</Directory>
Include {folder}/site.conf
"""


def daemon_program(name: str, reason: str) -> str:
    """The program, also where only root has it on PATH; without it the test is skipped."""
    found = shutil.which(name, path=SBIN)
    if found is None:
        pytest.skip(f"no {name} program: {reason}")
    return found


def fill_in(text: str, places: Mapping[str, str]) -> str:
    """A file of conf/ with this machine's folders and ports: every place must be there."""
    for place, value in places.items():
        assert place in text, f"{place!r} is not in the file any more"
        text = text.replace(place, value)
    return text


@dataclass
class Front:
    """What clients talk to: one address, behind which are issuer and registry."""

    issuer: Issuer
    port: int
    path: str
    authority: Authority | None = None
    server: Server | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def connect(self, source: str = "127.0.0.1", host: str = "127.0.0.1") -> http.client.HTTPConnection:
        """A connection from one of this machine's addresses."""
        if self.authority is None:
            return http.client.HTTPConnection(host, self.port, timeout=20, source_address=(source, 0))
        trusting = ssl.create_default_context(cafile=str(self.authority.certificate))
        return http.client.HTTPSConnection(host, self.port, timeout=20, source_address=(source, 0), context=trusting)

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """One request; a body that is an iterator is sent in chunks."""
        connection = self.connect(source)
        try:
            chunked = body is not None and not isinstance(body, bytes)
            connection.request(method, target, body=body, headers=dict(headers or {}), encode_chunked=chunked)
            response = connection.getresponse()
            return Answer(
                response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def ask(
        self,
        *scopes: str,
        user: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """Ask for a token by GET."""
        query = urlencode([("service", SERVICE), *(("scope", scope) for scope in scopes)])
        sent = dict(headers or {})
        if user:
            secret = self.issuer.passwords[user] if password is None else password
            sent["Authorization"] = basic(user, secret)
        return self.request("GET", f"{self.path}?{query}", sent, source=source)

    def post(self, scope: str, user: str, *, chunked: bool, password: str | None = None) -> Answer:
        """Ask for a token by POST, as containerd and skopeo do."""
        secret = self.issuer.passwords[user] if password is None else password
        form = {"grant_type": "password", "service": SERVICE, "client_id": "test", "username": user, "password": secret}
        body = urlencode({**form, "scope": scope}).encode()
        pieces = (body[start : start + 40] for start in range(0, len(body), 40))
        return self.request("POST", self.path, {"Content-Type": FORM}, pieces if chunked else body)


def claims(token: str) -> dict[str, Any]:
    """What a token says."""
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


@dataclass
class Load:
    """Somebody who asks without pause; what failed."""

    failures: list[str] = field(default_factory=list)
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, trouble: str) -> None:
        """Count one request; an empty text is success."""
        with self._lock:
            self.done += 1
            if trouble:
                self.failures.append(trouble)

    def wait_for(self, more: int) -> None:
        """Go on when so many more have been answered."""
        goal = self.done + more
        end = time.monotonic() + 30
        while self.done < goal:
            assert time.monotonic() < end, f"only {self.done} of {goal} requests in time; failures: {self.failures}"
            time.sleep(0.02)


@contextmanager
def under_load(work: Sequence[Callable[[], str]]) -> Iterator[Load]:
    """Repeat each piece of work in a thread of its own; each returns what went wrong, empty for nothing."""
    load, ending = Load(), threading.Event()

    def repeat(piece: Callable[[], str]) -> None:
        while not ending.is_set():
            try:
                load.note(piece())
            except Exception as error:
                load.note(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=repeat, args=(piece,)) for piece in work]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ending.set()
        for thread in threads:
            thread.join(60)


class Production:
    """Puts together what production has, with the files of conf/, on this machine's ports."""

    def __init__(self, folder: Path, stack: ExitStack, host: Host, sites: Sites) -> None:
        self.folder = folder
        self.stack = stack
        self.host = host
        self.sites = sites
        self.claims = claims
        self.under_load = under_load
        self.daemon_program = daemon_program
        self.fill_in = fill_in
        self.conf = CONF
        self.issuers: list[Server] = []
        self.authority = make_authority(folder / "tls", "localhost", "127.0.0.1", "127.0.0.2")

    def issuer(self, name: str, realm: str | None = None, *, trusted: str = "127.0.0.1", rules: str = RULES) -> Issuer:
        """A set-up as `init` makes it, with accounts alice and bob, for clients that are sent to the realm."""
        issuer = self.sites.new_issuer(name)
        if realm is not None:
            for path in (issuer.config, issuer.folder / "registry.yml"):
                path.write_text(path.read_text().replace(issuer.realm, realm))
        issuer.set_access(rules)
        text, count = re.subn(
            r"(?m)^trusted_proxies = .*$", f'trusted_proxies = ["{trusted}"]', issuer.config.read_text()
        )
        assert count == 1, text
        issuer.config.write_text(text)
        self.cheap_passwords(issuer, "alice", "bob")
        return issuer

    def cheap_passwords(self, issuer: Issuer, *users: str) -> None:
        """Accounts whose passwords cost little to check: there are many logins in these tests."""
        issuer.passwords = {user: f"{user}'s sécret {uuid.uuid4().hex[:8]}" for user in users}
        lines = [
            f"{user}:{bcrypt.hashpw(secret.encode(), bcrypt.gensalt(4)).decode()}\n"
            for user, secret in issuer.passwords.items()
        ]
        (issuer.folder / "users.htpasswd").write_text("".join(lines))

    def slow_account(self, user: str, secret: str) -> str:
        """A line of a password file that takes half a second to check."""
        return f"{user}:{bcrypt.hashpw(secret.encode(), bcrypt.gensalt(13)).decode()}\n"

    def ldap_backend(self, secret: Path) -> str:
        """A backend with a secret in a file; nobody listens where it would ask."""
        return LDAP.format(secret=secret)

    def kid(self, token: str) -> str:
        """The name of the key that a token was signed with."""
        header = token.split(".")[0]
        return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])

    def serve(self, issuer: Issuer, *options: str, port: int | None = None) -> Server:
        """`tokenissuer serve` with more options, perhaps a second time on another port."""
        port = port or issuer.port
        server = self.host.start(f"issuer-{port}", *issuer.command(port), *options)
        server.wait_for(lambda: self.is_up(port))
        self.issuers.append(server)
        return server

    def is_up(self, port: int) -> bool:
        """Whether an issuer answers there."""
        with suppress(OSError):
            return self.host.get(f"http://127.0.0.1:{port}/healthz").status == 200
        return False

    def direct(self, issuer: Issuer, port: int | None = None) -> Front:
        """Nothing in front."""
        return Front(issuer, port or issuer.port, "/token")

    def nginx(self, issuer: Issuer, port: int, *sites: str, path: str = "/jwt/auth") -> Front:
        """The real nginx with sites from conf/ that have been filled in."""
        program = daemon_program("nginx", "install nginx-light")
        folder = self.folder / f"nginx-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        for number, site in enumerate(sites):
            (folder / f"site{number}.conf").write_text(site)
        (folder / "nginx.conf").write_text(nginx_file(folder, f"include {folder}/site*.conf;"))
        command = [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        tried = self.host.run(*command, "-t")
        assert tried.code == 0, str(tried)
        # A warning would be the reader's problem: the files are to be used as they are.
        assert "warn" not in tried.stderr, str(tried)
        front = Front(issuer, port, path, self.authority)
        front.server = self.host.start("nginx", *command)
        front.server.wait_for(lambda: answered(front))
        return front

    def nginx_site(self, name: str, port: int, places: Mapping[str, str], host: str = "127.0.0.1") -> str:
        """A site of conf/ for this machine."""
        text = (CONF / name).read_text()
        (server_name,) = re.findall(r"server_name (\S+);", text)
        return fill_in(
            text,
            {
                "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
                f"server_name {server_name};": f"server_name {host};",
                f"/etc/nginx/ssl/{server_name}.crt": str(self.authority.server_certificate),
                f"/etc/nginx/ssl/{server_name}.key": str(self.authority.server_key),
                **places,
            },
        )

    def apache(self, issuer: Issuer, port: int, registry: str) -> Front:
        """The real Apache with the site from conf/; the issuer runs in its daemon processes."""
        program = daemon_program("apache2", "install apache2 and libapache2-mod-wsgi-py3")
        modules = Path("/usr/lib/apache2/modules")
        if not (modules / "mod_wsgi.so").exists():
            pytest.skip("Apache has no mod_wsgi: install libapache2-mod-wsgi-py3")
        folder = self.open_folder()
        python_home = make_python_home(folder / "venv")
        user = ""
        if os.geteuid() == 0:
            user = "User www-data\nGroup www-data"
            shutil.copytree(issuer.folder, folder / "conf")
            for path in (folder / "conf", *(folder / "conf").iterdir()):
                shutil.chown(path, "www-data", "www-data")
        home = folder / "conf" if user else issuer.folder
        script = importlib.resources.files("tokenissuer.cli") / "templates" / "tokenissuer.wsgi"
        (home / "tokenissuer.wsgi").write_bytes(script.read_bytes())
        site = fill_in(
            (CONF / "apache.conf").read_text(),
            {
                "<VirtualHost *:443>": f"<VirtualHost 127.0.0.1:{port}>",
                "registry.example.com\n": "127.0.0.1\n",
                "/etc/apache2/ssl/registry.example.com.crt": str(self.authority.server_certificate),
                "/etc/apache2/ssl/registry.example.com.key": str(self.authority.server_key),
                "user=tokenissuer group=tokenissuer ": "",
                "python-home=/opt/tokenissuer": f"python-home={python_home}",
                "home=/etc/tokenissuer": f"home={home}",
                "/etc/tokenissuer/tokenissuer.wsgi": str(home / "tokenissuer.wsgi"),
                "<Directory /etc/tokenissuer>": f"<Directory {home}>",
                "http://127.0.0.1:5000/": f"http://{registry}/",
            },
        )
        (folder / "site.conf").write_text(site)
        (folder / "apache.conf").write_text(APACHE.format(folder=folder, port=port, modules=modules, user=user))
        command = [program, "-f", str(folder / "apache.conf")]
        tried = self.host.run(*command, "-t")
        assert tried.code == 0, str(tried)
        front = Front(issuer, port, "/jwt/auth", self.authority)
        # The folder that is in force: what a test changes, it must change there.
        issuer.folder = home
        front.server = self.host.start("apache", *command, "-DFOREGROUND")
        front.server.wait_for(lambda: answered(front))
        return front

    def proxy(self, issuer: Issuer, port: int, path: str, *command: str, env: Mapping[str, str] | None = None) -> Front:
        """A proxy that ends TLS, with a file that has been filled in."""
        front = Front(issuer, port, path, self.authority)
        front.server = self.host.start(Path(command[0]).name, *command, env=env)
        front.server.wait_for(lambda: answered(front))
        return front

    def gunicorn(self, issuer: Issuer, *options: str) -> Front:
        """The WSGI object under gunicorn."""
        return self.wsgi(issuer, "gunicorn", *options)

    def documented(self, server: str) -> str:
        """The command line of a server in the manual."""
        (line,) = re.findall(rf"^{server} --.*$", (CONF.parent / "docs" / "servers.md").read_text(), re.MULTILINE)
        return str(line)

    def wsgi(self, issuer: Issuer, server: str, *options: str) -> Front:
        """The WSGI object under another server, started as the manual says."""
        front = Front(issuer, self.host.free_port(), "/token")
        _, *command = shlex.split(self.documented(server).replace("5001", str(front.port)))
        env = {"TOKENISSUER_CONFIG": str(issuer.config)}
        if server == "uwsgi":
            program = self.host.program("uwsgi", "install Debian's uwsgi-core and uwsgi-plugin-python3")
            if sys.version_info[:2] != (3, 11):
                pytest.skip("Debian's uWSGI runs Python 3.11, which cannot use this environment's packages")
            command += ["--pythonpath", sysconfig.get_path("purelib")]
        else:
            program = self._installed(server)
        front.server = self.host.start(server, program, *options, *command, env=env)
        front.server.wait_for(lambda: answered(front))
        return front

    def _installed(self, name: str) -> str:
        command = Path(sysconfig.get_path("scripts")) / name
        if not command.exists():
            pytest.skip(f"no {name}: pip install {name}")
        return str(command)

    def open_folder(self) -> Path:
        """A folder that another user may look into: Apache's processes are not root."""
        folder = Path(tempfile.mkdtemp(prefix="tokenissuer-"))
        self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        return folder

    def flow(self, front: Front, client: Client, image: Image) -> None:
        """What people do all day: login, push, pull, delete, with certificates checked."""
        if front.authority is not None:
            front.authority.trust(client)
        refused = client.login(front.address, "alice", "wrong").failed()
        assert "wrong user name or password" in refused
        client.login(front.address, "alice", front.issuer.passwords["alice"]).succeeded()
        reference = f"{front.address}/alice/{uuid.uuid4().hex[:12]}:v1"
        client.skopeo("copy", "--dest-tls-verify=true", image.source, f"docker://{reference}").succeeded()
        pulled = self.folder / f"pulled-{uuid.uuid4().hex[:8]}"
        client.skopeo("copy", "--src-tls-verify=true", f"docker://{reference}", f"oci:{pulled}:v1").succeeded()
        assert image.is_in(pulled)
        client.skopeo("delete", "--tls-verify=true", f"docker://{reference}").succeeded()
        gone = client.skopeo("inspect", "--tls-verify=true", f"docker://{reference}").failed()
        assert "manifest unknown" in gone.lower(), gone
        denied = client.skopeo("copy", "--dest-tls-verify=true", image.source, f"docker://{front.address}/bob/x:v1")
        assert "denied" in denied.failed() or "unauthorized" in denied.failed()

    def ask_registry(self, address: str, headers: Mapping[str, str]) -> int:
        """The status of a registry's base page."""
        connection = http.client.HTTPConnection(address, timeout=20)
        try:
            connection.request("GET", "/v2/", headers=dict(headers))
            return connection.getresponse().status
        finally:
            connection.close()

    def replicas(self, issuer: Issuer, generation: int, count: int, trust: str = "rootcertbundle") -> list[Replica]:
        """Registries over one store that trust the issuer, with its files as they lie there."""
        program = self.host.path_with_registry(generation)
        (command,) = Path(program).iterdir()
        folder = self.folder / f"store-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        text = (issuer.folder / "registry.yml").read_text()
        if trust == "jwks":
            text = re.sub(r"rootcertbundle:.*", f"jwks: {issuer.folder / 'jwks.json'}", text)
        (folder / "registry.yml").write_text(text)
        made = []
        for _ in range(count):
            address = f"127.0.0.1:{self.host.free_port()}"
            env = {
                "REGISTRY_HTTP_ADDR": address,
                # What makes several one: a store, and the secret with which they sign the addresses of uploads.
                "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(folder / "data"),
                "REGISTRY_HTTP_SECRET": "the same for all",
                # Without it a registry that is told to end drops what it is doing.
                "REGISTRY_HTTP_DRAINTIMEOUT": "10s",
                "OTEL_TRACES_EXPORTER": "none",
            }
            made.append(Replica(self, [str(command), "serve", str(folder / "registry.yml")], env, address))
            made[-1].start()
        return made

    def registry(self, issuer: Issuer, generation: int) -> Site:
        """A registry that trusts the issuer."""
        return self.sites.registry(issuer, generation)


@dataclass
class Replica:
    """One of several registries over one store, which can be restarted."""

    production: Production
    command: list[str]
    env: Mapping[str, str]
    address: str
    server: Server | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.server = self.production.host.start(f"registry-{self.address}", *self.command, env=self.env)
        self.server.wait_for(lambda: self.is_up())

    def is_up(self) -> bool:
        """Whether it answers."""
        with suppress(OSError):
            return self.production.host.get(f"http://{self.address}/v2/").status == 401
        return False

    def restart(self) -> float:
        """Restart it; return the seconds for which it refused connections."""
        assert self.server is not None
        began = time.monotonic()
        self.server.send(signal.SIGTERM)
        self.server.wait()
        self.start()
        return time.monotonic() - began


def answered(front: Front) -> bool:
    """Whether the way to the issuer is open."""
    with suppress(OSError, http.client.HTTPException):
        return front.request("GET", front.path).status == 200
    return False


def make_python_home(folder: Path) -> Path:
    """A virtual environment of the Python that Apache has, with a copy of what is installed for the tests.

    A copy, because Apache's processes are not root, and a checkout in /root can be read by nobody else.
    """
    for python in ("/usr/bin/python3", sys.executable):
        says = subprocess.run(
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": SBIN},
        )
        if says.stdout.strip() == f"{sys.version_info.major}.{sys.version_info.minor}":
            break
    else:
        pytest.skip("Apache's Python is not of the tests' version")
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, env={"PATH": SBIN})
    (packages,) = folder.glob("lib/python*/site-packages")
    not_needed = shutil.ignore_patterns("mypy*", "ruff*", "pip*", "hypothesis*", "pytest*", "_pytest", "*__pycache__*")
    shutil.copytree(sysconfig.get_path("purelib"), packages, ignore=not_needed, dirs_exist_ok=True)
    return folder


@pytest.fixture
def production(tmp_path: Path, host: Host, own_sites: Sites) -> Iterator[Production]:
    """The maker of whole set-ups."""
    with ExitStack() as stack:
        yield Production(tmp_path, stack, host, own_sites)
