"""A backend that somebody else publishes is installed, named in the configuration, and works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

PACKAGE = Path(__file__).parent / "webhook_backend"
ACCOUNTS = {"alice": ("right", ["developers"])}


class Directory(BaseHTTPRequestHandler):
    """The web service that the example backend asks."""

    def do_POST(self) -> None:
        """Answer as the backend's description says."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        password, groups = ACCOUNTS.get(asked["username"].lower(), ("", []))
        status = 404 if not password else 200 if password == asked["password"] else 401
        body = json.dumps({"name": asked["username"].lower(), "groups": groups}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def directory() -> Iterator[str]:
    """The web service's URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Directory) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/who"
        server.shutdown()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment: what is installed here, and the example package besides."""
    folder = tmp_path_factory.mktemp("third-party")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "tested.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # From a copy: building leaves files beside the source.
    source = folder / "source"
    source.mkdir()
    for path in PACKAGE.iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    bin_ = folder / "venv" / "bin"
    done = python(bin_, "-m", "pip", "install", "--quiet", "--no-deps", source)
    assert done.returncode == 0, done.stderr
    return bin_


def python(installed: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the Python of the fresh environment."""
    return subprocess.run([installed / "python", *arguments], capture_output=True, text=True, check=False)


def tokenissuer(installed: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the fresh environment."""
    return python(installed, "-m", "tokenissuer", *arguments)


@pytest.fixture(scope="module")
def config(installed: Path, directory: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set-up whose password file has been exchanged for the example backend by editing the configuration alone."""
    folder = tmp_path_factory.mktemp("set-up")
    made = tokenissuer(installed, "init", folder)
    assert made.returncode == 0, made.stderr
    path = folder / "tokenissuer.toml"
    text = path.read_text()
    edited = re.sub(r'type = "htpasswd"\npath = .*', f'type = "webhook"\nurl = "{directory}"', text, count=1)
    assert edited != text
    path.write_text(edited)
    return path


def test_the_set_up_with_the_example_backend_checks_out(installed: Path, config: Path) -> None:
    """`check` builds the backend it has never heard of."""
    done = tokenissuer(installed, "check", "--config", config)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_wrong_key_is_refused_with_a_near_match(installed: Path, config: Path) -> None:
    """The backend's own options are the schema, for strangers too."""
    wrong = config.with_name("wrong.toml")
    wrong.write_text(config.read_text().replace("\nurl = ", "\nurll = "))
    done = tokenissuer(installed, "check", "--config", wrong)
    assert done.returncode == 1
    assert "[[backends]] 1 (webhook): unknown key 'urll'; did you mean 'url'?" in done.stderr


ASK = """
import sys
import base64, jwt
from webob import Request
from tokenissuer import load_config

application = load_config(sys.argv[1]).application()
for login in ("ALICE:right", "alice:wrong", "nobody:right"):
    request = Request.blank("/token?scope=repository:alice/app:pull")
    request.headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    response = request.get_response(application)
    said = response.json
    if response.status_int == 200:
        claims = jwt.decode(said["token"], options={"verify_signature": False})
        print(response.status_int, claims["sub"], said["scope"])
    else:
        print(response.status_int, said["errors"][0]["message"])
"""


def test_logins_are_decided_by_the_example_backend(installed: Path, config: Path) -> None:
    """Its canonical name counts, its refusals are refusals."""
    done = python(installed, "-c", ASK, config)
    assert done.stdout.splitlines() == [
        "200 alice repository:alice/app:pull",
        "401 wrong user name or password",
        "401 wrong user name or password",
    ], done.stderr


def test_two_packages_with_one_name_are_an_error_that_names_both(installed: Path, config: Path) -> None:
    """Nobody can slip a backend in under another's name."""
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    rival = site / "rival-1.0.dist-info"
    rival.mkdir()
    (rival / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (rival / "entry_points.txt").write_text("[tokenissuer.backends]\nwebhook = rival:Backend\n")
    try:
        done = tokenissuer(installed, "check", "--config", config)
    finally:
        for path in rival.iterdir():
            path.unlink()
        rival.rmdir()
    assert done.returncode == 1
    assert "the packages rival and tokenissuer-webhook both have a backend of type 'webhook'" in done.stderr
