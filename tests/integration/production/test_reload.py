"""Every file that counts is followed: whole or not at all, with requests going on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Host, Issuer
    from tests.integration.production.conftest import Front, Production

pytestmark = pytest.mark.integration


def replace(path: Path, text: str) -> None:
    """Put a new file in the old one's place, as editors and tools do."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    shutil.copymode(path, fresh)
    os.replace(fresh, path)


def asker(front: Front) -> Callable[[], str]:
    """One who asks for a token again and again."""

    def ask() -> str:
        answer = front.ask("repository:alice/app:pull", user="alice")
        return "" if answer.status == 200 else f"{answer.status} {answer.body!r}"

    return ask


def all_say(front: Front, host: Host, expected: Callable[[], bool]) -> None:
    """Wait until every process says so: thirty answers in a row."""
    row = [0]

    def follow() -> bool:
        row[0] = row[0] + 1 if expected() else 0
        return row[0] == 30

    assert host.wait_until(follow), front.issuer.folder


def test_everything_is_read_again_under_load(production: Production, host: Host) -> None:
    """Configuration, rules, key with certificate: each by a change of its file, and no request fails."""
    issuer = production.issuer("set-up")
    other = production.issuer("other")
    server = production.serve(issuer)
    front = production.direct(issuer)
    kid = production.kid
    keys = [kid(front.ask().json()["token"])]
    with production.under_load([asker(front)] * 3) as load:
        text = issuer.config.read_text()
        replace(issuer.config, text.replace("lifetime = 900", "lifetime = 600"))
        all_say(front, host, lambda: 540 < front.ask().json()["expires_in"] <= 600)
        more = '\n[[access]]\neveryone = true\nrepositories = ["open/**"]\nactions = ["pull"]\n'
        replace(issuer.config, text + more)
        all_say(front, host, lambda: front.ask("repository:open/app:pull").status == 200)
        # The two files of a pair are never changed at the same moment.
        replace(issuer.folder / "auth.key", (other.folder / "auth.key").read_text())
        load.wait_for(5)
        replace(issuer.folder / "auth.crt", (other.folder / "auth.crt").read_text())
        all_say(front, host, lambda: kid(front.ask().json()["token"]) != keys[0])
        production.cheap_passwords(issuer, *issuer.passwords)
        assert host.wait_until(lambda: server.output().count("and the files that it names") == 4)
        load.wait_for(1)
    wrong = [failure for failure in load.failures if "wrong user name" not in failure]
    assert wrong == []
    assert server.output().count("and the files that it names") == 4
    assert "stays in force" not in server.output()


def test_what_cannot_be_used_changes_nothing_and_is_one_line(production: Production, host: Host) -> None:
    """Whatever is wrong with it, until it is right again."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer)
    front = production.direct(issuer)
    text = issuer.config.read_text()
    planted = "planted-and-never-to-be-shown"
    faults = {
        "TOML": f"[issuer\n# {planted}",
        "missing.key": text.replace('key = "auth.key"', 'key = "missing.key"'),
        "users.missing": text.replace("users.htpasswd", "users.missing"),
    }
    for number, (sign, fault) in enumerate(faults.items(), 1):
        replace(issuer.config, fault)
        assert host.wait_until(lambda: server.output().count("stays in force") == number), (sign, server.output())  # noqa: B023
        assert sign in server.output().splitlines()[-1]
        assert front.ask("repository:alice/app:pull", user="alice").json()["scope"] == "repository:alice/app:pull"
    server.send(signal.SIGHUP)
    assert host.wait_until(lambda: server.output().count("stays in force") == len(faults) + 1)
    replace(issuer.config, text.replace("lifetime = 900", "lifetime = 600"))
    all_say(front, host, lambda: 540 < front.ask().json()["expires_in"] <= 600)
    assert server.output().count("stays in force") == len(faults) + 1
    assert planted not in server.output()


def test_a_file_that_comes_back_is_found(production: Production, host: Host) -> None:
    """What stopped it may be elsewhere: it is tried again without a change of the files it knows."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer)
    text = issuer.config.read_text()
    replace(issuer.config, text.replace("users.htpasswd", "moved.htpasswd").replace("= 900", "= 600"))
    assert host.wait_until(lambda: "moved.htpasswd" in server.output())
    (issuer.folder / "users.htpasswd").rename(issuer.folder / "moved.htpasswd")
    front = production.direct(issuer)
    assert host.wait_until(lambda: 540 < front.ask().json()["expires_in"] <= 600)
    assert server.output().count("stays in force") == 1


def test_a_secret_file_is_followed(
    production: Production, host: Host, set_up_with_secret: Callable[[], Issuer]
) -> None:
    """A changed secret is used within seconds, and is in no log."""
    issuer = set_up_with_secret()
    server = production.serve(issuer)
    (issuer.folder / "bind.password").write_text("planted-new-secret\n")
    assert host.wait_until(lambda: "and the files that it names" in server.output())
    (issuer.folder / "bind.password").write_text("")
    assert host.wait_until(lambda: "stays in force" in server.output())
    assert "planted" not in server.output()


@pytest.fixture
def set_up_with_secret(production: Production) -> Callable[[], Issuer]:
    """A set-up with a second backend that has a secret in a file; the backend is not asked."""

    def make() -> Issuer:
        issuer = production.issuer("set-up")
        secret = issuer.folder / "bind.password"
        secret.write_text("planted-old-secret\n")
        backend = production.ldap_backend(secret)
        issuer.config.write_text(issuer.config.read_text() + backend)
        return issuer

    return make


def test_a_request_in_flight_is_answered_by_what_it_began_with(production: Production, host: Host) -> None:
    """A password that takes long to check, and the rules change meanwhile: the answer is the old one, whole."""
    issuer = production.issuer("set-up")
    server = production.serve(issuer)
    users = issuer.folder / "users.htpasswd"
    users.write_text(users.read_text() + production.slow_account("slow", "secret"))
    assert host.wait_until(lambda: "and the files that it names" in server.output())
    front = production.direct(issuer)
    with production.under_load([lambda: str(front.ask(user="slow", password="secret").json()["expires_in"])]) as load:
        assert host.wait_until(lambda: '"username": "slow"' not in server.output())
        replace(issuer.config, issuer.config.read_text().replace("= 900", "= 600"))
        assert host.wait_until(lambda: server.output().count("and the files that it names") == 2)
        assert host.wait_until(lambda: load.done >= 2)
    assert all(540 < int(seconds) <= 900 for seconds in load.failures)
    assert "900" in load.failures
