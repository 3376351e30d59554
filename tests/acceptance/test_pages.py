"""The web pages of a live service in Chromium: a whole story, from signing in to deleting the app."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from tests.acceptance.live_service import TINY_APP, LiveService

BROKEN = TINY_APP.replace("def do_GET(self):", "def do_GET(self:")
MENDED = TINY_APP.replace("HTTPServer((", 'print("tide comes in", flush=True)\nHTTPServer((')
NAME = "tide-table"
#: Where screenshots go; set it to look at them.
SCREENS = os.environ.get("BUILDERD_SCREENSHOTS", "")
VARIANTS = [
    (size, theme, {"width": width, "height": height})
    for size, width, height in (("desktop", 1440, 900), ("phone", 390, 844))
    for theme in ("light", "dark")
]
#: Against hanging only.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture
def context(service: LiveService) -> Iterator[BrowserContext]:
    """A browser that is signed in by the link that the command line prints."""
    done = subprocess.run(
        [*service.command("token", "link"), "--tenant", "acme", "--scope", "admin", "--scope", "operator"],
        env=service.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    link = done.stdout.splitlines()[-1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        opened = browser.new_context(base_url=service.url, viewport={"width": 1440, "height": 900})
        opened.set_default_timeout(PATIENCE)
        page = opened.new_page()
        page.goto(f"/sign-in/once/{link.rpartition('/')[2]}")
        shoot(page, "sign-in-once")
        page.click("button.go")
        page.wait_for_url("**/builders")
        page.close()
        yield opened
        browser.close()


def shoot(page: Page, name: str) -> None:
    """Take the page's screenshots, light and dark, wide and narrow, where they are wanted."""
    if not SCREENS:
        return
    Path(SCREENS).mkdir(parents=True, exist_ok=True)
    for size, theme, viewport in VARIANTS:
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        page.wait_for_timeout(250)
        page.screenshot(path=f"{SCREENS}/{name}.{size}.{theme}.png", full_page=True)
        if size == "phone":
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    page.set_viewport_size({"width": 1440, "height": 900})


def see(page: Page, path: str, name: str = "") -> None:
    page.goto(path)
    shoot(page, name or path.strip("/").replace("/", "-").partition("?")[0])


@pytest.mark.root
@pytest.mark.slow
def test_a_story_from_a_dropped_folder_to_its_deletion(context: BrowserContext, tmp_path: Path) -> None:
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "main.py").write_text(BROKEN)

    # A folder with a mistake in it: the review says so, and nothing of it runs.
    see(page, "/builders", "builders-empty")
    page.goto("/new")
    page.set_input_files("#folder", folder)
    expect(page.locator("#chosen-files")).to_contain_text("main.py")
    assert page.input_value("[name=name]") == NAME
    assert page.input_value("[name=entrypoint]") == "python3 main.py"
    page.fill("[name=env-name] >> nth=0", "GREETING")
    page.fill("[name=env-value] >> nth=0", "ahoy")
    page.check("[name=job_type][value=worker]")
    expect(page.locator("[name=port]")).to_be_hidden()
    page.check("[name=job_type][value=always_on]")
    shoot(page, "new")
    page.click("#deploy")
    page.wait_for_url(f"**/builders/{NAME}/versions/1")
    expect(page.locator("#progress")).to_have_attribute("data-state", "failed")
    expect(page.locator("#progress")).to_contain_text("failed at review")
    shoot(page, "deployment-failed")
    see(page, f"/builders/{NAME}/review?version=1", "review-failed")

    # Mended in the editor, it is up.
    page.goto(f"/builders/{NAME}/versions/1")
    page.click("text=Mend it here")
    page.fill("[data-editor]", MENDED)
    page.fill("#entry", "python3 main.py")
    shoot(page, "code")
    page.click("text=Deploy as the next version")
    page.wait_for_url(f"**/builders/{NAME}/versions/2")
    expect(page.locator("#progress")).to_have_attribute("data-state", "serves")
    shoot(page, "deployment-done")

    # Its log, and a shell in its sandbox.
    page.goto(f"/builders/{NAME}/logs?q=tide")
    expect(page.locator("#log mark").first).to_have_text("tide")
    see(page, f"/builders/{NAME}/logs", "logs")
    page.goto(f"/builders/{NAME}/terminal")
    expect(page.locator("#term-live")).to_have_attribute("data-is", "live")
    page.keyboard.type("echo tide-$((6*7))\n")
    expect(page.locator(".xterm-rows")).to_contain_text("tide-42")
    shoot(page, "terminal")

    # Another version, the difference, and back again.
    page.goto(f"/builders/{NAME}/code")
    page.fill("[data-editor]", MENDED.replace("comes in", "goes out"))
    page.click("text=Deploy as the next version")
    page.wait_for_url(f"**/builders/{NAME}/versions/3")
    expect(page.locator("#progress")).to_have_attribute("data-state", "serves")
    page.goto(f"/builders/{NAME}/versions?from=2&to=3")
    expect(page.locator(".code .add")).to_contain_text("goes out")
    shoot(page, "versions")
    page.click("button:has-text('Roll back')")
    page.click("dialog[open] button.go")
    page.wait_for_url(f"**/builders/{NAME}/versions/4")
    expect(page.locator("#progress")).to_have_attribute("data-state", "serves")

    # A file on its disk, edited; a backup of it, restored.
    page.goto(f"/builders/{NAME}/files/main.py")
    page.fill("[data-editor]", MENDED + "# changed\n")
    shoot(page, "files")
    page.click("button:has-text('Save')")
    expect(page.locator(".said")).to_contain_text("written")
    page.goto(f"/builders/{NAME}/backups")
    page.click("text=Back up now")
    expect(page.locator("#list button:has-text('Restore')").first).to_be_visible()
    shoot(page, "backups")
    page.click("#list button:has-text('Restore')")
    page.click("dialog[open] button:has-text('Restore in place')")
    expect(page.locator(".said")).to_contain_text("being restored")
    expect(page.locator("#list .tell.now")).to_have_count(0)

    for name in ("", "metrics", "qa", "review", "settings", "deploy"):
        see(page, f"/builders/{NAME}{'/' + name if name else ''}", name or "overview")
    for name in ("builders", "activity", "spending", "credentials", "webhooks", "tokens", "sessions", "machine"):
        see(page, f"/{name}", name)

    # A token for a program, shown once.
    page.goto("/tokens")
    page.fill("[name=name]", "ci")
    page.click("button:has-text('Make it')")
    expect(page.locator(".secret")).to_contain_text("bd_")
    shoot(page, "tokens-made")

    # Deleted, by its name.
    page.goto(f"/builders/{NAME}/settings")
    assert page.input_value("[name=env-value] >> nth=0") == "ahoy"
    page.click("text=Delete everything >> nth=0")
    button = page.locator("#purge button.go")
    expect(button).to_be_disabled()
    page.fill("#purge [name=confirm]", NAME)
    shoot(page, "dialog")
    button.click()
    page.wait_for_url("**/builders*")
    expect(page.locator("main")).not_to_contain_text(NAME)
    assert not faults
