"""The apps of the zoo, deployed as a new user would, and again as a new version: up, rightly judged, its data kept."""

from __future__ import annotations

import base64
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright
from tests.acceptance.live_service import PLAIN, LiveService
from tests.acceptance.zoo.app import Visit, ZooApp, eventually
from tests.acceptance.zoo.node_apps import NODE_APPS
from tests.acceptance.zoo.other_apps import OTHER_APPS
from tests.acceptance.zoo.python_apps import PYTHON_APPS

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Where screenshots go; set it to look at them.
SCREENS = os.environ.get("BUILDERD_SCREENSHOTS", "")
#: Seconds until a deployment must have an outcome, against hanging only.
PATIENCE = 1800.0
ASYNC = {"Prefer": "respond-async"}
#: What the platform says of an app that came up, by its kind.
UP = {"always_on": "running", "worker": "running", "sandbox": "running", "one_time": "completed"}


class NotUp(AssertionError):
    """The app did not come up, or was judged wrongly."""


@pytest.mark.parametrize("app", [*PYTHON_APPS, *NODE_APPS, *OTHER_APPS], ids=lambda app: app.name)
def test_app_is_up_and_keeps_its_data(service: LiveService, app: ZooApp) -> None:
    """Deploy the app, then a second version over its data; look at its page."""
    with tempfile.TemporaryDirectory() as folder, app.around() as more:
        body = {**app.body(Path(folder)), **more}
        visit = deploy(service, app, body)
        try:
            eventually(visit, app.proof)
            await_passed_gate(visit, app)
            eventually(visit, app.kept.write)
            visit = redeploy(visit, app, body)
            eventually(visit, app.kept.read)
            eventually(visit, app.proof)
            if app.page:
                look(visit, app)
        finally:
            service.call("DELETE", f"{visit.path}?purge=true")
            service.wait_gone(str(visit.data["uuid"]))


def deploy(service: LiveService, app: ZooApp, body: dict[str, Any]) -> Visit:
    """Create the builder and wait for its outcome. Raises ``NotUp`` with the message."""
    accepted = service.call("POST", "/builders", json=_sent(service, app, body), headers=ASYNC)
    if accepted.status_code != 202:
        raise NotUp(accepted.text)
    uuid = accepted.json()["data"]["uuid"]
    if app.accept:
        _accept(service, uuid, app.accept)
    return _outcome(service, app, uuid)


def _accept(service: LiveService, uuid: str, reason: str) -> None:
    """Accept each finding that holds the version, as the message says, and start the builder again."""
    failed = service.wait_status(uuid, "failed", "running")
    review = service.call("GET", f"/builders/{uuid}/review").json()["data"]
    held = [finding for finding in review["findings"] if finding["severity"] == "hold"]
    if failed["status"] == "running" or not held:
        return
    for finding in held:
        acceptance = {"fingerprint": finding["fingerprint"], "reason": reason}
        answer = service.call("POST", f"/builders/{uuid}/review/accept", json=acceptance)
        if answer.status_code >= 400:
            raise NotUp(answer.text)
    started = service.call("POST", f"/builders/{uuid}/start")
    if started.status_code >= 400:
        raise NotUp(started.text)


def _sent(service: LiveService, app: ZooApp, body: dict[str, Any]) -> dict[str, Any]:
    """Return the request with its files, or with the upload that they are sent as."""
    if not app.archive:
        return body
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for path, file in body["files"].items():
            encoded = isinstance(file, dict)
            data = base64.b64decode(file["content"]) if encoded else file.encode()
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o755 if encoded and file.get("executable") else 0o644
            archive.addfile(member, io.BytesIO(data))
    upload = service.call("POST", "/uploads", json={}).json()["data"]
    httpx.put(upload["upload_url"], content=content.getvalue(), timeout=120, **PLAIN).raise_for_status()
    rest = {name: value for name, value in body.items() if name != "files"}
    return {**rest, "source": {"upload_id": upload["upload_id"]}}


def redeploy(visit: Visit, app: ZooApp, body: dict[str, Any]) -> Visit:
    """Deploy a version with one file more, and wait until it is up. Raises ``NotUp`` with the message."""
    service = visit.service
    code = _sent(service, app, {"files": {**body.get("files", {}), "CHANGES.txt": "the next version\n"}})
    answer = service.call("PUT", visit.path, json=code, headers=ASYNC)
    if answer.status_code != 202:
        raise NotUp(answer.text)
    for _ in _until(PATIENCE):
        newest = max(service.call("GET", f"{visit.path}/versions").json()["data"], key=lambda one: one["version"])
        if newest["version"] > 1 and (newest["status"] != "pending" or app.kind == "one_time"):
            break
    if newest["status"] == "failed":
        raise NotUp(newest["status_reason"])
    if app.kind == "one_time":
        service.call("POST", f"{visit.path}/start")
    return _outcome(service, app, str(visit.data["uuid"]))


def _outcome(service: LiveService, app: ZooApp, uuid: str) -> Visit:
    for _ in _until(PATIENCE):
        data: Mapping[str, Any] = service.call("GET", f"/builders/{uuid}").json()["data"]
        if data["status"] == "running" and app.kind == "one_time":
            continue
        if data["status"] != "creating":
            break
    if data["status"] != UP[app.kind]:
        raise NotUp(f"{data['status']}: {data['status_reason']}")
    return Visit(service, data)


def _until(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)


def await_passed_gate(visit: Visit, app: ZooApp) -> None:
    """Wait until the QA gate has passed the app. Raises ``NotUp`` if it does not."""
    if app.kind == "sandbox":
        return
    for _ in _until(60):
        passed = visit.service.builder(str(visit.data["uuid"]))["qa_passed"]
        if passed is not None:
            break
    if passed is not True:
        raise NotUp(f"qa_passed is {passed}: {visit.service.call('GET', f'{visit.path}/qa').text}")


def look(visit: Visit, app: ZooApp) -> None:
    """Open the app's page in Chromium through its preview, wait for its text, and keep a picture of it."""
    url = f"{visit.data['preview_url'].rstrip('/')}/{app.at}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 760})
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        try:
            _until_shown(page, url, app.page)
        except PlaywrightError as error:
            raise AssertionError(f"{url} shows no {app.page!r}: {error.message} Its console: {faults[-5:]}") from error
        finally:
            if SCREENS:
                Path(SCREENS).mkdir(parents=True, exist_ok=True)
                page.wait_for_timeout(1000)  # until pictures and fonts are drawn
                page.screenshot(path=f"{SCREENS}/{app.name}.png")
            browser.close()


def _until_shown(page: Page, url: str, text: str) -> None:
    """Load the page until it shows the text: Chromium drops what it loads when links of the host come and go."""
    for is_last in (False, False, False, True):
        try:
            page.goto(url, timeout=90_000)
            # A page may hold the text in hidden places too.
            page.locator(f"text={text} >> visible=true").first.wait_for(timeout=90_000)
        except PlaywrightError:
            if is_last:
                raise
        else:
            return
