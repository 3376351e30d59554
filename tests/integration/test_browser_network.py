"""Chromium of the tests loads pages while links of the machine come and go, as those of other tests do."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Request, sync_playwright
from tests.browser import own_network

#: Names of a pair of links of this process: at most 15 characters.
LINK, PEER = f"bdb{os.getpid()}", f"bdb{os.getpid()}p"
#: A link with an address comes, is up, and goes: each is a change of the network to Chromium.
CHANGES = (
    f"ip link add {LINK} type veth peer name {PEER} && ip addr add 198.18.255.1/30 dev {LINK} && "
    f"ip link set {LINK} up && ip link set {PEER} up && ip link del {LINK}"
)
LOADS = 5


class Images(BaseHTTPRequestHandler):
    """A page with ten images, each on a connection of its own."""

    def do_GET(self) -> None:
        is_page = not self.path.startswith("/image")
        body = "".join(f"<img src='/image{number}{self.path}'>" for number in range(10)).encode() if is_page else b"x"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def changing_links() -> Iterator[list[float]]:
    """Change links until the block ends; yield the times of the changes. Raises the error of one that failed."""
    ended, changes = threading.Event(), list[float]()

    def change() -> None:
        while not ended.is_set():
            subprocess.run(CHANGES, shell=True, check=True)
            changes.append(time.monotonic())

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            yield changes
        finally:
            ended.set()
            wait([changing])
            subprocess.run(["ip", "link", "del", LINK], check=False, stderr=subprocess.DEVNULL)
        changing.result()


@pytest.mark.root
def test_no_request_fails_while_links_come_and_go() -> None:
    failed: list[str | None] = []

    def note(request: Request) -> None:
        failed.append(request.failure)

    with served() as port, own_network(port) as network, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=network.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("requestfailed", note)
        began = time.monotonic()
        with changing_links() as changes:
            for number in range(LOADS):
                page.goto(f"http://app.localhost:{port}/{number}")
            loaded = time.monotonic()
        browser.close()
    assert failed == []
    assert any(began < one < loaded for one in changes)
