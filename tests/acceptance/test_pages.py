"""The web pages of a live service in Chromium: a whole story, from signing in to deleting the app."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import BrowserContext, Page, ViewportSize, expect, sync_playwright
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.browser import own_network
from tests.unit.client.test_folders import FILES, RULES, make

from builderd.client.folders import read_folder

BROKEN = TINY_APP.replace("def do_GET(self):", "def do_GET(self:")
MENDED = TINY_APP.replace("HTTPServer((", 'print("tide comes in", flush=True)\nHTTPServer((')
NAME = "tide-table"
Variant = tuple[str, Literal["light", "dark"], ViewportSize]
WIDE, NARROW = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)
VARIANTS: Sequence[Variant] = [
    ("desktop", "light", WIDE),
    ("desktop", "dark", WIDE),
    ("phone", "light", NARROW),
    ("phone", "dark", NARROW),
]
#: Ends once the page is drawn in its new size and colours.
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
#: Against hanging only.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


@dataclass(frozen=True, slots=True)
class Camera:
    """Takes the screenshots of a page in these sizes and themes, without loading it again."""

    folder: Path
    variants: Sequence[Variant]

    def shoot(self, page: Page, name: str) -> None:
        for size, theme, viewport in self.variants:
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size(viewport)
            page.evaluate(DRAWN)
            page.screenshot(path=self.folder / f"{name}.{size}.{theme}.png", full_page=True)
        page.set_viewport_size(NARROW)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than a phone"
        page.set_viewport_size(WIDE)

    def see(self, page: Page, path: str, name: str) -> None:
        """Take screenshots of a page of which the story needs nothing else; tests/security visits all of them."""
        if self.variants:
            page.goto(path)
            self.shoot(page, name)


@pytest.fixture(params=["no screenshots", pytest.param("all sizes and themes", marks=pytest.mark.slow)])
def camera(request: pytest.FixtureRequest, tmp_path: Path) -> Camera:
    folder = Path(os.environ.get("BUILDERD_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return Camera(folder, VARIANTS if request.param == "all sizes and themes" else ())


@pytest.fixture
def context(service: LiveService, camera: Camera) -> Iterator[BrowserContext]:
    """A browser that is signed in by the link that the command line prints."""
    said = service.invoke("token", "link", "--tenant", "acme", "--scope", "admin", "--scope", "operator").stdout
    link = said.splitlines()[-1]
    with own_network(service.port) as network, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=network.chromium, args=["--no-sandbox"])
        opened = browser.new_context(base_url=service.url, viewport=WIDE)
        opened.set_default_timeout(PATIENCE)
        page = opened.new_page()
        page.goto(f"/sign-in/once/{link.rpartition('/')[2]}")
        camera.shoot(page, "sign-in-once")
        page.click("button.go")
        page.wait_for_url("**/builders")
        page.close()
        yield opened
        browser.close()


@pytest.mark.root
def test_a_story_from_a_dropped_folder_to_its_deletion(context: BrowserContext, camera: Camera, tmp_path: Path) -> None:
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "main.py").write_text(BROKEN)

    # A folder with a mistake in it: the review says so, and nothing of it runs.
    camera.see(page, "/builders", "builders-empty")
    page.goto("/new")
    camera.shoot(page, "new")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "x.js").write_text("x")
    (folder / ".env").write_text('# of the app\nexport GREETING="ahoy"\n')
    # What git leaves out, as the command line reads it.
    make(folder, FILES)
    (folder / ".gitignore").write_text(RULES)
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    page.set_input_files("#folder", folder)
    expect(page.locator("#plan")).to_contain_text(".env is not sent as a file. Variables of .env are filled in")
    listed = page.locator("#plan li").evaluate_all("all => all.map((one) => one.textContent)")
    kept = [file.path for file in read_folder(folder, [".env"]).files]
    assert sorted(listed[: len(kept)]) == sorted(kept)
    assert listed[len(kept)].endswith(")"), "the rest is left out, each with its rule"
    camera.shoot(page, "new-plan")
    assert not posted, "nothing was sent"
    page.click("#look")
    expect(page.locator("#sent")).to_contain_text("Left out: ")
    assert page.input_value("[name=name]") == NAME
    assert page.input_value("[name=entrypoint]") == "python3 main.py"
    assert page.input_value("[name=env-name] >> nth=0") == "GREETING"
    assert page.input_value("[name=env-value] >> nth=0") == "ahoy"
    page.select_option("[name=job_type]", "worker")
    expect(page.locator("[name=port]")).to_be_hidden()
    page.select_option("[name=job_type]", "always_on")
    camera.shoot(page, "new-found")
    page.click("#deploy")
    page.wait_for_url(f"**/builders/{NAME}/versions/1")
    expect(page.locator("#progress")).to_have_attribute("data-state", "failed")
    expect(page.locator("#progress")).to_contain_text("failed at review")
    camera.shoot(page, "deployment-failed")
    camera.see(page, f"/builders/{NAME}/review?version=1", "review-failed")

    # Mended in the editor, it is up.
    page.goto(f"/builders/{NAME}/versions/1")
    page.click("text=Mend it here")
    page.fill("[data-editor]", MENDED)
    page.fill("#entry", "python3 main.py")
    camera.shoot(page, "code")
    page.click("text=Deploy as the next version")
    page.wait_for_url(f"**/builders/{NAME}/versions/2")
    expect(page.locator("#progress")).to_have_attribute("data-state", "serves")
    camera.shoot(page, "deployment-done")

    # Its log, and a shell in its sandbox.
    page.goto(f"/builders/{NAME}/logs?q=tide")
    expect(page.locator("#log mark").first).to_have_text("tide")
    camera.see(page, f"/builders/{NAME}/logs", "logs")
    page.goto(f"/builders/{NAME}/terminal")
    expect(page.locator("#term-live")).to_have_attribute("data-is", "live")
    page.keyboard.type("echo tide-$((6*7))\n")
    expect(page.locator(".xterm-rows")).to_contain_text("tide-42")
    camera.shoot(page, "terminal")

    # Another version, the difference, and back again.
    page.goto(f"/builders/{NAME}/code")
    page.fill("[data-editor]", MENDED.replace("comes in", "goes out"))
    page.click("text=Deploy as the next version")
    page.wait_for_url(f"**/builders/{NAME}/versions/3")
    expect(page.locator("#progress")).to_have_attribute("data-state", "serves")
    page.goto(f"/builders/{NAME}/versions?from=2&to=3")
    expect(page.locator(".code .add")).to_contain_text("goes out")
    camera.shoot(page, "versions")
    page.click("button:has-text('Roll back')")
    page.click("dialog[open] button.go")
    page.wait_for_url(f"**/builders/{NAME}/versions/4")
    expect(page.locator("#progress")).to_have_attribute("data-state", "serves")

    # A file on its disk, edited; a backup of it, restored.
    page.goto(f"/builders/{NAME}/files/main.py")
    page.fill("[data-editor]", MENDED + "# changed\n")
    camera.shoot(page, "files")
    page.click("button:has-text('Save')")
    expect(page.locator(".said")).to_contain_text("written")
    page.goto(f"/builders/{NAME}/backups")
    page.click("text=Back up now")
    expect(page.locator("#list button:has-text('Restore')").first).to_be_visible()
    camera.shoot(page, "backups")
    page.click("#list button:has-text('Restore')")
    page.click("dialog[open] button:has-text('Restore in place')")
    expect(page.locator(".said")).to_contain_text("being restored")
    expect(page.locator("#list .tell.now")).to_have_count(0)

    for name in ("", "metrics", "qa", "review", "settings", "deploy"):
        camera.see(page, f"/builders/{NAME}{'/' + name if name else ''}", name or "overview")
    for name in ("builders", "activity", "spending", "credentials", "webhooks", "tokens", "sessions", "machine"):
        camera.see(page, f"/{name}", name)

    # A token for a program, shown once.
    page.goto("/tokens")
    page.fill("[name=name]", "ci")
    page.click("button:has-text('Make it')")
    expect(page.locator(".secret")).to_contain_text("bd_")
    camera.shoot(page, "tokens-made")

    # Deleted, by its name.
    page.goto(f"/builders/{NAME}/settings")
    assert page.input_value("[name=env-value] >> nth=0") == "ahoy"
    page.click("text=Delete everything >> nth=0")
    button = page.locator("#purge button.go")
    expect(button).to_be_disabled()
    page.fill("#purge [name=confirm]", NAME)
    camera.shoot(page, "dialog")
    button.click()
    page.wait_for_url("**/builders*")
    expect(page.locator("main")).not_to_contain_text(NAME)
    assert not faults
