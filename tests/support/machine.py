"""Ports of this machine, and waiting for what happens on it."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A port nobody listens on, below the range the kernel takes for outgoing connections."""
    while True:
        # From the system: processes that run tests at the same time must not draw the same numbers.
        port = random.SystemRandom().randrange(20000, 32000)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Poll until the condition holds or the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
