"""What systemd is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenissuer.serving.notify import notify


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that systemd listens on."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path if request.param == "file" else f"\0{path}")
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", path if request.param == "file" else f"@{path}")
        yield sock


def test_systemd_is_told_when_requests_are_answered(systemd: socket.socket) -> None:
    """And what to show in `systemctl status`, on one line."""
    notify("serving a\nb", is_ready=True)
    assert systemd.recv(1000) == b"STATUS=serving a b\nREADY=1"
    notify("reloaded")
    assert systemd.recv(1000) == b"STATUS=reloaded"


def test_nobody_is_told_where_there_is_no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor if it has gone."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("x", is_ready=True)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("x", is_ready=True)
