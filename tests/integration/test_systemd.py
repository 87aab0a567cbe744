"""The manual's way into production, word for word, on a Debian that systemd has booted in a container of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.integration.conftest import Ran, Server, answers, printed_password, run, tokenissuer_command
from tests.integration.release.conftest import ROOT, wheelhouse
from tests.support.machine import free_port, wait_until

__all__ = ["wheelhouse"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "tokenissuer", "backends", "conf")
NAME = "registry.example.com"

#: Asks without pause, each time on a new connection, until the file that it is given appears.
LOAD = """
import base64, http.client, json, os, sys, threading
end, password = sys.argv[1:]
done, failed = [0], []
def ask():
    while not os.path.exists(end):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 5001, timeout=30)
            secret = base64.b64encode(f"admin:{password}".encode()).decode()
            connection.request("GET", "/jwt/auth", headers={"Authorization": f"Basic {secret}"})
            status = connection.getresponse().status
            if status != 200:
                failed.append(str(status))
        except OSError as error:
            failed.append(repr(error))
        done[0] += 1
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([done[0], failed]))
"""


class Debian:
    """A container that systemd boots: this machine's programs, a disk and a network of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.root = folder / "root"
        self.server: Server | None = None
        self.leader = ""
        for path in (self.root, folder / "changes"):
            path.mkdir()
        self._mount("tmpfs", "mode=755", folder / "changes")
        for name in ("upper", "work"):
            (folder / "changes" / name).mkdir(mode=0o755)
        options = f"lowerdir=/,upperdir={folder}/changes/upper,workdir={folder}/changes/work"
        self._mount("overlay", options, self.root)

    def _mount(self, kind: str, options: str, place: Path) -> None:
        mounted = run("mount", "-t", kind, "-o", options, kind, str(place))
        if mounted.code:
            pytest.skip(f"{kind} cannot be mounted here: {mounted.stderr.strip()}")
        self.stack.callback(run, "umount", "--lazy", str(place))

    def empty(self) -> None:
        """Take away what this machine would start: a fresh Debian has none of it, only what the manual installs."""
        for place in ("etc/systemd/system", *(f"etc/rc{level}.d" for level in "2345")):
            for path in (self.root / place).rglob("*"):
                if not path.is_dir() and not re.search(r"(nginx|docker-registry)(\.service)?$", path.name):
                    path.unlink()
        for place in ("var/lib/apt/lists", "var/log/journal", "var/lib/docker-registry", "etc/tokenissuer"):
            shutil.rmtree(self.root / place, ignore_errors=True)
        (self.root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")

    def boot(self) -> None:
        """Boot it and wait until everything that starts by itself has started."""
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
        command += ["--directory", str(self.root), "--machine", f"debian-{uuid.uuid4().hex[:8]}"]
        self.server = Server("systemd", command, self.folder / "console.log", {"PATH": SBIN})
        self.stack.callback(self.stop)
        if not wait_until(self._is_up, 60):
            said = self.server.output().strip()[-600:]
            self.stop()
            pytest.skip(f"systemd-nspawn cannot boot a system here: {said}")

    def _is_up(self) -> bool:
        assert self.server is not None
        if self.server.process.poll() is not None:
            return False
        children = self.server.children()
        self.leader = children[0].name if children else ""
        said = self.run("systemctl is-system-running").stdout.strip() if self.leader else ""
        return said in ("running", "degraded")

    def stop(self) -> None:
        """Switch it off the hard way if it still runs."""
        if self.server is not None:
            for child in self.server.children() if self.server.process.poll() is None else []:
                with suppress(OSError):
                    os.kill(int(child.name), signal.SIGKILL)
            self.server.stop()
            self.server = None

    def reboot(self) -> None:
        """`systemctl reboot`, and up again."""
        assert self.server is not None
        self.run("systemctl reboot")
        # nspawn ends with 133 when it is asked to reboot: whoever started it starts it again.
        assert self.server.wait(90) in (0, 133)
        self.stop()
        self.boot()

    def run(self, script: str, stdin: str = "", seconds: float = 120) -> Ran:
        """What root types there, in the checkout."""
        enter = ["nsenter", "--target", self.leader, "--mount", "--uts", "--ipc", "--net", "--pid"]
        typed = ["/bin/bash", "-ec", f"cd /root/tokenissuer\n{script}"]
        env = ["env", "-i", f"PATH={SBIN}", "HOME=/root", "LANG=C.UTF-8", f"SSL_CERT_FILE=/etc/nginx/ssl/{NAME}.crt"]
        return run(*enter, *env, "DOCKER_HOST=unix:///nowhere.sock", *typed, stdin=stdin, seconds=seconds)

    def systemctl(self, words: str) -> Ran:
        """One command of systemd."""
        return self.run(f"systemctl --no-pager --full {words}")

    def login(self, password: str) -> Ran:
        """The manual's last step; the password comes from standard input, for nobody sits there."""
        (line,) = re.findall(r"(?m)^docker login .*$", manual(6))
        return self.run(f"{line} --password-stdin", stdin=password)


def manual(step: int) -> str:
    """The commands of one step of the manual's first page."""
    text = (ROOT / "docs" / "first-registry.md").read_text()
    (part,) = re.findall(rf"(?ms)^## {step}\. .*?(?=^## )", text)
    return "".join(re.findall(r"(?s)```sh\n(.*?)```", part))


def commands(page: str, heading: str) -> list[str]:
    """The blocks of commands in a section of another page."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    (part,) = re.findall(rf"(?ms)^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text)
    return re.findall(r"(?s)```sh\n(.*?)```", part)


@pytest.fixture(scope="module")
def debian(wheelhouse: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    """A fresh Debian with a checkout, a certificate and a source of Python packages."""
    for program, package in (
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
        ("openssl", "openssl"),
    ):
        if shutil.which(program, path=SBIN) is None:
            pytest.skip(f"no {program} program: install {package}")
    if os.geteuid() != 0:
        pytest.skip("only root can boot a container")
    for package in ("nginx", "docker-registry", "python3-venv"):
        if "installed" not in run("dpkg-query", "-W", "-f", "${db:Status-Status}", package).stdout:
            pytest.skip(f"the manual installs {package}, which is not here, and the container has no network")
    version = "import sys; print(sys.version_info[:2])"
    if run("/usr/bin/python3", "-c", version).stdout != run(sys.executable, "-c", version).stdout:
        pytest.skip("the manual's python3 is not of the tests' version, and the container has no network")
    with ExitStack() as stack:
        made = Debian(tmp_path_factory.mktemp("debian"), stack)
        made.empty()
        for name in SOURCES:
            source, target = ROOT / name, made.root / "root" / "tokenissuer" / name
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        shutil.copytree(wheelhouse(sys.executable), made.root / "srv" / "wheels")
        (made.root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /srv/wheels\n")
        (made.root / "etc/hosts").write_text(f"127.0.0.1 localhost {NAME}\n")
        tls = made.root / "etc/nginx/ssl"
        shutil.rmtree(tls, ignore_errors=True)
        tls.mkdir()
        run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "2"),
            *("-keyout", str(tls / f"{NAME}.key"), "-out", str(tls / f"{NAME}.crt")),
        ).succeeded()
        made.boot()
        yield made


@pytest.fixture(scope="module")
def password(debian: Debian) -> str:
    """The first account's password, on a machine on which the manual's steps 1 to 5 were typed."""
    printed = {step: debian.run(manual(step), seconds=200).succeeded() for step in (1, 2, 3, 4, 5)}
    assert "Active: active (running)" in printed[3]
    assert re.search(r'Status: ".*serv', printed[3]), printed[3]
    return printed_password(printed[2])


def test_the_manual_leads_to_a_login(debian: Debian, password: str) -> None:
    """From nothing, with nothing but its commands."""
    assert "Login Succeeded" in debian.login(password).succeeded()
    assert "wrong user name or password" in debian.login("wrong").failed()


def test_nobody_is_refused_while_it_restarts_or_reloads(debian: Debian, password: str) -> None:
    """The socket is systemd's: who comes meanwhile waits."""
    debian.run(f"cat >/root/load.py <<'EOF'\n{LOAD}\nEOF").succeeded()
    script = f"rm -f /root/end; timeout 90 python3 /root/load.py /root/end '{password}' & load=$!\n"
    for action in ("reload", "restart", "reload", "restart", "restart"):
        script += f"sleep 1; systemctl {action} tokenissuer\n"
    done, failed = json.loads(debian.run(script + "sleep 1; touch /root/end; wait $load").succeeded())
    assert failed == []
    assert done > 50
    # A reload keeps the process, a restart does not; neither has failed.
    assert debian.systemctl("show -p NRestarts --value tokenissuer").stdout.strip() == "0"


def test_a_reload_that_cannot_be_used_changes_nothing(debian: Debian, password: str) -> None:
    """And the reason is in `systemctl status`."""
    config = "/etc/tokenissuer/tokenissuer.toml"
    debian.run(f"cp {config} /root/good.toml; echo 'colour = 1' >>{config}; systemctl reload tokenissuer").succeeded()
    try:
        assert wait_until(lambda: "colour" in debian.systemctl("status tokenissuer").stdout, 30)
        assert "Login Succeeded" in debian.login(password).succeeded()
    finally:
        debian.run(f"cat /root/good.toml >{config}; systemctl reload tokenissuer").succeeded()


def test_after_a_reboot_everything_serves_again(debian: Debian, password: str) -> None:
    """And the login from before still counts."""
    debian.reboot()
    assert debian.systemctl("is-active tokenissuer tokenissuer.socket nginx docker-registry").code == 0
    assert wait_until(lambda: debian.login(password).code == 0, 30)


def test_a_configuration_that_cannot_be_used_is_named_and_the_socket_closes(debian: Debian, password: str) -> None:
    """`systemctl start` fails, `systemctl status` says why, and clients are refused instead of waiting for ever."""
    config = "/etc/tokenissuer/tokenissuer.toml"
    debian.run(f"cp {config} /root/good.toml; systemctl stop tokenissuer tokenissuer.socket").succeeded()
    try:
        debian.run(f"echo 'colour = 1' >>{config}; systemctl start tokenissuer.socket").succeeded()
        began = time.monotonic()
        debian.systemctl("start tokenissuer").failed()
        assert time.monotonic() - began < 30
        assert wait_until(lambda: debian.systemctl("is-failed tokenissuer.socket").code == 0, 60)
        assert "refused" in debian.run("exec 3<>/dev/tcp/127.0.0.1/5001").failed()
        assert "unknown key 'colour'" in debian.run("journalctl --no-pager -u tokenissuer").stdout
        status = debian.systemctl("status tokenissuer").stdout
        assert "unknown key 'colour'" in status, status
    finally:
        debian.run(f"cat /root/good.toml >{config}; systemctl reset-failed").succeeded()
    # Mended, it starts again as it always does.
    debian.systemctl("start tokenissuer.socket tokenissuer").succeeded()
    assert "Login Succeeded" in debian.login(password).succeeded()


def test_a_key_of_ones_own_can_be_read_by_the_service(debian: Debian, password: str) -> None:
    """Made and put there with the manual's commands; `check` looks with the eyes of the service."""
    make, put = commands("first-registry", "A key that you have already")
    checked = debian.run(f"cd /root\n{make}\n{put}")
    assert "auth.key" not in checked.stdout + checked.stderr, checked
    debian.run("rm /etc/tokenissuer/jwks.json; systemctl restart docker-registry").succeeded()
    assert wait_until(lambda: debian.login(password).code == 0, 30)
    assert debian.run("stat -c '%U %G %a' /etc/tokenissuer/auth.key").stdout == "root tokenissuer 640\n"


def test_a_key_that_is_a_credential(debian: Debian, password: str) -> None:
    """The file is root's alone; the manual's commands name the copy, and keys follow one another."""
    closed, again = commands("systemd", "Secrets as credentials")
    config = "/etc/tokenissuer/tokenissuer.toml"
    (key,) = re.findall(r'(?m)^key = "(/run/credentials/.*)"$', (ROOT / "docs" / "systemd.md").read_text())
    debian.run(f"cp {config} /root/good.toml; cp /etc/systemd/system/tokenissuer.service /root").succeeded()
    try:
        debian.run(closed).succeeded()
        paths = {"key": key, "certificate": "/etc/tokenissuer/auth.crt"}
        edits = "; ".join(f's#^{name} = .*#{name} = "{path}"#' for name, path in paths.items())
        debian.run(f"sed -i '{edits}' {config}").succeeded()
        debian.run(again).succeeded()
        assert wait_until(lambda: debian.login(password).code == 0, 30), debian.systemctl("status tokenissuer").stdout
        assert debian.run("stat -c '%U %G %a' /etc/tokenissuer/auth.key").stdout == "root root 600\n"
        (rotate,) = commands("keys", "With systemd's credentials")
        add, switch, restart, _ = rotate.splitlines()
        debian.run(f"{add}\nsystemctl restart docker-registry").succeeded()
        assert wait_until(lambda: debian.run(switch).code == 0, 30)
        debian.run(restart).succeeded()
        assert wait_until(lambda: debian.login(password).code == 0, 30)
    finally:
        debian.run(
            f"cat /root/good.toml >{config}; cp /root/tokenissuer.service /etc/systemd/system/; "
            "chgrp tokenissuer /etc/tokenissuer/auth.key; chmod 640 /etc/tokenissuer/auth.key; "
            "systemctl daemon-reload; systemctl restart tokenissuer"
        ).succeeded()


def test_the_socket_can_have_another_address(debian: Debian, password: str) -> None:
    """As on the second of several machines; here the network is that of the machine itself."""
    _, move = commands("servers", "Set up the second machine")
    try:
        debian.run(move.replace("10.0.0.2", "127.0.0.2")).succeeded()
        assert debian.run("exec 3<>/dev/tcp/127.0.0.2/5001").code == 0
        assert "refused" in debian.run("exec 3<>/dev/tcp/127.0.0.1/5001").failed()
        assert debian.systemctl("is-active tokenissuer").code == 0
    finally:
        debian.run(
            "rm -r /etc/systemd/system/tokenissuer.socket.d; systemctl daemon-reload; "
            "systemctl stop tokenissuer.socket tokenissuer; systemctl start tokenissuer.socket tokenissuer"
        ).succeeded()
    assert "Login Succeeded" in debian.login(password).succeeded()


def test_a_backup_brings_everything_back(debian: Debian, password: str) -> None:
    """All that the manual's steps 2 to 5 made is taken away, and unpacked again; the old password and logins count."""
    backup, store = commands("backup", "What must be kept")
    (restore,) = commands("backup", "Restore")
    sessions = "tokenissuer sessions list --config /etc/tokenissuer/tokenissuer.toml"
    debian.login(password).succeeded()
    before = debian.run(sessions).succeeded()
    has_sqlite = debian.run("command -v sqlite3").code == 0
    debian.run(backup + (store if has_sqlite else "")).succeeded()
    debian.run(
        "systemctl disable --now tokenissuer.socket tokenissuer docker-registry; systemctl stop nginx; "
        "rm -r /etc/tokenissuer /var/lib/tokenissuer /etc/nginx/ssl /etc/nginx/sites-*/registry "
        "/etc/docker/registry/config.yml /etc/systemd/system/tokenissuer.*; systemctl daemon-reload; "
        "systemctl start nginx"
    ).succeeded()
    debian.run(restore).succeeded()
    assert wait_until(lambda: debian.login(password).code == 0, 30)
    if has_sqlite:
        assert before.splitlines()[0][:12] in debian.run(sessions).succeeded()


class TestWithoutSystemd:
    """What systemd is told, by the command itself."""

    @pytest.fixture
    def told(self, tmp_path: Path) -> Iterator[socket.socket]:
        """What systemd would listen on."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(tmp_path / "notify"))
            sock.settimeout(20)
            yield sock

    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        """A set-up."""
        run(tokenissuer_command(), "init", str(tmp_path / "made")).succeeded()
        return tmp_path / "made" / "tokenissuer.toml"

    def test_it_is_ready_when_it_answers(self, config: Path, told: socket.socket, tmp_path: Path) -> None:
        """Not a moment before."""
        port = free_port()
        command = [tokenissuer_command(), "serve", "--config", str(config), "--listen", f"127.0.0.1:{port}"]
        server = Server("issuer", command, tmp_path / "log", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            assert answers(f"http://127.0.0.1:{port}/healthz", 200)()
        finally:
            server.stop()

    def test_it_is_never_ready_with_a_configuration_that_cannot_be_used(
        self, config: Path, told: socket.socket, tmp_path: Path
    ) -> None:
        """It ends with 1 and says why."""
        with config.open("a") as file:
            file.write("colour = 1\n")
        told.settimeout(0.2)
        command = (tokenissuer_command(), "serve", "--config", str(config), "--listen", f"127.0.0.1:{free_port()}")
        ran = run(*command, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert ran.code == 1, ran
        assert "colour" in ran.stderr
        with suppress(TimeoutError):
            assert b"READY" not in told.recv(4096)
