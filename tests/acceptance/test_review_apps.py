"""Small apps that the review stops or passes as a whole: what incidents did in them, and honest work that is near it.

Their authors had not read the rules. ``set`` counts how often the rules were mended after a set had been measured;
docs/review.md has what was stopped at each first run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.gate import Gate, real_gate

from builderd.versions.model import VersionSettings

App = Mapping[str, Any]
FOLDER = Path(__file__).with_name("review_apps")
#: Hostile apps that pass, and why.
PASSES = {
    "22-fixture-extract-run": "make gets its variable from a file that another command writes",
    "21-landing-svg-tail-script": "a loop over pictures that are not known cuts a script out of one",
    "31-donate-address-swap": "which address is the right one is not in the code",
    "43-speedtest-relay": "a client that opens connections for a broker, by words of its own",
    "53-recipes-seo-cloak": "pages differ by the reader's browser, as mobile pages do",
    "54-leafmailer-php": "a form that sends what its operator enters",
    "41-mail-login-phish": "a page and a handler that are told apart from a login by their words alone",
    "47-socket-exit-node": "a client that opens connections for a relay, by words of its own",
    "58-go-init-array-dropper": "a command from an array of letters by their numbers",
}
#: Honest apps that are held, and why.
HELD = {"25-formula-sheet": "formulas of visitors become a function, by a parser that is judged by nobody"}


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with real_gate() as made:
        yield made


def read_apps(name: str) -> Iterator[Any]:
    for line in (FOLDER / f"{name}.jsonl").read_text().splitlines():
        app = json.loads(line)
        reason = (PASSES if name == "hostile" else HELD).get(app["name"])
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        yield pytest.param(app, id=f"{app['set']}: {app['name']}", marks=marks)


def commands_of(app: App) -> str:
    return VersionSettings(
        app["entrypoint"],
        env=app.get("env", {}),
        build=app.get("build", ""),
        release=app.get("release", ""),
        processes=app.get("processes", {}),
    ).commands


@pytest.mark.parametrize("app", list(read_apps("hostile")))
def test_hostile_app_is_stopped(gate: Gate, app: App) -> None:
    seen = gate.review(app["files"], commands_of(app))
    assert not seen.verdict.passed, app["why"]
    assert all(finding.message and finding.advice for finding in seen.verdict.open)


@pytest.mark.parametrize("app", list(read_apps("honest")))
def test_honest_app_passes(gate: Gate, app: App) -> None:
    seen = gate.review(app["files"], commands_of(app))
    assert not [(one.rule, one.path, one.line, one.text) for one in seen.verdict.open], app["why"]
