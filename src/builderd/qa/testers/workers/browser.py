"""Loads a page in the system's Chromium, in a desktop and a phone viewport, and reports the result.

Request: ``{"url", "port", "chromium", "axe", "seconds", "quick"}``. ``quick``: only the desktop, until it shows
something, without picture and axe. Answer: ``{"views": [{"name", "status", "html", "empty", "fault", "seconds",
"console": [[text, url]], "missing": [[url, kind]], "png": base64, "axe": [[id, impact, help, count]] | null}]}``.
``empty``: the page shows neither text nor a picture.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, sync_playwright

VIEWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("desktop", {"viewport": {"width": 1280, "height": 800}}),
    ("phone", {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}),
)
#: Time for further loading between the page's load event and its screenshot.
IDLE_MILLISECONDS = 2500
SETTLE_MILLISECONDS = 200
MAX_LIST = 100
SHOWS = """() => document.body && (document.body.innerText.trim() || document.querySelector(
    "img, svg, canvas, video, iframe, object, embed, input, textarea, select, button")) ? true : false"""
AXE = """() => axe.run(document, {resultTypes: ["violations"]}).then(result => result.violations.map(
    one => [one.id, one.impact || "", one.help, one.nodes.length]))"""


def main() -> None:
    request = json.load(sys.stdin)
    parts = urlsplit(request["url"])
    port = parts.port or (443 if parts.scheme == "https" else 80)
    url = f"http://{parts.hostname}:{port}/"
    origin = f"http://{parts.hostname}" + ("" if port == 80 else f":{port}")
    arguments = [
        f"--host-resolver-rules=MAP {parts.hostname}:{port} 127.0.0.1:{request['port']}, MAP * ~NOTFOUND",
        f"--unsafely-treat-insecure-origin-as-secure={origin}",
        "--disable-gpu",
        "--renderer-process-limit=2",
        "--js-flags=--max-old-space-size=256",
        "--no-first-run",
    ]
    axe = None if request["quick"] else Path(request["axe"]).read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=request["chromium"],
            chromium_sandbox=True,
            args=arguments,
            timeout=request["seconds"] * 1000,
        )
        headers = {"X-Forwarded-Proto": parts.scheme, "X-Forwarded-Host": parts.netloc}
        end = time.monotonic() + request["seconds"]
        views = [
            view(browser, name, {**options, "extra_http_headers": headers}, url, axe, end)
            for name, options in (VIEWS if axe else VIEWS[:1])
        ]
        browser.close()
    json.dump({"views": views}, sys.stdout)


def view(browser: Browser, name: str, options: dict[str, Any], url: str, axe: str | None, end: float) -> dict[str, Any]:
    begun = time.monotonic()
    seen: dict[str, Any] = {"name": name, "status": None, "html": False, "fault": "", "png": "", "axe": None}
    seen |= {"empty": False, "console": [], "missing": []}
    context = browser.new_context(**options, service_workers="block", accept_downloads=False, reduced_motion="reduce")
    context.set_default_timeout(max((end - begun) * 1000, 500))
    page = context.new_page()
    listen(page, urlsplit(url).hostname or "", seen)
    try:
        load(page, url, seen, quick=axe is None)
        if axe is None:
            context.close()
            return {**seen, "seconds": round(time.monotonic() - begun, 3)}
        seen["png"] = base64.b64encode(page.screenshot(type="png", animations="disabled")).decode()
        if name == "desktop" and seen["html"] and (seen["status"] or 500) < 400:
            page.evaluate(axe)
            seen["axe"] = page.evaluate(AXE)[:MAX_LIST]
    except Error as error:
        seen["fault"] = seen["fault"] or error.message.splitlines()[0][:300]
    context.close()
    seen["seconds"] = round(time.monotonic() - begun, 3)
    return seen


def load(page: Page, url: str, seen: dict[str, Any], *, quick: bool) -> None:
    answer = page.goto(url, wait_until="load")
    if answer is not None:
        seen["status"] = answer.status
        seen["html"] = "html" in answer.headers.get("content-type", "")
    if not seen["html"]:
        return
    with suppress(Error):  # a page that polls for ever is as ready as it gets
        if quick:
            page.wait_for_function(SHOWS, timeout=IDLE_MILLISECONDS)
        else:
            page.wait_for_load_state("networkidle", timeout=IDLE_MILLISECONDS)
    if not quick:
        page.wait_for_timeout(SETTLE_MILLISECONDS)
    seen["empty"] = not page.evaluate(SHOWS)


def listen(page: Page, host: str, seen: dict[str, Any]) -> None:
    def console(message: ConsoleMessage) -> None:
        if message.type == "error" and len(seen["console"]) < MAX_LIST:
            seen["console"].append([message.text[:400], str(message.location.get("url", ""))[:400]])

    def failed(request: Request) -> None:
        if urlsplit(request.url).hostname != host and len(seen["missing"]) < MAX_LIST:
            seen["missing"].append([request.url[:400], request.resource_type])

    def crashed(error: Error) -> None:
        if len(seen["console"]) < MAX_LIST:
            seen["console"].append([f"Uncaught {error.name or 'error'}: {error.message}"[:400], ""])

    page.on("console", console)
    page.on("pageerror", crashed)
    page.on("requestfailed", failed)


main()
