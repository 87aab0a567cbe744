"""Tells systemd how the service is: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

#: Names the socket; absent without systemd, or with a unit of another type than `notify`.
_VARIABLE: Final = "NOTIFY_SOCKET"


def notify(status: str, *, is_ready: bool = False) -> None:
    """Say how the service is, for `systemctl status`; without systemd, nothing.

    Args:
        status: one line.
        is_ready: whether requests are answered from now on: `systemctl start` waits for this.
    """
    address = os.environ.get(_VARIABLE, "")
    if not address:
        return
    lines = [f"STATUS={' '.join(status.splitlines())}", *(["READY=1"] if is_ready else [])]
    # A service manager that does not listen is no reason to stop serving.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # An address that begins with @ is in the abstract namespace.
        sock.sendto("\n".join(lines).encode(), f"\0{address[1:]}" if address.startswith("@") else address)
