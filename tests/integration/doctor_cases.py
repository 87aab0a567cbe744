"""Whole set-ups to be broken in one way, and what `tokenissuer doctor` says about them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.nginx import nginx_file

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Issuer, Ran, Server
    from tests.support.tls import Authority

ISSUER = "gitlab-issuer"
SERVICE = "container_registry"
CLOCK = Path(__file__).with_name("doctor_clock.py")


@dataclass(frozen=True)
class Diagnosis:
    """What doctor has said."""

    ran: Ran
    document: dict[str, Any]

    @property
    def complaints(self) -> list[dict[str, str]]:
        """Errors and warnings."""
        found = [finding for check in self.document["checks"] for finding in check["findings"]]
        return [finding for finding in found if finding["severity"] != "info"]

    def is_only(self, *expected: tuple[str, ...]) -> None:
        """Fail unless it names exactly these, in this order: severity, then texts."""
        __tracebackhide__ = True
        told = "\n".join("{severity}: {subject}: {fact} -> {remedy}".format(**each) for each in self.complaints)
        assert [each["severity"] for each in self.complaints] == [severity for severity, *_ in expected], (
            told or self.ran
        )
        for finding, (_, *texts) in zip(self.complaints, expected, strict=True):
            said = "{subject} {fact} {remedy}".format(**finding)
            for text in texts:
                assert text in said, f"'{text}' is not in: {said}"
        assert self.ran.code == (1 if expected else 0), self.ran
        assert self.document["ok"] is not bool(expected)
        assert "Traceback" not in self.ran.stderr


@dataclass
class Case:
    """An issuer and a registry on this machine, to be broken."""

    host: Host
    issuer: Issuer
    folder: Path
    stack: ExitStack
    port: int
    servers: list[Server] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The registry, for `docker login`."""
        return f"127.0.0.1:{self.port}"

    @property
    def registry_file(self) -> Path:
        """The registry's configuration file."""
        return self.issuer.folder / "registry.yml"

    @property
    def bundle(self) -> Path:
        """What the registry trusts: a copy of its own."""
        return self.issuer.folder / "bundle.crt"

    def edit(self, old: str, new: str, path: Path | None = None) -> None:
        """Change one place of a file, the registry's if no other is named."""
        path = path or self.registry_file
        text = path.read_text()
        assert old in text, f"{old!r} is not in {path}:\n{text}"
        path.write_text(text.replace(old, new, 1))

    def edit_issuer(self, old: str, new: str) -> None:
        """Change one place of the issuer's configuration."""
        self.edit(old, new, self.issuer.config)

    def send_clients_to(self, realm: str) -> None:
        """Change the realm on both sides."""
        self.edit_issuer(self.issuer.realm, realm)
        self.edit(self.issuer.realm, realm)

    def trust_jwks(self, jwks: Path | None = None) -> None:
        """Let the registry have a JWK Set in place of the bundle."""
        self.edit(f"rootcertbundle: {self.bundle}", f"jwks: {jwks or self.issuer.folder / 'jwks.json'}")

    def serve(self, *before: str) -> None:
        """Start the issuer."""
        command = [*before, *self.issuer.command()[1:]] if before else self.issuer.command()
        server = self.host.start("issuer", *command)
        server.wait_for(lambda: self._answers(self.issuer.port, "/healthz", 200))

    def start_registry(self, generation: int, status: int = 401) -> Server:
        """Start the registry with its file as it is now."""
        (program,) = Path(self.host.path_with_registry(generation)).iterdir()
        server = self.host.start(
            f"registry{generation}",
            str(program),
            "serve",
            str(self.registry_file),
            env={"OTEL_TRACES_EXPORTER": "none"},
        )
        server.wait_for(lambda: self._answers(self.port, "/v2/", status))
        return server

    def start(self, generation: int = 2) -> None:
        """Start both."""
        self.serve()
        self.start_registry(generation)

    def nginx(self, site: str) -> None:
        """Start nginx with one site."""
        folder = self.folder / f"nginx-{len(self.servers)}"
        folder.mkdir()
        (folder / "nginx.conf").write_text(nginx_file(folder, site))
        (port,) = re.findall(r"listen 127\.0\.0\.1:(\d+)", site)
        program = self.host.program("nginx", "install nginx-light")
        server = self.host.start("nginx", program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"))
        self.servers.append(server)
        server.wait_for(lambda: not self.host.is_free(int(port)))

    def front(
        self, *lines: str, realm_lines: Sequence[str] = (), to: int | None = None, tls: Authority | None = None
    ) -> str:
        """Put nginx before the issuer, with the headers that conf/ sets unless others are given; return the realm."""
        port = self.host.free_port()
        lines = lines or ("proxy_set_header X-Forwarded-For $remote_addr;", "proxy_set_header Host $http_host;")
        inner = "\n".join(realm_lines)
        self.nginx(
            f"""server {{
                listen 127.0.0.1:{port}{" ssl" if tls else ""};
                {_tls(tls)}
                location / {{
                    {" ".join(lines)}
                    {inner}
                    proxy_pass http://127.0.0.1:{to or self.issuer.port};
                }}
            }}"""
        )
        return f"{'https' if tls else 'http'}://localhost:{port}/token"

    def doctor(
        self, *arguments: str, file: bool = True, registry: str | None = "", before: Sequence[str] = ()
    ) -> Diagnosis:
        """Run it."""
        command = [*(before or (self.host.tokenissuer(),)), "doctor", "--json", "--config", str(self.issuer.config)]
        if registry is not None:
            command += ["--registry", registry or f"http://{self.address}"]
        if file:
            command += ["--registry-config", str(self.registry_file)]
        ran = self.host.run(*command, *arguments)
        assert ran.stdout.startswith("{"), str(ran)
        return Diagnosis(ran, json.loads(ran.stdout))

    def _answers(self, port: int, path: str, status: int) -> bool:
        with suppress(OSError):
            return self.host.get(f"http://127.0.0.1:{port}{path}").status == status
        return False


def _tls(authority: Authority | None) -> str:
    if authority is None:
        return ""
    return f"ssl_certificate {authority.server_certificate}; ssl_certificate_key {authority.server_key};"


def make_case(host: Host, template: Issuer, folder: Path, stack: ExitStack) -> Case:
    """A set-up as `init` has made it once: nothing is wrong, and nothing runs yet."""
    copy, port, own_port = folder / "set-up", host.free_port(), host.free_port()
    shutil.copytree(template.folder, copy)
    for path in (copy / "tokenissuer.toml", copy / "registry.yml"):
        text = path.read_text().replace(str(template.folder), str(copy))
        path.write_text(text.replace(template.realm, template.realm.replace(str(template.port), str(own_port))))
    issuer = replace(template, folder=copy, port=own_port, stack=stack)
    made = Case(host, issuer, folder, stack, port)
    made.edit("addr: 127.0.0.1:5000", f"addr: 127.0.0.1:{port}")
    made.edit(str(issuer.folder / "auth.crt"), str(made.bundle))
    # YAML without quotes is easier to edit.
    made.registry_file.write_text(re.sub(r'(?m)^(\s+\w+): "(.*)"$', r"\1: \2", made.registry_file.read_text()))
    made.bundle.write_bytes((issuer.folder / "auth.crt").read_bytes())
    return made


def with_clock(seconds: int) -> list[str]:
    """Begin a command of tokenissuer on a machine whose clock is wrong."""
    return [sys.executable, str(CLOCK), str(seconds)]
