"""docs/embedding.md and docs/backends.md: their examples, run as they are."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from webob import Request

from tests.support.http import basic
from tokenissuer import Backend, InvalidCredentials, UnknownAccount
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def lines(code: str) -> int:
    """How many lines of code it has."""
    return sum(bool(line.strip()) for line in code.splitlines())


def host_state() -> object:
    """What a host program would miss if it changed."""
    return (
        logging.getLogger().handlers[:],
        logging.getLogger().level,
        logging.getLogger("tokenissuer").handlers[:],
        logging.raiseExceptions,
        [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        sys.getswitchinterval(),
        {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
    )


@pytest.fixture
def run(set_up: Path, hash_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run an example in a folder with a configuration; it changes nothing in its host."""
    (set_up / "users.htpasswd").write_text(f"alice:{hash_of('right')}\n")
    monkeypatch.chdir(set_up)
    before = host_state()

    def run_example(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(code, names)
        return names

    yield run_example
    assert host_state() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "reload"]


def status(application: Any, path: str = "/registry/token") -> int:
    """What a WSGI application answers to alice."""
    request = Request.blank(path, headers={"Authorization": basic("alice", "right")})
    found: int = request.get_response(application).status_int
    return found


def test_it_is_mounted_in_flask(run: Any) -> None:
    """In five lines or fewer."""
    code = blocks("embedding.md")[0]
    assert lines(code) <= 5
    app = run(code)["app"]
    app.route("/")(lambda: "hello")
    assert status(app.wsgi_app) == 200
    assert status(app.wsgi_app, "/") == 200


def test_it_is_mounted_in_django(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In five lines or fewer."""
    from django.conf import settings

    settings.configure(ROOT_URLCONF="django.conf.urls", ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
    code = blocks("embedding.md")[1]
    assert lines(code) <= 5
    assert status(run(code)["application"]) == 200


def test_it_is_mounted_in_starlette(run: Any) -> None:
    """In six lines or fewer, five of them for the mount."""
    code = blocks("embedding.md")[2]
    assert lines(code) - 1 <= 5
    transport = httpx.ASGITransport(app=run(code)["app"])

    async def ask() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/registry/token", headers={"Authorization": basic("alice", "right")})
            return answer.status_code

    assert asyncio.run(ask()) == 200


def test_it_needs_no_configuration_file(run: Any, set_up: Path) -> None:
    """Fifteen lines or fewer."""
    code = blocks("embedding.md")[3]
    assert lines(code) <= 15
    assert status(run(code.replace("/etc/tokenissuer", str(set_up)))["application"], "/token?service=registry") == 200


def test_the_shortest_backend_works() -> None:
    """Ten lines or fewer."""
    code = blocks("backends.md")[0]
    assert lines(code) <= 10
    names: dict[str, Any] = {}
    exec(code, names)
    backend: Backend = names["TeamBackend"](None)
    chain = Chain([CachedBackend("team", backend)])
    assert chain.authenticate("team", "secret").account.groups == {"developers"}
    for username, password, error in (("team", "wrong", InvalidCredentials), ("other", "secret", UnknownAccount)):
        with pytest.raises(error):
            backend.authenticate(username, password)
