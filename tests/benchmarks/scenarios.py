"""What is measured. Each scenario gives figures, each with its goal and the baseline that it was held against."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bcrypt

from tests.benchmarks.load import SERVICE, Load, granian, measure, noop, noop_under_stock_waitress, serving
from tests.support.gitlab import StubGitLab
from tests.support.http import basic
from tests.support.ldap import FakeDirectory

PUBLIC: Final = f"/token?service={SERVICE}&scope=repository:public/x:pull"
EACH_ANOTHER: Final = f"/token?service={SERVICE}&scope=repository:public/NUMBER:pull"
PASSWORD: Final = "right"

HTPASSWD: Final = '[[backends]]\ntype = "htpasswd"\npath = "users.htpasswd"\n'
EVERYONE: Final = '[[access]]\neveryone = true\nrepositories = ["public/**"]\nactions = ["pull"]\n'


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        name: what was measured.
        value: what it came to.
        goal: what it should be: at least that if `is_ratio`, else at most.
        beside: the absolute numbers, and the baseline's.
        unit: of the value; none for a ratio.
        is_ratio: whether more is better.
    """

    name: str
    value: float
    goal: float
    beside: str
    unit: str = ""
    is_ratio: bool = True

    @property
    def is_reached(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.goal if self.is_ratio else self.value <= self.goal

    @property
    def is_far_off(self) -> bool:
        """Whether a ratio is not a third of its goal. A busy machine takes half of it: both sides share processors."""
        return self.is_ratio and self.value < self.goal / 3


@dataclass(frozen=True)
class Bench:
    """Where and how long to measure.

    Args:
        folder: a new folder for files.
        seconds: how long each load lasts.
        rounds: how often loads take turns.
    """

    folder: Path
    seconds: float
    rounds: int

    def set_up(self, name: str, more: str = "", backend: str = HTPASSWD, key: str = "ec") -> Path:
        """Write a configuration with alice in its password file, and return its path."""
        folder = self.folder / name
        folder.mkdir()
        config = folder / "tokenissuer.toml"
        config.write_text(
            f'[issuer]\nname = "benchmark"\nservices = ["{SERVICE}"]\nrealm = "http://127.0.0.1/token"\n'
            f'[signing]\nkey = "auth.key"\ncertificate = "auth.crt"\n{backend}{EVERYONE}{more}'
        )
        kind = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if key == "ec" else [key]
        subprocess.run(
            (
                *("openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-subj", "/CN=benchmark", "-days", "365"),
                *("-keyout", str(folder / "auth.key"), "-out", str(folder / "auth.crt")),
            ),
            check=True,
            capture_output=True,
            timeout=120,
        )
        (folder / "auth.key").chmod(0o600)
        self.passwords(folder, "alice")
        return config

    @staticmethod
    def passwords(folder: Path, *names: str) -> None:
        """Write the password file: bcrypt, cost 10, the same hash for everybody."""
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
        (folder / "users.htpasswd").write_text("".join(f"{name}:{hashed}\n" for name in names))
        (folder / "users.htpasswd").chmod(0o600)

    def against(self, name: str, goal: float, load: Load, base: Load, base_name: str) -> Figure:
        """Compare the throughput of a load with a baseline's."""
        ours, theirs = measure([load, base], self.seconds, self.rounds, self.folder)
        beside = f"{ours.rate:,.0f} requests/s; {base_name} {theirs.rate:,.0f}"
        return Figure(name, ours.rate / theirs.rate, goal, beside)


Scenario = Callable[[Bench], Iterator[Figure]]


def waitress(bench: Bench) -> Iterator[Figure]:
    """`tokenissuer serve` as it is installed, with its log."""
    with (
        noop(bench.folder) as base,
        noop_under_stock_waitress(bench.folder) as stock,
        serving(bench.set_up("waitress")) as (port, _),
    ):
        loads = [Load(port, PUBLIC), Load(base), Load(stock), Load(port, PUBLIC).with_one_connection()]
        ours, theirs, usual, alone = measure(loads, bench.seconds, bench.rounds, bench.folder)
        rates = f"{ours.rate:,.0f} requests/s"
        yield Figure("waitress, same scope", ours.rate / theirs.rate, 0.65, f"{rates}; no-op {theirs.rate:,.0f}")
        beside = f"{rates}; no-op there {usual.rate:,.0f}"
        yield Figure("to waitress with its own settings", ours.rate / usual.rate, 0.65, beside)
        yield Figure("16 connections to 1", ours.rate / alone.rate, 1.0, f"{rates}; 1 connection {alone.rate:,.0f}")
        beside = f"no-op {theirs.slowest:.1f} ms"
        yield Figure("waitress, 99th percentile", ours.slowest, 20, beside, "ms", is_ratio=False)


def granian_workers(bench: Bench) -> Iterator[Figure]:
    """granian with two workers."""
    config = bench.set_up("granian")
    with (
        granian("tests.benchmarks.noop:application", bench.folder) as base,
        granian("tokenissuer.wsgi:application", config.parent, config) as port,
    ):
        yield bench.against("granian, same scope", 0.30, Load(port, PUBLIC), Load(base), "no-op")


def signatures_each(bench: Bench) -> Iterator[Figure]:
    """A signature (ES256) for each request."""
    with (
        noop(bench.folder) as base,
        noop_under_stock_waitress(bench.folder) as stock,
        serving(bench.set_up("each")) as (port, _),
    ):
        ours = Load(port, EACH_ANOTHER)
        yield bench.against("waitress, another scope each", 0.40, ours, Load(base), "no-op")
        yield bench.against("to waitress with its own settings", 0.40, ours, Load(stock), "no-op there")
    config = bench.set_up("granian-each")
    with (
        granian("tests.benchmarks.noop:application", bench.folder) as base,
        granian("tokenissuer.wsgi:application", config.parent, config) as port,
    ):
        yield bench.against("granian, another scope each", 0.15, Load(port, EACH_ANOTHER), Load(base), "no-op")


def accounts(bench: Bench) -> Iterator[Figure]:
    """Accounts that were seen within the minute."""
    directory, gitlab = FakeDirectory(), StubGitLab()
    gitlab.start()
    token = gitlab.token(gitlab.user("alice"), "read_api", "read_registry", "write_registry")
    ldap = (
        f'[[backends]]\ntype = "ldap"\nservers = ["{directory.url}"]\nallow_plaintext = true\n'
        '[backends.user]\nbase = "dc=test"\n'
    )
    backends = {
        "htpasswd": (HTPASSWD, PASSWORD),
        "ldap": (ldap, PASSWORD),
        "gitlab": (f'[[backends]]\ntype = "gitlab"\nurl = "{gitlab.url}"\nplain_http = true\n', token),
    }
    try:
        for name, (backend, password) in backends.items():
            with serving(bench.set_up(name, backend=backend)) as (port, _):
                known = Load(port, PUBLIC, basic("alice", password))
                yield bench.against(f"{name}, remembered account", 0.85, known, Load(port, PUBLIC), "anonymous")
    finally:
        directory.close()
        gitlab.stop()


def rsa(bench: Bench) -> Iterator[Figure]:
    """A key of RSA-4096 beside one of ES256, and beside what OpenSSL can sign."""
    with serving(bench.set_up("es256")) as (base, _), serving(bench.set_up("rsa", key="rsa:4096")) as (port, _):
        yield bench.against("RSA-4096, same scope", 0.90, Load(port, PUBLIC), Load(base, PUBLIC), "ES256")
        (each,) = measure([Load(port, EACH_ANOTHER)], bench.seconds, bench.rounds, bench.folder)
        speed = subprocess.run(
            ["openssl", "speed", "-multi", str(os.cpu_count()), "-seconds", "2", "rsa4096"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        possible = signatures(speed)
        beside = f"{each.rate:,.0f} requests/s; openssl speed {possible:,.0f} signatures/s on all cores"
        yield Figure("RSA-4096, another scope each", each.rate / possible, 0.90, beside)


def signatures(text: str) -> float:
    """Read the signatures per second of the last line that `openssl speed rsa4096` prints."""
    found = re.search(r"rsa +4096 bits +\S+s +\S+s +([\d.]+)", text)
    if found is None:
        raise RuntimeError(f"openssl speed printed something else: {text}")
    return float(found[1])


def refresh(bench: Bench) -> Iterator[Figure]:
    """The refresh token grant, with SQLite."""
    config = bench.set_up("refresh", '[refresh]\n[refresh.store]\ntype = "sqlite"\npath = "refresh.sqlite3"\n')
    with serving(config) as (port, _):
        wish = f"{PUBLIC}&offline_token=true&client_id=benchmark"
        token = json.loads(ask(port, wish, basic("alice", PASSWORD)))["refresh_token"]
        form = (
            f"grant_type=refresh_token&client_id=benchmark&service={SERVICE}&scope=repository:public/x:pull"
            f"&refresh_token={token}"
        )
        grant = Load(port, "/token", form=form)
        yield bench.against("refresh token grant", 0.50, grant, Load(port, PUBLIC), "anonymous")


def rules(bench: Bench) -> Iterator[Figure]:
    """Many access rules and groups."""

    def many(count: int) -> str:
        tables = (
            f'[[access]]\ngroups = ["g{index % 1000}"]\nrepositories = ["team{index}/**"]\nactions = ["pull"]\n'
            for index in range(count)
        )
        return "".join(tables)

    with serving(bench.set_up("few", many(10))) as (base, _), serving(bench.set_up("many", many(10_000))) as (port, _):
        for name, path in (("same scope", PUBLIC), ("another scope each", EACH_ANOTHER)):
            many_rules, few_rules = (Load(each, path, basic("alice", PASSWORD)) for each in (port, base))
            yield bench.against(f"10,000 rules, {name}", 0.90, many_rules, few_rules, "10 rules")


def lines(bench: Bench) -> Iterator[Figure]:
    """A password file of 100,000 lines beside one of a single line."""
    small, large = bench.set_up("line"), bench.set_up("lines")
    bench.passwords(large.parent, *(f"user{number}" for number in range(100_000)), "alice")
    times = []
    for config in (small, large):
        begin = time.perf_counter()
        with serving(config) as (_, process):
            times.append((time.perf_counter() - begin, memory(process.pid)))
    (quick, lean), (slow, wide) = times
    yield Figure("100,000 accounts, load", slow - quick, 1.0, f"start without them {quick:.2f} s", "s", is_ratio=False)
    yield Figure("100,000 accounts, memory", wide - lean, 100, f"without them {lean:.0f} MB", "MB", is_ratio=False)
    with serving(small) as (base, _), serving(large) as (port, _):
        among_many, alone = (Load(each, PUBLIC, basic("alice", PASSWORD)) for each in (port, base))
        yield bench.against("100,000 accounts, login", 0.90, among_many, alone, "1 account")


def endurance(bench: Bench) -> Iterator[Figure]:
    """The start, and memory after many requests."""
    config = bench.set_up("endurance")
    begin = time.perf_counter()
    with serving(config) as (port, process):
        started = time.perf_counter() - begin
        yield Figure("start to the first answer", started, 0.5, "", "s", is_ratio=False)
        # A warm-up fills what is remembered: tokens, queries, decisions.
        measure([Load(port, EACH_ANOTHER)], max(10, bench.seconds), 1, bench.folder)
        before, count = memory(process.pid), 0.0
        seconds = 10 * bench.seconds
        while count < 200_000 * min(1.0, bench.seconds / 3):
            (figures,) = measure([Load(port, EACH_ANOTHER)], seconds, 1, bench.folder)
            count += figures.rate * seconds
        growth = memory(process.pid) - before
        yield Figure("memory growth", growth, 3, f"{count:,.0f} requests; {before:.0f} MB before", "MB", is_ratio=False)


def hung_directory(bench: Bench) -> Iterator[Figure]:
    """A directory that accepts connections and never answers, and 50 clients who log in there without a pause."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        ldap = (
            f'[[backends]]\ntype = "ldap"\nservers = ["ldap://127.0.0.1:{silent.getsockname()[1]}"]\n'
            'allow_plaintext = true\n[backends.user]\nbase = "dc=test"\n'
        )
        throttle = "[throttle]\naccount = 0\naddress = 0\n"
        with serving(bench.set_up("hung", throttle, backend=HTPASSWD + ldap)) as (port, _):
            alice = basic("alice", PASSWORD)
            quiet = statistics.median(ask_times(port, alice, bench.seconds))
            with hammering(port, 50):
                time.sleep(1)
                times = sorted(ask_times(port, alice, max(3, bench.seconds)))
            slowest = times[int(len(times) * 0.99)]
            beside = f"{slowest * 1000:.1f} ms; quiet median {quiet * 1000:.2f} ms"
            yield Figure("LDAP hung: others' 99th percentile", slowest / quiet, 10, beside, "times", is_ratio=False)


@contextlib.contextmanager
def hammering(port: int, count: int) -> Iterator[None]:
    """Log in as unknown accounts on many connections at once, each again as soon as it has an answer."""
    is_over = threading.Event()

    def hammer(number: int) -> None:
        turn = 0
        while not is_over.is_set():
            turn += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(port, PUBLIC, basic(f"nobody{number}", f"guess{turn}"))

    threads = [threading.Thread(target=hammer, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(20)


def ask(port: int, path: str, authorization: str) -> bytes:
    """Ask once, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Authorization": authorization})
        return connection.getresponse().read()
    finally:
        connection.close()


def ask_times(port: int, authorization: str, seconds: float) -> Sequence[float]:
    """Ask one question after the other, and return the seconds that each took."""
    times = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        ask(port, PUBLIC, authorization)
        times.append(time.perf_counter() - begin)
        time.sleep(0.01)
    return times


def memory(process: int) -> float:
    """Return the megabytes that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


SCENARIOS: Final[Sequence[Scenario]] = (
    waitress,
    granian_workers,
    signatures_each,
    accounts,
    rsa,
    refresh,
    rules,
    lines,
    endurance,
    hung_directory,
)
#: Those that take a moment, and whose ratios are far from half of their goals.
SHORT: Final[Sequence[Scenario]] = (waitress, granian_workers, refresh, rules)
