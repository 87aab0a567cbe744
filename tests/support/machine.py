"""Ports of this machine, and waiting for what happens on it."""

from __future__ import annotations

import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterator


def port_numbers(worker: int, workers: int) -> Iterator[int]:
    """Numbers for servers, below the range the kernel takes for outgoing connections.

    One process of the tests never gives a number twice before it has given all others, so a server that is still
    starting loses its port to nobody; processes of the same run have different numbers.
    """
    numbers = range(20000 + worker, 32000, workers)
    # From the system: two runs at the same time must not begin at the same number.
    start = random.SystemRandom().randrange(len(numbers))
    return itertools.cycle([*numbers[start:], *numbers[:start]])


# pytest-xdist names its processes gw0, gw1 and so on.
numbers = port_numbers(
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)


def free_port() -> int:
    """A port nobody listens on, and that nobody else in these tests is about to listen on."""
    return next(port for port in numbers if is_free(port))


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
