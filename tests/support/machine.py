"""Ports of this machine, and waiting for what happens on it."""

from __future__ import annotations

import itertools
import os
import random
import socket
import sys
import time
from collections import deque
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


# Other runs of the tests on this machine have the same numbers: each claims what it gives, for as long as a server may
# take to start. A name of Linux that is no file; it is gone with the process.
claims: deque[socket.socket] = deque()


def free_port() -> int:
    """A port nobody listens on, and that nobody else in these tests is about to listen on."""
    return next(port for port in numbers if is_free(port) and claim(port))


def claim(port: int) -> bool:
    """Whether no other run of the tests has been given the port lately."""
    if sys.platform != "linux":
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0tokenissuer tests: port {port}")
    except OSError:
        name.close()
        return False
    claims.append(name)
    while len(claims) > 100:
        claims.popleft().close()
    return True


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
