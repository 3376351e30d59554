"""Alert rules and dashboard: valid to Prometheus, and about metrics that exist.

``promtool`` is of Debian's package prometheus (``script/setup --test``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.application import fake_world

from builderd.server.meter import Meter

FOLDER = Path(__file__).parents[2] / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: script/setup --test")
#: Words that Grafana fills in.
FILLED = {"$__rate_interval": "5m", "$instance": ".*"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def queries() -> Iterator[str]:
    """Yield the queries of all panels as Prometheus gets them."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            query = str(target["expr"])
            for word, value in FILLED.items():
                query = query.replace(word, value)
            yield query


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


async def existing() -> set[str]:
    """Return the names of all series that ``/metrics`` can have."""
    async with fake_world() as world:
        meter = Meter()
        meter.count("GET", "/healthz", 200, 0.1)
        text = (await meter.render(world.application)).decode()
    names = set()
    for family in text_string_to_metric_families(text):
        names |= {sample.name for sample in family.samples} or {family.name}
        if family.type == "counter":
            names.add(f"{family.name}_total")
        if family.type == "histogram":
            names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    return names


async def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    known = await existing()
    texts = [*queries(), *(rule["expr"] for rule in rules())]
    used = {name for text in texts for name in re.findall(r"\bbuilderd_\w+", text)}
    assert used
    assert used <= known


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    page = (FOLDER.parent / "docs" / "operating.md").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"`{rule['alert']}`" in page


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def promtool(*words: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run((PROMTOOL, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_alerts_fire() -> None:
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "alerts.yml")
    promtool("test", "rules", FOLDER / "alerts_test.yml")


@needs_promtool
def test_prometheus_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", file)
