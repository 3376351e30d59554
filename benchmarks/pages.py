"""Web pages: time and CPU of each; bytes of the first and time to its first byte; CPU of open ones; memory over a day.

script/bench pages [--few 1000] [--many 10000]

A line says "missed" where its goal is: times need a quiet machine, CPU time and bytes do not.
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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
from benchmarks.lifecycle import BARE, User
from benchmarks.scale.rows import copy_builder, open_database
from benchmarks.scale.subject import cpu_seconds, spans
from playwright.sync_api import CDPSession, sync_playwright
from sqlalchemy import select
from tests.acceptance.live_service import LiveService, body

from builderd.builders.table import builders
from builderd.core.ids import BuilderId
from builderd.database.repository import Transaction
from builderd.metrics.model import BUCKET, SPAN, Usage, UsageBucket, start_of
from builderd.metrics.store import Metrics

OPEN_PAGES = 200
#: Seconds over which the CPU time of open pages is counted.
CPU_SPAN = 20.0
#: Changes that a page hears of while its memory is measured, each some seconds of its clock after the one before.
CHANGES = 400
#: Builders with a day of metrics.
MEASURED = 1_000
USAGE = Usage(300, 75, 300 * 2.0**26, 2**26, 2**30, 600, 600, 900, 890, 5, 4, 1, within_5_ms=800)
#: Of the session: every page is shown.
SCOPES = ("--scope", "admin", "--scope", "operator")
#: Requests for each page.
ROUNDS = 40
#: Goals: milliseconds of a page and of the first byte, kB of the first page, share of a core, MB of the heap.
PAGE_MS, FIRST_MS, FIRST_KB, OPEN_SHARE, HEAP_MB = 200, 100, 60, 5, 1
OF_TENANT = ("builders", "new", "activity", "spending", "credentials", "webhooks", "tokens", "sessions", "machine")
OF_BUILDER = (
    *("", "/versions", "/versions/1", "/code", "/deploy", "/logs", "/metrics", "/review", "/qa"),
    *("/files", "/terminal", "/backups", "/settings"),
)
PAGES = (*(f"/{name}" for name in OF_TENANT), "/palette", *(f"/builders/first{name}" for name in OF_BUILDER))


def sign_in(service: LiveService) -> httpx.Client:
    client = httpx.Client(base_url=service.url, timeout=60, headers={"Origin": service.url}, trust_env=False)
    assert client.post("/sign-in", data={"token": service.make_token("acme", *SCOPES)}).status_code == 303
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

    return spans(ROUNDS, once)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=1_000, help="builders with which every page is asked for")
    parser.add_argument("--many", type=int, default=10_000, help="builders with which the first page is")
    options = parser.parse_args()
    print("| | found | goal |\n|---|---|---|")
    with stored(options.few) as (service, browser):
        every_page(service, browser, options.few)
    with stored(options.many) as (service, browser):
        first_page(browser, options.many)
        many_pages(service, browser)
        long_open(service, browser)


@contextmanager
def stored(number: int) -> Iterator[tuple[LiveService, httpx.Client]]:
    """Run a service with so many builders and a running one, each of the newest with a day of metrics."""
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
            url = f"sqlite:///{service.data_dir}/builderd.db"
            copy_builder(url, number)
            add_metrics(url)
            service.start()
            with httpx.Client(timeout=60) as client:
                User(service, client).call("POST", f"/builders/{made['uuid']}/start", 200)
            with closing(sign_in(service)) as browser:
                yield service, browser
        finally:
            service.down()


def add_metrics(url: str) -> None:
    """Store a day of metrics of the newest builders, and of the first."""
    engine, now = open_database(url), start_of(datetime.now(UTC))
    newest = select(builders.c.id).order_by((builders.c.name == "first").desc(), builders.c.created_at.desc())
    with engine.begin() as connection:
        for builder in connection.execute(newest.limit(MEASURED)).scalars():
            buckets = [UsageBucket(BuilderId(builder), now - back * BUCKET, USAGE) for back in range(SPAN // BUCKET)]
            Metrics(Transaction(connection, writes=True, written=set())).add(buckets)
    engine.dispose()


def told(name: str, found: str, goal: str = "", *, missed: bool = False) -> None:
    print(f"| {name} | {found} | {goal}{', missed' if missed else ''} |", flush=True)


def every_page(service: LiveService, browser: httpx.Client, number: int) -> None:
    """Tell the time and the service's CPU time of each page."""
    for path in PAGES:
        browser.get(path)
        cpu = cpu_seconds(service)
        found = sorted(spans(ROUNDS, partial(whole_page, browser, path)))
        cpu = 1000 * (cpu_seconds(service) - cpu) / ROUNDS
        p95 = found[ROUNDS * 95 // 100 - 1]
        text = f"{statistics.median(found):.0f}, {p95:.0f}; {cpu:.0f}"
        told(f"{path} with {number}: p50, p95; CPU, ms", text, f"p95 {PAGE_MS}", missed=p95 > PAGE_MS)


def whole_page(browser: httpx.Client, path: str) -> None:
    assert browser.get(path).status_code == 200, path


def first_page(browser: httpx.Client, number: int) -> None:
    """Tell how much travels, and when the first byte comes."""
    size = first_page_bytes(browser) / 1000
    told("first page without font, kB", f"{size:.1f}", f"{FIRST_KB}", missed=size > FIRST_KB)
    found = sorted(first_byte(browser, "/builders"))
    p95 = found[ROUNDS * 95 // 100 - 1]
    text = f"{statistics.median(found):.0f}, {p95:.0f}"
    told(f"first byte of /builders with {number}: p50, p95, ms", text, f"{FIRST_MS}", missed=p95 > FIRST_MS)


def many_pages(service: LiveService, browser: httpx.Client) -> None:
    """Tell what open pages cost when nothing happens."""
    idle = cpu_seconds(service)
    time.sleep(CPU_SPAN)
    idle = 100 * (cpu_seconds(service) - idle) / CPU_SPAN
    with open_pages(browser, OPEN_PAGES):
        time.sleep(2)
        busy = cpu_seconds(service)
        time.sleep(CPU_SPAN)
        busy = 100 * (cpu_seconds(service) - busy) / CPU_SPAN
    text = f"{idle:.1f}; {busy:.1f}"
    told(f"CPU idle; with {OPEN_PAGES} open pages, % of a core", text, f"{OPEN_SHARE}", missed=busy > OPEN_SHARE)


def long_open(service: LiveService, browser: httpx.Client) -> None:
    """Tell how a page grows that hears of changes for 8 hours of its clock."""
    before, after, elements, elements_after = memory_of_a_page(service, browser)
    text = f"{before:.1f} → {after:.1f}; {elements} → {elements_after}"
    grew = elements_after > elements or after > before + HEAP_MB
    told(f"heap in MB and elements over {CHANGES} changes, 8 h", text, f"+{HEAP_MB} MB", missed=grew)


if __name__ == "__main__":
    main()
