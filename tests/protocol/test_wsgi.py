"""The object for WSGI servers, imported as they do: in a process of its own, with the configuration from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

UNDER_UWSGI = """
import io, sys, types
pieces = [b"grant_type=password&username=al", b"ice&password=ri", b"ght&service=", b"", b"must not be read"]
sys.modules["uwsgi"] = types.SimpleNamespace(chunked_read=lambda: pieces.pop(0))
from tokenissuer.wsgi import application
environ = {
    "REQUEST_METHOD": "POST", "PATH_INFO": "/token", "QUERY_STRING": "", "REMOTE_ADDR": "192.0.2.1",
    "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
    "CONTENT_TYPE": "application/x-www-form-urlencoded", "HTTP_TRANSFER_ENCODING": "Chunked",
    "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr, "wsgi.url_scheme": "http", "wsgi.version": (1, 0),
}
said = []
body = b"".join(application(environ, lambda status, headers: said.append(status)))
print(said[0], b'"access_token"' in body, len(pieces))
"""


def run(code: str, config: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own."""
    environment = {"TOKENISSUER_CONFIG": str(config)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_chunks_are_read_the_way_uwsgi_gives_them_away(set_up: Path, hash_of: Callable[[str], str]) -> None:
    """Through its own call, up to the piece that is empty."""
    (set_up / "users.htpasswd").write_text(f"alice:{hash_of('right')}\n")
    ran = run(UNDER_UWSGI, set_up / "tokenissuer.toml")
    assert ran.stdout == "200 OK True 1\n", ran.stderr
    assert "account=alice" in ran.stderr or '"account": "alice"' in ran.stderr


def test_a_program_that_has_set_up_logging_keeps_it(set_up: Path) -> None:
    """Lines go where it says, once."""
    code = (
        "import logging; logging.basicConfig(format='theirs: %(message)s', level='INFO'); import tokenissuer.wsgi;"
        "logging.getLogger('tokenissuer').info('hello')"
    )
    assert run(code, set_up / "tokenissuer.toml").stderr == "theirs: hello\n"


UNUSABLE = """
import os, sys, tokenissuer.wsgi
from pathlib import Path
from webob import Request
tokenissuer.wsgi.RETRY_INTERVAL = 0.0
request = Request.blank("/healthz")
for _ in range(3):
    answer = request.get_response(tokenissuer.wsgi.application)
    print(answer.status_int, answer.headers.get("Retry-After"), answer.json["error_description"])
Path(os.environ["GOOD"]).rename(os.environ["TOKENISSUER_CONFIG"])
print(request.get_response(tokenissuer.wsgi.application).status_int)
"""


def test_a_configuration_that_cannot_be_used_is_503_and_one_line(set_up: Path) -> None:
    """Not a traceback with each request; and when it is mended, requests are answered."""
    good = set_up / "tokenissuer.toml"
    config = set_up / "other.toml"
    environment = {"TOKENISSUER_CONFIG": str(config), "GOOD": str(good)}
    ran = subprocess.run(
        [sys.executable, "-c", UNUSABLE], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    said = "503 0 the configuration of this token server cannot be used; its log says why"
    assert ran.stdout.splitlines() == [said] * 3 + ["200"], ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if "cannot read" in line]
    assert str(config) in line
    assert "Traceback" not in ran.stderr
