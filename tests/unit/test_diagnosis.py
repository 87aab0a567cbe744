"""Findings about files: who may read and change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenissuer.config import config_findings, load_config
from tokenissuer.diagnosis import Severity, control_findings, secret_findings


@pytest.mark.parametrize(
    ("mode", "bad"),
    [(0o400, False), (0o600, False), (0o440, False), (0o444, True), (0o604, True), (0o620, True), (0o602, True)],
)
def test_a_secret_that_others_may_read_or_change_is_an_error(tmp_path: Path, mode: int, bad: bool) -> None:
    """The finding names the mode and the command that mends it."""
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    findings = list(secret_findings(path, "the key"))
    assert [f"{mode:04o}" in finding.fact and "chmod" in finding.remedy for finding in findings] == [True] * bad


@pytest.mark.parametrize(("mode", "bad"), [(0o755, False), (0o1777, False), (0o777, True), (0o757, True)])
def test_a_folder_in_which_others_may_replace_files_is_an_error(tmp_path: Path, mode: int, bad: bool) -> None:
    """Unless it is one like /tmp."""
    tmp_path.chmod(mode)
    assert [finding.severity for finding in control_findings(tmp_path)] == [Severity.ERROR] * bad


@pytest.mark.parametrize("name", ["auth.key", "auth.key.next", "auth.key.previous", "redis", "store/sessions.sqlite3"])
def test_every_file_with_a_secret_is_looked_at(set_up: Path, name: str) -> None:
    """Not only the key in use."""
    path = set_up / "tokenissuer.toml"
    (set_up / "store").mkdir()
    for secret in ("auth.key.next", "auth.key.previous", "redis", "store/sessions.sqlite3"):
        (set_up / secret).write_text("redis://127.0.0.1")
        (set_up / secret).chmod(0o600)
    path.write_text(
        path.read_text()
        + '[throttle]\nredis_file = "redis"\n'
        + '[refresh]\n[refresh.store]\ntype = "sqlite"\npath = "store/sessions.sqlite3"\n'
    )
    config = load_config(path)
    assert not [finding for finding in config_findings(config, 0) if "others can" in finding.fact]
    (set_up / name).chmod(0o604)
    assert [finding.subject for finding in config_findings(config, 0) if "others can" in finding.fact] == [
        str(set_up / name)
    ]


def test_a_folder_for_sessions_that_is_missing_is_named(set_up: Path) -> None:
    """With the command that makes it: `serve` would not start."""
    path = set_up / "tokenissuer.toml"
    path.write_text(f'{path.read_text()}[refresh]\n[refresh.store]\ntype = "sqlite"\npath = "gone/s.sqlite3"\n')
    (finding,) = (finding for finding in config_findings(load_config(path), 0) if finding.subject == "[refresh.store]")
    assert str(set_up / "gone") in finding.fact
    assert "install -d" in finding.remedy
