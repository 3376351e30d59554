"""Apps that the API alone describes, deployed and again as a new version: up, rightly judged, their data kept."""

from __future__ import annotations

import base64
import io
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.live_service import PLAIN, LiveService
from tests.acceptance.zoo.app import Visit, ZooApp, eventually
from tests.acceptance.zoo.other_apps import OTHER_APPS

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Seconds until a deployment must have an outcome, against hanging only.
PATIENCE = 1800.0
ASYNC = {"Prefer": "respond-async"}
#: What the platform says of an app that came up, by its kind.
UP = {"always_on": "running", "worker": "running", "sandbox": "running", "one_time": "completed"}


class NotUp(AssertionError):
    """The app did not come up, or was judged wrongly."""


@pytest.mark.parametrize("app", OTHER_APPS, ids=lambda app: app.name)
def test_app_is_up_and_keeps_its_data(service: LiveService, app: ZooApp) -> None:
    """Deploy the app, then a second version over its data."""
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
