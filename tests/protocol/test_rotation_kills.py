"""Commands that change keys, killed at every point, and two of them at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tokenissuer.config import config_findings, load_config
from tokenissuer.errors import TokenIssuerError
from tokenissuer.signing.keys import KeyType, load_signing_key
from tokenissuer.signing.rotation import Rotation, State

NOW = time.time()
LATER = NOW + 2000
LIFETIME = 900

# Runs one command in a fork for each of its operations on files, and ends the fork there as SIGKILL would.
KILLER = """
import os, shutil, sys, time
from pathlib import Path
from tokenissuer.signing.keys import KeyType
from tokenissuer.signing.rotation import Rotation

start, command, target = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
EVENTS = {"open", "os.rename", "os.remove", "os.chmod", "os.chown", "os.utime", "tempfile.mkstemp"}

def run(folder, last):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in EVENTS and not (event == "open" and arguments[2] & 3 == os.O_RDONLY):
            count += 1
            if count == last:
                os._exit(9)
    rotation = Rotation(folder / "auth.key", folder / "auth.crt", folder / "auth.key")
    sys.addaudithook(watch)
    if command == "add":
        rotation.add("test-issuer", KeyType.EC, time.time())
    elif command == "switch":
        rotation.switch(float(sys.argv[4]))
    elif command == "retire":
        rotation.retire(900, float(sys.argv[4]))
    else:
        rotation.drop_next()
    os._exit(0)

for last in range(1, 100):
    folder = target / str(last)
    shutil.copytree(start, folder)
    child = os.fork()
    if not child:
        run(folder, last)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        shutil.rmtree(folder)
        print(last - 1)
        sys.exit(0)
    assert status == 9, status
sys.exit("it does not end")
"""


def rotation_in(folder: Path) -> Rotation:
    """The key files of a set-up."""
    return Rotation(folder / "auth.key", folder / "auth.crt", folder / "auth.key")


def apply(rotation: Rotation, command: str, now: float = LATER) -> None:
    """Run one command."""
    if command == "add":
        rotation.add("test-issuer", KeyType.EC, NOW)
    elif command == "switch":
        rotation.switch(now)
    elif command == "retire":
        rotation.retire(LIFETIME, now)
    elif command == "drop":
        rotation.drop_next()
    else:
        rotation.mend()


BEFORE: dict[str, tuple[str, ...]] = {
    "add": (),
    "switch": ("add",),
    "retire": ("add", "switch"),
    "drop": ("add",),
}


def kids(jwk_set: dict[str, Any]) -> list[str]:
    """The names of the keys in a JWK Set."""
    return sorted(key["kid"] for key in jwk_set["keys"])


def in_order(folder: Path) -> None:
    """Hold a set-up to what must be true of every one: it starts, and registries have what they need."""
    rotation = rotation_in(folder)
    assert not rotation.unfinished
    load_config(folder / "tokenissuer.toml").build().close()
    signer = load_signing_key(rotation.key, rotation.certificate)
    found = [entry.state for entry in rotation.entries()]
    assert found.count(State.SIGNS) == 1
    assert State.OTHER not in found
    assert (State.NEXT in found) == rotation.next_key.exists()
    assert (State.PREVIOUS in found) == rotation.previous_key.exists()
    published: dict[str, Any] = json.loads(rotation.jwks.read_text())
    assert kids(published) == kids(signer.jwk_set())


@pytest.mark.parametrize("command", BEFORE)
def test_whatever_is_killed_the_next_command_puts_it_in_order(set_up: Path, tmp_path: Path, command: str) -> None:
    """At every operation on files, with each other command after it; the service starts at any moment."""
    rotation = rotation_in(set_up)
    signer = load_signing_key(rotation.key, rotation.certificate)
    rotation.jwks.write_text(json.dumps(signer.jwk_set()))
    for before in BEFORE[command]:
        apply(rotation, before, NOW)
    killed = tmp_path / "killed"
    killed.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", KILLER, str(set_up), command, str(killed), str(LATER)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    points = sorted(killed.iterdir(), key=lambda path: int(path.name))
    assert len(points) == int(ran.stdout) > 5
    for point in points:
        # What was killed in the middle of a command serves.
        load_config(point / "tokenissuer.toml").build().close()
        for after in ("mend", *BEFORE):
            folder = tmp_path / f"{point.name}-{after}"
            shutil.copytree(point, folder)
            with contextlib.suppress(TokenIssuerError):
                apply(rotation_in(folder), after, LATER + 2000)
            in_order(folder)
            shutil.rmtree(folder)


def test_a_change_that_was_cut_short_is_named(set_up: Path) -> None:
    """By `check`, until a command has put it in order."""
    rotation = rotation_in(set_up)
    (set_up / "auth.key.rotation").write_text('{"doing": "keys add", "switched": 0, "taken": 0}')
    findings = [str(finding) for finding in config_findings(load_config(set_up / "tokenissuer.toml"), NOW)]
    assert any("keys add" in finding and "tokenissuer keys list" in finding for finding in findings)
    rotation.mend()
    assert not any(
        "keys add" in str(finding) for finding in config_findings(load_config(set_up / "tokenissuer.toml"), NOW)
    )


def test_a_previous_key_that_is_the_key_in_use_costs_no_certificate(set_up: Path) -> None:
    """However it came to be there."""
    rotation = rotation_in(set_up)
    shutil.copy(rotation.key, rotation.previous_key)
    with pytest.raises(TokenIssuerError, match="no previous key"):
        rotation.retire(LIFETIME, LATER)
    assert [entry.state for entry in rotation.entries()] == [State.SIGNS]


def test_commands_at_once_take_turns(set_up: Path) -> None:
    """One of them makes the next key, with its certificate; the others find it there."""
    rotation = rotation_in(set_up)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: add_quietly(rotation), range(8)))
    assert results.count(True) == 1
    assert [entry.state for entry in rotation.entries()] == [State.SIGNS, State.NEXT]


def add_quietly(rotation: Rotation) -> bool:
    """Whether the next key could be made."""
    try:
        apply(rotation, "add")
    except TokenIssuerError:
        return False
    return True


def test_the_next_key_is_removed_only_by_name(set_up: Path) -> None:
    """`retire` alone is for the previous key."""
    rotation = rotation_in(set_up)
    apply(rotation, "add")
    with pytest.raises(TokenIssuerError, match="keys retire --next"):
        apply(rotation, "retire")
    assert rotation.next_key.exists()
    apply(rotation, "drop")
    assert [entry.state for entry in rotation.entries()] == [State.SIGNS]


def test_restarts_do_not_move_the_end_of_the_last_token(set_up: Path) -> None:
    """systemd copies the key at each start; the first copy of the new key counts."""
    folder = set_up / "credentials"
    folder.mkdir()
    copy = folder / "auth.key"
    shutil.copy(set_up / "auth.key", copy)
    rotation = Rotation(set_up / "auth.key", set_up / "auth.crt", copy)
    apply(rotation, "add")
    apply(rotation, "switch", NOW)
    with pytest.raises(TokenIssuerError, match="restart it"):
        apply(rotation, "retire", LATER)
    for restart in (NOW + 100, NOW + 3000):
        shutil.copy(set_up / "auth.key", copy)
        set_time(copy, restart)
        rotation.mend()
    apply(rotation, "retire", NOW + 100 + LIFETIME + 200)


def set_time(path: Path, seconds: float) -> None:
    """As if the file had been written then."""

    os.utime(path, (seconds, seconds))
