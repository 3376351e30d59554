"""Deploy the apps of the zoo as a new user would, and measure: cold, cached, again with a new version, in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright
from tests.acceptance.live_service import PLAIN, LiveService
from tests.acceptance.zoo.app import Visit, ZooApp, eventually

#: Where screenshots go; set it to look at them.
SCREENS = os.environ.get("BUILDERD_SCREENSHOTS", "")
#: Seconds until a deployment must have an outcome, against hanging only.
PATIENCE = 1800.0
ASYNC = {"Prefer": "respond-async"}
#: What the platform says of an app that came up, by its kind.
UP = {"always_on": "running", "worker": "running", "sandbox": "running", "one_time": "completed"}


@dataclass
class Row:
    """Measurements of one app: seconds until it was up, MB of its layers and of its disk, and the verdict.

    ``load`` is the machine's load average at the end.
    """

    name: str
    kind: str
    cold: float = 0
    cached: float = 0
    layer_mb: float = 0
    disk_mb: float = 0
    resources: str = ""
    load: float = 0
    verdict: str = ""

    def save(self) -> None:
        """Append the row, with the load, to the file that BUILDERD_ZOO_ROWS names."""
        self.load = os.getloadavg()[0]
        if file := os.environ.get("BUILDERD_ZOO_ROWS"):
            with Path(file).open("a") as rows:
                rows.write(json.dumps(asdict(self)) + "\n")


class NotUp(AssertionError):
    """The app did not come up, or was judged wrongly."""


def deploy(service: LiveService, app: ZooApp, body: dict[str, Any]) -> tuple[Visit, float]:
    """Create the builder and wait for its outcome; the seconds that took. Raises ``NotUp`` with the message."""
    begun = time.monotonic()
    accepted = service.call("POST", "/builders", json=_sent(service, app, body), headers=ASYNC)
    if accepted.status_code != 202:
        raise NotUp(accepted.text)
    uuid = accepted.json()["data"]["uuid"]
    if app.accept:
        _accept(service, uuid, app.accept)
    return _outcome(service, app, uuid, begun)


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
    begun = time.monotonic()
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
    return _outcome(service, app, str(visit.data["uuid"]), begun)[0]


def _outcome(service: LiveService, app: ZooApp, uuid: str, begun: float) -> tuple[Visit, float]:
    for _ in _until(PATIENCE):
        data: Mapping[str, Any] = service.call("GET", f"/builders/{uuid}").json()["data"]
        if data["status"] == "running" and app.kind == "one_time":
            continue
        if data["status"] != "creating":
            break
    seconds = time.monotonic() - begun
    if data["status"] != UP[app.kind]:
        raise NotUp(f"{data['status']}: {data['status_reason']}")
    return Visit(service, data), seconds


def _until(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)


def judged(visit: Visit, app: ZooApp) -> str:
    """Return the platform's verdict of an app that is up, once it has one. Raises ``NotUp`` if it is a wrong one."""
    if app.kind == "sandbox":
        return "up"
    for _ in _until(60):
        verdict = visit.service.builder(str(visit.data["uuid"]))["qa_passed"]
        if verdict is not None:
            break
    if verdict is not True:
        raise NotUp(f"qa_passed is {verdict}: {visit.service.call('GET', f'{visit.path}/qa').text}")
    return "up"


def remove(visit: Visit) -> None:
    visit.service.call("DELETE", f"{visit.path}?purge=true")
    visit.service.wait_gone(str(visit.data["uuid"]))


def measure(service: LiveService, app: ZooApp) -> Row:
    """Deploy the app cold, cached, and as a second version over its data; look at its page. Raises if it is not up."""
    resources = app.fields.get("resources", {})
    row = Row(app.name, app.kind, resources=", ".join(f"{name} {value}" for name, value in resources.items()))
    store = store_of(service)
    empty_cache(store)
    with tempfile.TemporaryDirectory() as folder, app.around() as more:
        body = {**app.body(Path(folder)), **more}
        before = layers(store)
        visit, row.cold = deploy(service, app, body)
        try:
            eventually(visit, app.proof)
            judged(visit, app)
            row.kind = str(visit.data["job_type"])
            row.layer_mb = sum(megabytes(store / "layers" / name) for name in layers(store) - before)
        finally:
            remove(visit)
        visit, row.cached = deploy(service, app, body)
        try:
            eventually(visit, app.proof)
            row.verdict = judged(visit, app)
            eventually(visit, app.kept.write)
            visit = redeploy(visit, app, body)
            eventually(visit, app.kept.read)
            eventually(visit, app.proof)
            if app.page:
                look(visit, app)
            row.disk_mb = disk(store)
        finally:
            remove(visit)
    row.save()
    return row


def warm(service: LiveService, app: ZooApp) -> Row:
    """Deploy the app once; its row has the seconds in ``cached``. Raises if it is not up or wrongly judged."""
    row = Row(app.name, app.kind)
    with tempfile.TemporaryDirectory() as folder, app.around() as more:
        row.cached, row.verdict = _up_once(service, app, {**app.body(Path(folder)), **more})
    row.save()
    return row


def cold_and_cached(service: LiveService, app: ZooApp) -> Row:
    """Deploy the app cold and cached, each time until its proof holds. Raises if it is not up or wrongly judged."""
    row = Row(app.name, app.kind)
    empty_cache(store_of(service))
    with tempfile.TemporaryDirectory() as folder, app.around() as more:
        body = {**app.body(Path(folder)), **more}
        row.cold, _ = _up_once(service, app, body)
        row.cached, row.verdict = _up_once(service, app, body)
    row.save()
    return row


def _up_once(service: LiveService, app: ZooApp, body: dict[str, Any]) -> tuple[float, str]:
    visit, seconds = deploy(service, app, body)
    try:
        eventually(visit, app.proof)
        return seconds, judged(visit, app)
    finally:
        remove(visit)


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


def store_of(service: LiveService) -> Path:
    """Return where the service's store is mounted."""
    instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
    return Path(f"/run/builderd/{instance}/store")


def empty_cache(store: Path) -> None:
    """Remove what installers have downloaded, so that the next install begins as on a new machine."""
    for path in (store / "cache").iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def layers(store: Path) -> set[str]:
    return {path.name for path in (store / "layers").iterdir()}


def megabytes(layer: Path) -> float:
    """Return the size of a finished layer or build, as the store recorded it."""
    return int(os.getxattr(layer, "trusted.builderd.bytes")) / 1e6


def disk(store: Path) -> float:
    """Return the MB that files take on the disks of all builders: of the one that there is."""
    done = subprocess.run(("du", "-s", "--block-size=1", store / "disks"), capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1e6


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep the machine busy with so many endless loops."""
    processes = [subprocess.Popen(("python3", "-c", "while True: pass")) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
