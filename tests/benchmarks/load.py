"""Load from `wrk`, which keeps its connections, against servers in processes of their own."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.machine import free_port, wait_until

ROOT = Path(__file__).parents[2]
SERVICE = "registry.example"
CONNECTIONS = 16
#: `{n}` becomes another number in each request.
SCRIPT = """
local number = 0
request = function()
  number = number + 1
  return (wrk.format("{method}", "{path}", nil, "{body}"):gsub("NUMBER", "{run}x" .. number))
end
"""
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Load:
    """What is asked of one server, again and again.

    Args:
        port: where the server listens on 127.0.0.1.
        path: path and query; NUMBER in it becomes another one in each request.
        authorization: the header of that name.
        form: the body of a POST; without it GET.
        connections: how many at once, each with the next request as soon as it has an answer.
    """

    port: int
    path: str = "/"
    authorization: str = ""
    form: str = ""
    connections: int = CONNECTIONS

    def with_one_connection(self) -> Load:
        """The same on one connection."""
        return replace(self, connections=1)


@dataclass(frozen=True)
class Figures:
    """What one load came to.

    Args:
        rate: answers per second.
        median, slowest: milliseconds to the answer: half of them, and 99 of 100, took no longer.
        errors: answers other than 200, and connections that failed.
    """

    rate: float
    median: float
    slowest: float
    errors: int


def run(load: Load, seconds: float, folder: Path) -> Figures:
    """Put a load on a server for some seconds, at least one.

    Raises:
        RuntimeError: if the load generator fails.
    """
    script = folder / f"{uuid.uuid4().hex}.lua"
    method = "POST" if load.form else "GET"
    script.write_text(
        SCRIPT.replace("{method}", method)
        .replace("{path}", load.path)
        .replace("{body}", load.form)
        .replace("{run}", uuid.uuid4().hex[:8])
    )
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    if "NUMBER" in load.path or load.form:
        command += ["-s", str(script)]
    if load.authorization:
        command += ["-H", f"Authorization: {load.authorization}"]
    if load.form:
        command += ["-H", "Content-Type: application/x-www-form-urlencoded"]
    command.append(f"http://127.0.0.1:{load.port}{load.path}")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", ran.stdout)
    if ran.returncode or rate is None:
        raise RuntimeError(f"wrk failed: {ran.stdout}{ran.stderr}")
    errors = sum(map(int, re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", ran.stdout)))
    return Figures(float(rate[1]), _milliseconds(ran.stdout, "50%"), _milliseconds(ran.stdout, "99%"), errors)


def _milliseconds(text: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s|m)\n", text)
    if found is None:
        raise RuntimeError(f"wrk shows no {name}: {text}")
    return float(found[1]) * MILLISECONDS[found[2]]


def measure(loads: Sequence[Load], seconds: float, rounds: int, folder: Path) -> list[Figures]:
    """Put several loads on their servers in turns, and return the median of each: a machine that others use as well is
    slower at one moment than at another, for all of them.

    Raises:
        RuntimeError: if a request was not answered with 200.
    """
    for load in loads:
        run(load, 1, folder)
    found: list[list[Figures]] = [[] for _ in loads]
    for _ in range(rounds):
        for index, load in enumerate(loads):
            figures = run(load, seconds, folder)
            if figures.errors:
                raise RuntimeError(f"{figures.errors} requests failed: {load.path}")
            found[index].append(figures)
    return [sorted(each, key=lambda figures: figures.rate)[len(each) // 2] for each in found]


@contextlib.contextmanager
def server(*command: str, folder: Path, port: int, config: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as long as the block lasts, from the moment at which it answers.

    Raises:
        RuntimeError: if it does not answer.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if config is not None:
        environment["TOKENISSUER_CONFIG"] = str(config)
    with (
        (folder / f"{port}.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=environment, stdout=log, stderr=log
        ) as process,
    ):
        try:
            if not wait_until(lambda: process.poll() is not None or answers(port)) or process.poll() is not None:
                raise RuntimeError(
                    f"{' '.join(command)} does not answer: {(folder / f'{port}.log').read_text()[-2000:]}"
                )
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int) -> bool:
    """Whether a server answers there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True


@contextlib.contextmanager
def noop(folder: Path) -> Iterator[int]:
    """Run the baseline under waitress with our settings, and return its port."""
    port = free_port()
    with server("tests.benchmarks.noop", str(port), folder=folder, port=port):
        yield port


@contextlib.contextmanager
def noop_under_stock_waitress(folder: Path) -> Iterator[int]:
    """Run the baseline under waitress with its own settings, and return its port."""
    port = free_port()
    command = ("waitress", f"--listen=127.0.0.1:{port}", "tests.benchmarks.noop:application")
    with server(*command, folder=folder, port=port):
        yield port


@contextlib.contextmanager
def serving(config: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run `tokenissuer serve`, and return its port and process."""
    port = free_port()
    command = ("tokenissuer", "serve", "--config", str(config), "--listen", f"127.0.0.1:{port}")
    with server(*command, folder=config.parent, port=port) as process:
        yield port, process


@contextlib.contextmanager
def granian(application: str, folder: Path, config: Path | None = None) -> Iterator[int]:
    """Run an application under granian with two workers, and return its port."""
    port = free_port()
    command = ("granian", "--interface", "wsgi", "--workers", "2", "--host", "127.0.0.1", "--port", str(port))
    with server(*command, application, folder=folder, port=port, config=config):
        yield port
