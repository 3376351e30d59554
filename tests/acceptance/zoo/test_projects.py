"""Deploy each project of the zoo by ``builderd deploy --yes`` in its bare folder, and judge by what a visitor sees."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import Any
from urllib.parse import unquote

import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright
from tests.acceptance.live_service import LiveService, live_service
from tests.acceptance.zoo.project import NAMES, Project, read_project
from tests.browser import own_network

pytestmark = [pytest.mark.root, pytest.mark.haproxy]

#: Deployed in each run; the rest with the slow tests.
CHEAP = {"flask-docs", "readme-only", "stdlib-server"}
#: In files that must not be served.
SECRET = b"hunter2-zoo"
#: Seconds for a page of an app that is up.
PATIENCE = 60.0
SETTINGS = {"BUILDERD_QA__REPORT": "true", "BUILDERD_LIMITS__BUILD_TIMEOUT": "420", "BUILDERD_RATES__REQUESTS": "0"}
#: Where a line of JSON for each project goes, for the table in docs/kinds.md.
TABLE = os.environ.get("BUILDERD_ZOO_TABLE", "")


@pytest.fixture(scope="module")
def zoo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("zoo") / "data", **SETTINGS) as running:
        yield running


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CHEAP else [pytest.mark.slow]) for name in NAMES]
)
def test_project_is_served_at_the_first_try_or_refused_in_one_sentence(
    zoo_service: LiveService, name: str, tmp_path: Path
) -> None:
    row = judge(zoo_service, read_project(name), tmp_path)
    if TABLE:
        with Path(TABLE).open("a") as table:
            table.write(json.dumps(row) + "\n")
    assert not row["wrong"], row


def judge(service: LiveService, project: Project, parent: Path) -> dict[str, Any]:
    """Deploy the project, and again with one file more; a row of the table, ``wrong`` empty if all is right."""
    folder = project.write(parent)
    row: dict[str, Any] = {"name": project.name, "kind": "", "cold": 0.0, "cached": 0.0, "wrong": []}
    wrong: list[str] = row["wrong"]
    try:
        done, row["cold"] = deploy(service, project, folder)
        found = service.call("GET", f"/builders?name={project.name}").json()["data"]
        row |= {"kind": found[0]["job_type"] if found else "", "stderr": done.stderr[-4000:]}
        if project.refused:
            wrong += refusal_faults(project, done, folder, found)
        elif done.returncode or not found:
            wrong.append(f"exit code {done.returncode}")
        else:
            wrong += success_faults(service, project, done, found[0])
            (folder / "CHANGES.txt").write_text("the next version\n")
            again, row["cached"] = deploy(service, project, folder)
            wrong += [] if again.returncode == 0 else [f"again: {again.returncode} {again.stderr[-2000:]}"]
            wrong += [] if again.returncode else page_faults(service, project, found[0])
    except subprocess.TimeoutExpired as late:
        wrong.append(f"did not end within {project.timeout} s: {(late.stderr or b'')[-2000:]!r}")
    finally:
        for builder in service.call("GET", f"/builders?name={project.name}").json()["data"]:
            service.call("DELETE", f"/builders/{builder['uuid']}?purge=true")
            service.wait_gone(builder["uuid"])
    return row


def deploy(service: LiveService, project: Project, folder: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run ``builderd deploy --yes`` in the folder; how it ended, and its seconds."""
    begun = time.monotonic()
    done = command(service, folder, "deploy", "--yes", timeout=project.timeout)
    return done, round(time.monotonic() - begun, 1)


def command(service: LiveService, folder: Path, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("BUILDERD_")}
    env |= {"BUILDERD_URL": service.url, "BUILDERD_TOKEN": service.token, "HOME": str(folder.parent)}
    env["PYTHONPATH"] = str(Path(__file__).parents[3] / "src")
    argv = [sys.executable, "-m", "builderd", *words]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def refusal_faults(
    project: Project, done: subprocess.CompletedProcess[str], folder: Path, found: list[dict[str, Any]]
) -> list[str]:
    faults = []
    if done.returncode not in (1, 4):
        faults.append(f"exit code {done.returncode}: a success that is none")
    if not re.search(project.refused, done.stderr, re.DOTALL):
        faults.append(f"standard error has no {project.refused!r}")
    if done.stdout.strip():
        faults.append(f"standard output has {done.stdout!r}")
    if "builder.toml" not in project.files and (folder / "builder.toml").exists():
        faults.append(f"builder.toml was written: {(folder / 'builder.toml').read_text()!r}")
    faults += [f"the builder is {one['status']}" for one in found if one["status"] == "running"]
    return faults


def success_faults(
    service: LiveService, project: Project, done: subprocess.CompletedProcess[str], builder: dict[str, Any]
) -> list[str]:
    faults = []
    if builder["job_type"] != project.kind:
        faults.append(f"kind {builder['job_type']}, not {project.kind}")
    if not re.search(project.says, done.stderr, re.DOTALL):
        faults.append(f"standard error has no {project.says!r}")
    for process, text in project.logs.items():
        words = ("logs", project.name, *(("--process", process) if process else ()))
        faults += eventually(partial(log_of, service, words), text, str(words))
    return faults + page_faults(service, project, builder)


def page_faults(service: LiveService, project: Project, builder: dict[str, Any]) -> list[str]:
    faults = []
    for path, expected in project.has.items():
        pattern = expected if expected[:3].isdigit() else f"200 .*(?:{expected})"
        faults += eventually(partial(answer, service, builder, path), pattern, path)
    for path in project.hidden:
        body = service.visit(builder, path.removeprefix("/")).content
        file = project.files.get(normpath(unquote(path)).removeprefix("/"), SECRET)
        if SECRET in body or file[:60] in body:
            faults.append(f"{path} is served: {body[:80]!r}")
    return faults + (picture_faults(builder, project) if project.sees else [])


def log_of(service: LiveService, words: tuple[str, ...]) -> str:
    return command(service, Path("/tmp"), *words).stdout


def answer(service: LiveService, builder: dict[str, Any], path: str) -> str:
    """Return status and body of a page."""
    response = service.visit(builder, path.removeprefix("/"))
    return f"{response.status_code} {response.text}"


def eventually(look: Callable[[], str], pattern: str, name: str) -> list[str]:
    """Return one fault unless what is looked at matches within PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, seen := look(), re.DOTALL):
        if time.monotonic() > deadline:
            return [f"{name} has no {pattern!r}: {seen[:300]!r}"]
        time.sleep(0.5)
    return []


def picture_faults(builder: dict[str, Any], project: Project) -> list[str]:
    """Open the pages in Chromium; return what they do not show."""
    url = builder["preview_url"].rstrip("/")
    with own_network(int(url.rpartition(":")[2])) as network, sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=str(network.chromium), args=["--no-sandbox"]) as browser:
            faults = [picture_fault(browser.new_page(), url + path, text) for path, text in project.sees.items()]
    return [fault for fault in faults if fault]


def picture_fault(page: Page, url: str, text: str) -> str:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        page.goto(url, timeout=PATIENCE * 1000)
        page.locator(f"text={text} >> visible=true").first.wait_for(timeout=PATIENCE * 1000)
    except PlaywrightError as error:
        shown = page.locator("body").inner_text()[:300] if page.url.startswith("http") else error.message[:300]
        return f"{url} does not show {text!r} but {shown!r}; console: {said[-3:]}"
    return ""
