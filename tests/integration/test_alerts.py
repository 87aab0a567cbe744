"""Dashboard and alert rules speak of what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tokenissuer.monitoring.metrics import REGISTRY

CONF = Path(__file__).parents[2] / "conf"
ALERTS = (CONF / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((CONF / "grafana.json").read_text(encoding="utf-8"))
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
#: What Prometheus adds to every series, and what a histogram has besides.
COMMON = {"job", "instance", "le"}


def metrics() -> list[Any]:
    """Every metric of ours."""
    return [metric for metric in REGISTRY._collector_to_names if hasattr(metric, "_labelnames")]


def known() -> dict[str, set[str]]:
    """Every series that can be read, and its labels."""
    found = {}
    for metric in metrics():
        for suffix in SUFFIXES[metric._type]:
            found[metric._name + suffix] = {*metric._labelnames, *COMMON}
    return found


def expressions() -> list[str]:
    """All that is asked of Prometheus."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = re.findall(r"^ +expr: (?:>-\n((?: {10}.*\n)+)|(.+))", ALERTS, re.MULTILINE)
    assert len(rules) == ALERTS.count("- alert:")
    return asked + [folded or plain for folded, plain in rules]


@pytest.mark.parametrize("expression", expressions())
def test_every_name_and_label_exists(expression: str) -> None:
    """A graph of nothing looks like peace."""
    series = known()
    names = re.findall(r"\btokenissuer_\w+", expression)
    assert names or expression.startswith("up{")
    allowed = set(COMMON)
    for name in names:
        assert name in series
        allowed |= series[name]
    used = [label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")]
    used += [label for group in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)=", group)]
    assert set(used) <= allowed


def test_every_metric_is_on_the_dashboard() -> None:
    """None is counted for nobody."""
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    for metric in metrics():
        assert metric._name in shown


def test_the_panels_stand_beside_each_other() -> None:
    """Each has an id and a place of its own."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel["targets"]:
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(re.findall(r"\w+", target["expr"]))


def promtool(*arguments: str, folder: Path) -> None:
    """Run it; it must be content."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool program: install Debian's prometheus")
    ran = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_takes_the_rules() -> None:
    """As Prometheus itself would."""
    promtool("check", "rules", "alerts.yml", folder=CONF)


def test_the_alerts_come_when_they_should(tmp_path: Path) -> None:
    """And not otherwise."""
    for path in (CONF / "alerts.yml", Path(__file__).parent / "alerts.test.yml"):
        shutil.copy(path, tmp_path)
    promtool("test", "rules", "alerts.test.yml", folder=tmp_path)
