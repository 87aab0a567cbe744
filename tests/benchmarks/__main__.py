"""Runs the scenarios, prints the table and writes it as JSON; `tests/benchmarks/run` tells how."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.scenarios import SCENARIOS, SHORT, Bench, Figure


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="tests/benchmarks/run", description="Measures speed as ratios.")
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--only", metavar="NAME", choices=[each.__name__ for each in SCENARIOS], help="one scenario")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where the figures go")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("tests/benchmarks/run: there is no wrk here, which makes the load: apt-get install wrk", file=sys.stderr)
        return 0 if options.short else 1
    scenarios = [each for each in (SHORT if options.short else SCENARIOS) if options.only in (None, each.__name__)]
    figures = []
    print(f"{'':36} {'measured':>10} {'goal':>12}")
    for scenario in scenarios:
        with tempfile.TemporaryDirectory(prefix="tokenissuer-") as folder:
            bench = Bench(Path(folder), *((1, 3) if options.short else (3, 3)))
            for figure in scenario(bench):
                figures.append(figure)
                print(row(figure), flush=True)
    options.json.write_text(json.dumps(report(figures), indent=2) + "\n")
    return 1 if options.short and any(figure.is_far_off for figure in figures) else 0


def row(figure: Figure) -> str:
    """Write one line of the table."""
    if figure.is_ratio:
        value, goal = f"{figure.value:.0%}", f"at least {figure.goal:.0%}"
    else:
        value, goal = f"{figure.value:.3g} {figure.unit}", f"{figure.goal:g} {figure.unit}"
    mark = " " if figure.is_reached else "-"
    return f"{figure.name:36} {value:>10} {goal:>14} {mark} {figure.beside}"


def report(figures: Sequence[Figure]) -> dict[str, object]:
    """Write down where and when it was measured, and what."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        "figures": [dataclasses.asdict(figure) for figure in figures],
    }


if __name__ == "__main__":
    sys.exit(main())
