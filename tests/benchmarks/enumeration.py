"""Measures whether the time of an answer tells that an account exists. Run it by hand: `python enumeration.py`.

It logs in with wrong passwords as accounts of a password file, of a directory, and of nobody, in turns, and compares
the times by their distributions. AUC is the chance that of an answer for an account and one for nobody the first is the
slower: 0.5 tells nothing, 0 or 1 everything. The Kolmogorov-Smirnov distance D is the greatest between the two
distributions; below its critical value they pass for one (p = 0.01).
"""

from __future__ import annotations

import argparse
import bisect
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bcrypt

from tokenissuer.accounts.backend import Account, Backend
from tokenissuer.accounts.cache import CachedBackend
from tokenissuer.accounts.chain import Chain
from tokenissuer.errors import InvalidCredentials, UnknownAccount
from tokenissuer_backends.htpasswd import HtpasswdBackend, HtpasswdOptions


class Directory(Backend):
    """Answers as a directory does over a network: a search and a bind, which hashes for a name that it knows."""

    def __init__(self, options: Any = None) -> None:
        self._hash = bcrypt.hashpw(b"right", bcrypt.gensalt(5))

    def authenticate(self, username: str, password: str) -> Account:
        """Refuse everybody, those that it knows more slowly."""
        time.sleep(max(0.0005, random.gauss(0.004, 0.0008)))
        time.sleep(max(0.0005, random.gauss(0.006, 0.0012)))
        if not username.startswith("ldap-"):
            raise UnknownAccount
        bcrypt.checkpw(password.encode(), self._hash)
        raise InvalidCredentials


def chain(folder: Path, cost: int) -> Chain:
    """A password file, then a directory, both remembered."""
    path = folder / "users.htpasswd"
    hash_ = bcrypt.hashpw(b"right", bcrypt.gensalt(cost)).decode()
    path.write_text("".join(f"file-{number}:{hash_}\n" for number in range(20)))
    backends: dict[str, Backend] = {"htpasswd": HtpasswdBackend(HtpasswdOptions(path)), "ldap": Directory()}
    return Chain([CachedBackend(name, backend) for name, backend in backends.items()])


def measure(chain: Chain, names: Sequence[str], count: int) -> dict[str, list[float]]:
    """Log in with a wrong password as each in turns; the seconds each time took."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        for name in random.sample(names, len(names)):
            begun = time.perf_counter()
            try:
                chain.authenticate(f"{name}-{number % 20}", f"wrong {time.perf_counter_ns()}")
            except InvalidCredentials:
                times[name].append(time.perf_counter() - begun)
    return times


def auc(one: Sequence[float], other: Sequence[float]) -> float:
    """The chance that a value of one is the greater."""
    ranked = sorted(other)
    below = sum(bisect.bisect_left(ranked, value) + bisect.bisect_right(ranked, value) for value in one)
    return below / 2 / len(one) / len(other)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The greatest between their cumulated distributions."""
    first, second = sorted(one), sorted(other)
    return max(
        abs(bisect.bisect_right(first, value) / len(first) - bisect.bisect_right(second, value) / len(second))
        for value in (*first, *second)
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="logins of each kind (default: 400)")
    parser.add_argument("--cost", type=int, default=6, help="of bcrypt in the password file (default: 6)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = chain(Path(folder), arguments.cost)
        names = ("nobody", "file", "ldap")
        times = measure(asked, names, arguments.count)
    critical = 1.63 * math.sqrt(2 / arguments.count)
    print(
        f"{'account of':<12}{'5 %':>9}{'median':>9}{'95 %':>9}{'AUC':>8}{'D':>8}   (ms; D tells from {critical:.3f} on)"
    )
    for name, values in times.items():
        cuts = statistics.quantiles(values, n=20)
        shown = "".join(f"{seconds * 1000:9.2f}" for seconds in (cuts[0], statistics.median(values), cuts[-1]))
        nobody = times["nobody"]
        told = "" if name == "nobody" else f"{auc(values, nobody):8.3f}{distance(values, nobody):8.3f}"
        print(f"{name:<12}{shown}{told}")


if __name__ == "__main__":
    main()
