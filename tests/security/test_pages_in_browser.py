"""Attacks on the web pages, looked at in Chromium: planted markup, sibling hosts, frames; and axe on every page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Playwright, async_playwright
from playwright.async_api import Route as Route_
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from tests.browser import Network, own_network
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service, listening, running_service

from builderd.core.ids import BuilderId
from builderd.metrics.model import Usage, UsageBucket, start_of
from builderd.server.meter import Meter
from builderd.tokens.model import Scope
from builderd.web.app import Site, create_web

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

#: Marks the window when it runs, wherever it is planted.
MARKUP = "\"'><script>window.planted=1</script><img src=x onerror=window.planted=1><svg onload=window.planted=1>"
WATCH = """
window.broken = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.broken.push(`${event.effectiveDirective} ${event.blockedURI}`);
});
"""
#: What an app's page tries against the pages, with the browser's session.
ATTACK = """<form id=f method=post action="ORIGIN/builders/planted/do/stop"></form>
<iframe id=i src="ORIGIN/builders"></iframe>
<script>
const stop = "ORIGIN/builders/planted/do/stop";
var told = [];
const tell = (name, promise) => promise.then((x) => told.push(`${name}:${x}`), () => told.push(`${name}:refused`));
const all = { credentials: "include" };
tell("read", fetch("ORIGIN/builders", all).then((a) => a.text()).then((t) => t.includes("planted")));
tell("blind", fetch(stop, { ...all, method: "POST", mode: "no-cors" }).then((a) => a.type));
tell("socket", new Promise((ok, no) => {
  const socket = new WebSocket("SOCKET/builders/planted/terminal/session");
  socket.onopen = () => ok("open");
  socket.onerror = no;
}));
tell("cookie", Promise.resolve(document.cookie));
</script>"""
TENANT = (
    "/builders",
    "/new",
    "/new?template=flask",
    "/activity",
    "/spending",
    "/credentials",
    "/webhooks",
    "/tokens",
    "/sessions",
    "/machine",
)
BUILDER = (
    "",
    "/logs",
    "/metrics",
    "/versions?from=1&to=2",
    "/versions/1",
    "/versions/2",
    "/review",
    "/qa",
    "/files",
    "/terminal",
    "/backups",
    "/settings",
    "/code",
    "/deploy",
)
#: axe's levels of a finding that keeps people out.
GRAVE = ("serious", "critical")


@dataclass(slots=True)
class Opened:
    """The pages of a service on fakes, on a port, and a browser that is signed in to them at ``localhost``."""

    service: Service
    port: int
    browser: Browser
    context: BrowserContext
    page: Page
    network: Network

    def url(self, path: str = "") -> str:
        return f"http://localhost:{self.port}{path}"


@asynccontextmanager
async def site() -> AsyncIterator[Opened]:
    with own_network() as network:
        async with running_service() as service, async_playwright() as playwright:
            async with opened(service, playwright, network) as found:
                yield found


@asynccontextmanager
async def opened(service: Service, playwright: Playwright, network: Network) -> AsyncIterator[Opened]:
    web = create_web(service.app.state.operations, meter=Meter())
    async with listening(Site(service.app, web)) as url:  # type: ignore[arg-type]
        port = int(url.rpartition(":")[2])
        network.reach(port)
        browser = await playwright.chromium.launch(executable_path=network.chromium, args=["--no-sandbox"])
        try:
            context = await browser.new_context()
            await context.add_init_script(WATCH)
            page = await context.new_page()
            found = Opened(service, port, browser, context, page, network)
            secret = await service.token("acme", Scope.ADMIN, Scope.OPERATOR)
            await page.goto(found.url("/sign-in"))
            await page.fill("#token", secret)
            await page.click("button.go")
            await page.wait_for_url("**/builders")
            # The empty list reloads itself when the first builder is there, which would end a test's navigation.
            await page.goto("about:blank")
            yield found
        finally:
            # Before the listener ends: it waits for the streams of open pages.
            await browser.close()


async def plant(service: Service) -> None:
    """Make a builder whose every text is markup, with two versions, a credential, and log lines."""
    client = service.client(service.write)
    files = {"main.py": f"# {MARKUP}\n", "Procfile": "web: true\n", f"x{MARKUP.replace('/', '')}.html": MARKUP}
    new = {**MINIMAL, "name": "planted", "entrypoint": f"echo {MARKUP!r}", "env": {"X": MARKUP}, "files": files}
    answer = await client.post("/api/v1/builders", json=new)
    assert answer.status_code == 201, answer.text
    uuid = answer.json()["data"]["uuid"]
    files["main.py"] += f"print({MARKUP!r})\n"
    answer = await client.put(f"/api/v1/builders/{uuid}", json={"files": files})
    assert answer.status_code == 200, answer.text
    # One that failed, with a word that is wider than a phone.
    ends = Behaviour(listens_at=None, exits_at=1, exit_code=1, lines=(f"Error: {'x' * 500}{MARKUP}",))
    service.engine.behave("failing", ends)
    answer = await client.post("/api/v1/builders", json={**MINIMAL, "name": "failed", "entrypoint": "failing"})
    assert answer.status_code == 422, answer.text
    await client.put("/api/v1/credentials/smtp", json={"values": {"PASSWORD": MARKUP}})
    # Figures of an hour, so that the charts and their table are there too.
    usage = Usage(300, 75, 300 * 2**20, 2**20, 2**30, 600, 0, 1234, 900, 5, 4, 1, within_5_ms=2)
    bucket = UsageBucket(BuilderId(uuid), start_of(service.application.clock.now()), usage)
    await service.application.store.write(lambda uow: uow.metrics.add([bucket]))


@asynccontextmanager
async def sibling(text: str) -> AsyncIterator[str]:
    """An app on a sibling host of the pages: ``app.localhost`` is same-site with ``localhost``."""

    async def show(_: Request) -> HTMLResponse:
        return HTMLResponse(text)

    async with listening(Starlette(routes=[Route("/", show)])) as url:  # type: ignore[arg-type]
        yield f"http://app.localhost:{url.rpartition(':')[2]}/"


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(200):
        if await holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come about")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found() -> AsyncIterator[Opened]:
    """Return the pages of a service in which all is planted, at the width of a phone."""
    async with site() as opened:
        await plant(opened.service)
        await opened.page.set_viewport_size({"width": 390, "height": 844})
        yield opened


@pytest.mark.parametrize("audited", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_pages_show_planted_markup_as_text_and_stay_usable(found: Opened, audited: bool) -> None:
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    faults: list[str] = []
    found.page.on("pageerror", lambda error: faults.append(str(error)))
    failed = ("/builders/failed", "/builders/failed/versions/1", "/builders/failed/logs")
    for path in (*TENANT, *failed, *(f"/builders/planted{end}" for end in BUILDER)):
        await found.page.goto(found.url(path))
        await found.page.wait_for_selector("time[data-clock], time[data-moment], main", state="attached")
        await found.page.evaluate("document.querySelectorAll('main details').forEach((one) => (one.open = true))")
        assert await found.page.evaluate("[window.planted, window.broken]") == [None, []], path
        assert await found.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is too wide"
        if not audited:
            continue
        await found.page.evaluate(axe)
        result = await found.page.evaluate("axe.run({resultTypes: ['violations']})")
        grave = [
            (one["id"], [node["html"][:150] for node in one["nodes"]][:3])
            for one in result["violations"]
            if one["impact"] in GRAVE
        ]
        assert not grave, (path, grave)
    assert not faults


async def test_downloads_of_hostile_text_open_no_page(found: Opened) -> None:
    page = found.page
    await page.goto(found.url("/sessions"))
    for path in ("/builders/planted/versions/2/patch?from=1", "/spending/csv", "/builders/planted/logs/download"):
        async with page.expect_download() as started:
            await page.evaluate("(to) => { location.href = to; }", found.url(path))
        assert (await (await started.value).failure()) is None, path
        assert await page.evaluate("[window.planted, window.broken]") == [None, []], path


async def test_an_app_on_a_sibling_host_reaches_nothing_with_the_session(found: Opened) -> None:
    attack = ATTACK.replace("ORIGIN", found.url()).replace("SOCKET", f"ws://localhost:{found.port}")
    cookie: Any = (await found.context.cookies())[0]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    async with sibling(attack) as url:
        found.network.reach(int(url.strip("/").rpartition(":")[2]))
        page = await found.context.new_page()
        await page.goto(url)

        async def told() -> bool:
            return len(await page.evaluate("told")) == 4

        await eventually(told)
        said = dict(one.split(":", 1) for one in await page.evaluate("told"))
        assert (said["read"], said["socket"], said["cookie"]) == ("refused", "refused", "")
        frame = await page.evaluate("document.getElementById('i').contentDocument === null")
        assert frame  # another origin's error page, which nothing can be clicked in
        framed = next(one for one in page.frames if one is not page.main_frame)
        assert "Builders" not in await framed.content()
        await page.evaluate("document.getElementById('f').submit()")
        await page.wait_for_load_state()
    builder = await found.service.store.read(lambda uow: uow.builders.get(uow.builders.ids()[0]))
    assert builder is not None
    assert builder.desired == "running"


@pytest.mark.slow
async def test_a_region_that_is_refused_for_now_is_asked_for_again() -> None:
    """Expect no page to stay as it was when some of 300 open ones are answered 429."""
    async with site() as opened:
        asked: list[int] = []

        async def refuse_once(route: Route_) -> None:
            asked.append(len(asked))
            if len(asked) == 1:
                await route.fulfill(status=429, headers={"Retry-After": "1"}, body="too many")
            else:
                await route.continue_()

        await opened.page.route("**/builders?part=*", refuse_once)
        await opened.page.goto(opened.url("/builders"))
        client = opened.service.client(opened.service.write)
        made = await client.post("/api/v1/builders", json={**MINIMAL, "name": "later"})
        assert made.status_code == 201

        async def is_shown() -> bool:
            return "later" in await opened.page.inner_text("main")

        await eventually(is_shown)
        assert len(asked) >= 2


@pytest.mark.slow
async def test_dialog_that_is_opened_while_its_region_is_asked_for_stays_open(found: Opened) -> None:
    """Expect no late answer to close what the reader has opened; the region is asked for again once that is closed."""
    page, asked, may_answer = found.page, asyncio.Semaphore(0), asyncio.Event()

    async def answer_late(route: Route_) -> None:
        asked.release()
        await may_answer.wait()
        await route.continue_()

    await page.route("**/versions?*part=history*", answer_late)
    await page.goto(found.url("/builders/planted/versions?from=1&to=2"))
    await page.evaluate("builderd.happened(null)")
    async with asyncio.timeout(30):
        await asked.acquire()
    await page.click("button:has-text('Roll back')")
    await page.wait_for_selector("dialog[open]")
    async with page.expect_response("**/versions?*part=history*") as answered:
        may_answer.set()
    await (await answered.value).finished()
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert await page.locator("dialog[open]").count() == 1
    await page.click("dialog[open] button:has-text('Cancel')")
    async with asyncio.timeout(30):
        await asked.acquire()
