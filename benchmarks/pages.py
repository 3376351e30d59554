"""Web pages: bytes of the first page, time to its first byte, CPU time of open pages, memory of one that stays open.

script/bench pages [--builders 10000]
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
from benchmarks.lifecycle import BARE, User
from benchmarks.scale import copy_builder, cpu_seconds, spans
from playwright.sync_api import CDPSession, sync_playwright
from tests.acceptance.live_service import LiveService, body

OPEN_PAGES = 200
#: Seconds over which the CPU time of open pages is counted.
CPU_SPAN = 20.0
#: Changes that a page hears of while its memory is measured, each some seconds of its clock after the one before.
CHANGES = 400
PAGES = (
    "/builders",
    "/activity",
    "/spending",
    "/tokens",
    "/new",
    "/builders/first",
    "/builders/first/versions",
    "/builders/first/settings",
    "/builders/first/metrics",
)


def sign_in(service: LiveService) -> httpx.Client:
    client = httpx.Client(base_url=service.url, timeout=60, headers={"Origin": service.url}, trust_env=False)
    assert client.post("/sign-in", data={"token": service.token}).status_code == 303
    return client


def first_page_bytes(client: httpx.Client) -> int:
    """Return the bytes that travel for the list with its styles and scripts, without the font."""

    def travelled(path: str) -> int:
        with client.stream("GET", path) as answer:
            return sum(map(len, answer.iter_raw()))

    text = client.get("/builders").text
    assets = set(re.findall(r'(?:src|href)="(/static/[^"#]+)', text))
    return travelled("/builders") + sum(travelled(path) for path in assets if "woff2" not in path)


def first_byte(client: httpx.Client, path: str) -> list[float]:
    def once() -> None:
        with client.stream("GET", path) as answer:
            assert answer.status_code == 200, path
            next(answer.iter_raw())

    return spans(20, once)


@contextmanager
def open_pages(client: httpx.Client, number: int) -> Iterator[None]:
    """Hold so many streams of events."""
    ended, begun = threading.Event(), threading.Semaphore(0)
    cookies = dict(client.cookies)

    def hold() -> None:
        own = httpx.Client(base_url=client.base_url, timeout=60, cookies=cookies, trust_env=False)
        with own, own.stream("GET", "/live") as answer:
            assert answer.status_code == 200
            begun.release()
            ended.wait()

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=60)
    yield
    ended.set()
    for thread in threads:
        thread.join(timeout=60)


def memory_of_a_page(service: LiveService, client: httpx.Client) -> tuple[float, float, int, int]:
    """Return a page's heap in MB and its elements, before and after many changes."""
    (name, value), *_ = client.cookies.items()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context(base_url=service.url)
        context.add_cookies([{"name": name, "value": value, "url": service.url}])
        page = context.new_page()
        page.clock.install()
        page.goto("/builders?status=running")
        session = context.new_cdp_session(page)
        session.send("HeapProfiler.enable")
        hear = "new BroadcastChannel('builderd-live').postMessage({kind: 'change', change: {type: 'builder.status'}})"

        def hear_of(changes: int) -> tuple[float, int]:
            for _ in range(changes):
                page.evaluate(hear)
                page.clock.run_for(72_000)
            session.send("HeapProfiler.collectGarbage")
            return heap(session), page.evaluate("document.querySelectorAll('*').length")

        before, elements = hear_of(20)
        after, elements_after = hear_of(CHANGES)
        browser.close()
    return before, after, elements, elements_after


def heap(session: CDPSession) -> float:
    """Return the used JavaScript heap in MB."""
    return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builders", type=int, default=10_000)
    number = parser.parse_args().builders
    with tempfile.TemporaryDirectory(prefix="bd-pages-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        service = LiveService(Path(folder) / "data")
        try:
            service.start()
            with httpx.Client(timeout=60) as client:
                user = User(service, client)
                made = user.call("POST", "/builders", 201, json=body("first", BARE))
                user.call("POST", f"/builders/{made['uuid']}/stop", 200)
            service.terminate()
            copy_builder(f"sqlite:///{service.data_dir}/builderd.db", number)
            service.start()
            with closing(sign_in(service)) as browser:
                report(service, browser, number)
        finally:
            service.down()


def report(service: LiveService, browser: httpx.Client, number: int) -> None:
    print(f"| {number} builders | |\n|---|---|")
    print(f"| first page without font, kB | {first_page_bytes(browser) / 1000:.1f} |")
    for path in PAGES:
        found = first_byte(browser, path)
        print(f"| first byte of {path}, p50 and p95 ms | {statistics.median(found):.0f}, {found[18]:.0f} |")
    idle = cpu_seconds(service)
    time.sleep(CPU_SPAN)
    idle = cpu_seconds(service) - idle
    with open_pages(browser, OPEN_PAGES):
        time.sleep(2)
        busy = cpu_seconds(service)
        time.sleep(CPU_SPAN)
        busy = cpu_seconds(service) - busy
    print(f"| CPU of a core, idle | {100 * idle / CPU_SPAN:.1f} % |")
    print(f"| the same with {OPEN_PAGES} open pages | {100 * busy / CPU_SPAN:.1f} % |")
    before, after, elements, elements_after = memory_of_a_page(service, browser)
    print(f"| heap of a page in MB, elements: at first | {before:.1f}, {elements} |")
    print(f"| after {CHANGES} changes, 8 h of its clock | {after:.1f}, {elements_after} |")


if __name__ == "__main__":
    main()
