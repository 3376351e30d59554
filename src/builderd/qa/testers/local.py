"""The QA testers of one machine, and their judgement of hostile answers. Implements ``ports.gates.Testers``."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import shutil
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from builderd.engine.inventory import SEARCH_PATH, PreflightCheck
from builderd.qa.model import Check, CheckName, Outcome, Screenshot, Visit, pluralize
from builderd.qa.port import Browsing, Target
from builderd.qa.testers import jail, visits
from builderd.qa.testers.jail import VENV, JailFailed, Job
from builderd.sandboxing.bubblewrap import missing

T = TypeVar("T")

#: The port inside the jail that leads to the app (``workers/start.py``).
PORT = 7000
PAGES, CRAWL_SECONDS = 50, 3.0
#: The number of examples bounds the probe: the time is only against hanging, since jails run at low priority.
EXAMPLES, PROBE_SECONDS = 10, 60
BROWSER_SECONDS = 45.0
#: Looks of the gate at once, and seconds for each: deployments wait for them.
LOOKS, LOOK_SECONDS = 2, 15.0
MB = 1_000_000
#: Bytes. Chromium's processes share pages, which count for each of them.
BROWSER_MEMORY = 3_000 * MB
WORKER_MEMORY = 600 * MB


class LocalTesters:
    def __init__(self, chromium: Path) -> None:
        self._chromium = chromium
        self._looks = asyncio.Semaphore(LOOKS)

    async def visit(self, target: Target, path: str, timeout_seconds: float) -> Visit:
        return await visits.visit(target, path, timeout_seconds)

    async def crawl(self, target: Target) -> Sequence[Check]:
        request = {"url": target.url, "port": PORT, "pages": PAGES, "seconds": CRAWL_SECONDS}
        job = Job("crawl.py", request, CRAWL_SECONDS * 3, WORKER_MEMORY, address_space=WORKER_MEMORY)
        return await _work(target, job, judge_crawl, _not_judged(CheckName.CRAWL, CheckName.LINKS))

    async def probe(self, target: Target) -> Sequence[Check]:
        request = {"url": target.url, "port": PORT, "examples": EXAMPLES, "seconds": PROBE_SECONDS}
        job = Job("probe.py", request, PROBE_SECONDS + 10, 2 * WORKER_MEMORY)
        return await _work(target, job, judge_probe, _not_judged(CheckName.OPENAPI))

    async def browse(self, target: Target) -> Browsing:
        return await self._browse(target, BROWSER_SECONDS)

    async def look(self, target: Target) -> Check:
        if self._looks.locked():
            return _not_judged(CheckName.BROWSER)("other pages are being looked at")[0]
        async with self._looks:
            return (await self._browse(target, LOOK_SECONDS, quick=True)).checks[0]

    async def _browse(self, target: Target, seconds: float, *, quick: bool = False) -> Browsing:
        if not self._chromium.exists():
            why = "no Chromium is installed on this machine (builderd setup --with-browser)"
            return Browsing(_not_judged(*_OF_BROWSER)(why))
        # axe-core, which this package contains, by its path inside the jail.
        package = importlib.util.find_spec("axe_playwright_python")
        assert package is not None, "it is among the service's requirements"
        assert package.origin is not None
        axe = VENV / Path(package.origin).parent.relative_to(sys.prefix) / "axe.min.js"
        request = {
            "url": target.url,
            "port": PORT,
            "seconds": seconds - 5,
            "chromium": str(self._chromium),
            "axe": str(axe),
            "quick": quick,
        }
        job = Job("browser.py", request, seconds, BROWSER_MEMORY, output=15 * MB)
        return await _work(target, job, judge_browser, lambda why: Browsing(_not_judged(*_OF_BROWSER)(why)))


_OF_BROWSER = (CheckName.BROWSER, CheckName.CONSOLE, CheckName.ACCESSIBILITY)


async def _work(
    target: Target, job: Job, judge: Callable[[Mapping[str, Any], float], T], instead: Callable[[str], T]
) -> T:
    lack = missing()
    if lack is not None:
        return instead(lack)
    begun = time.monotonic()
    try:
        seen = await jail.run(job, target.address)
        return judge(seen, time.monotonic() - begun)
    except JailFailed as failure:
        return instead(str(failure))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        return instead(f"the result cannot be parsed ({type(error).__name__})")


def _not_judged(*names: CheckName) -> Callable[[str], Sequence[Check]]:
    return lambda why: [Check(name, Outcome.NOT_JUDGED, f"Could not be tried: {why}.") for name in names]


def run_checks(chromium: Path) -> Sequence[PreflightCheck]:
    """Check for bubblewrap and Chromium; changes nothing."""
    jail = shutil.which("bwrap", path=SEARCH_PATH)
    without_jail = "QA reports judge neither pages nor the API: apt-get install bubblewrap"
    without_browser = "QA reports load no page in a browser: apt-get install chromium, or set qa.chromium"
    return [
        PreflightCheck("bubblewrap", jail is not None, jail or "not installed", without_jail, False),
        PreflightCheck("Chromium", chromium.exists(), str(chromium), without_browser, False),
    ]


MAX_TEXT = 400
MAX_PNG = 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_FAILED, _PASSED, _WARNING, _NOT_JUDGED = Outcome.FAILED, Outcome.PASSED, Outcome.WARNING, Outcome.NOT_JUDGED
#: axe-core's impact levels of a violation (https://github.com/dequelabs/axe-core/blob/develop/doc/API.md).
_GRAVE = ("critical", "serious")
#: Kinds of requests (playwright.dev/python/docs/api/class-request) without which a page's own code may fail.
_OF_CODE = ("script", "xhr", "fetch", "websocket", "eventsource")


def text(value: Any) -> str:
    """Return any value as a short text without line breaks."""
    return " ".join(str(value).split())[:MAX_TEXT]


def judge_crawl(seen: Mapping[str, Any], seconds: float) -> Sequence[Check]:
    """Translate the result of ``crawl.py``."""
    pages = [(text(path), status, text(fault)) for path, status, fault in seen["pages"]]
    broken = [f"GET {path} was answered {status}" for path, status, _ in pages if status is not None and status >= 500]
    broken += [f"GET {path} got no answer: {fault}" for path, status, fault in pages if status is None]
    left_out = f"; {int(seen['left_out'])} more were left out" if seen["left_out"] else ""
    if broken:
        message = f"{len(broken)} of {pluralize(len(pages), 'page')} failed (`/` and what it links to){left_out}."
        crawl = Check(CheckName.CRAWL, _FAILED, message, seconds, tuple(broken))
    else:
        message = f"{pluralize(len(pages), 'page')} (`/` and what it links to) answered below 500{left_out}."
        crawl = Check(CheckName.CRAWL, _PASSED, message, seconds)
    message = "There is a robots.txt."
    if seen["robots"] != 200:
        message = "There is no robots.txt: search engines may take everything."
    robots = Check(CheckName.ROBOTS, _PASSED, message)
    return [crawl, _links(pages[1:], int(seen["elsewhere"])), robots]


def _links(pages: Sequence[tuple[str, Any, str]], elsewhere: int) -> Check:
    dead = tuple(f"{path} was answered {status}" for path, status, _ in pages if status in (404, 410))
    untried = f" Links to {elsewhere} other hosts were not tried." if elsewhere else ""
    if dead:
        message = f"{len(dead)} of {pluralize(len(pages), 'link')} on `/` lead nowhere.{untried}"
        return Check(CheckName.LINKS, _FAILED, message, findings=dead)
    said = f"None of {pluralize(len(pages), 'link')} on `/` is broken" if pages else "`/` has no links"
    return Check(CheckName.LINKS, _PASSED, f"{said}.{untried}")


def judge_probe(seen: Mapping[str, Any], seconds: float) -> Sequence[Check]:
    """Translate the result of ``probe.py``."""
    name = CheckName.OPENAPI
    if seen["document"] is None:
        return [Check(name, _PASSED, "No OpenAPI document was found, so there was none to try.", seconds)]
    where = text(seen["document"])
    if seen["fault"]:
        return [Check(name, _NOT_JUDGED, f"{where} could not be tried: {text(seen['fault'])}.", seconds)]
    tried = f"{int(seen['cases'])} requests to {int(seen['tested'])} of {int(seen['operations'])} operations of {where}"
    failures = tuple(f"{text(operation)}: {text(title)}" for title, operation in seen["failures"])
    errors = tuple(f"could not be tried: {text(error)}" for error in seen["errors"])
    if failures:
        message = f"{tried}: 500 or above came of {pluralize(len(failures), 'operation')}."
        return [Check(name, _FAILED, message, seconds, failures + errors)]
    outcome = _PASSED if not errors else _WARNING
    return [Check(name, outcome, f"{tried}: none was answered with 500 or above.", seconds, errors)]


def judge_browser(seen: Mapping[str, Any], seconds: float) -> Browsing:
    """Translate the result of ``browser.py``."""
    views = [view for view in seen["views"] if view["name"] in ("desktop", "phone")]
    pictures = [picture for view in views if (picture := _picture(view)) is not None]
    checks = [_loads(views, seconds), _console(views), _accessibility(views)]
    return Browsing(checks, pictures)


def _loads(views: Sequence[Mapping[str, Any]], seconds: float) -> Check:
    errors = []
    for view in views:
        if view["fault"]:
            errors.append(f"{view['name']}: {text(view['fault'])}")
        elif view["status"] is None or view["status"] >= 500:
            errors.append(f"{view['name']}: answered {text(view['status'])}")
    if errors:
        return Check(CheckName.BROWSER, _FAILED, "`/` does not load in Chromium.", seconds, tuple(errors))
    console = _console(views)
    if console.outcome is not _PASSED and all(view["empty"] for view in views):
        said = f"`/` shows nothing in Chromium, no visible text: {console.message} {console.findings[0]}"
        return Check(CheckName.BROWSER, console.outcome, said, seconds, console.findings)
    times = ", ".join(f"{view['name']} in {float(view['seconds']):.1f} s" for view in views)
    return Check(CheckName.BROWSER, _PASSED, f"`/` loads in Chromium ({times}).", seconds)


def _console(views: Sequence[Mapping[str, Any]]) -> Check:
    """Check the console errors; errors caused by resources that need a network are not the app's."""
    missing = sorted({text(url) for view in views for url, _ in view["missing"]})
    is_crippled = any(kind in _OF_CODE for view in views for _, kind in view["missing"])
    errors: dict[str, None] = {}
    for view in views:
        for said, url in view["console"]:
            if not _is_of_page_itself(view, text(said), text(url)):
                errors[f"{text(said)} ({text(url)})" if url else text(said)] = None
    own = [error for error in errors if "ERR_NAME_NOT_RESOLVED" not in error]
    if own and is_crippled:
        message = "Errors on the console, which missing network access may have caused."
        return Check(CheckName.CONSOLE, _NOT_JUDGED, message, findings=(*own, *missing))
    if own:
        message = f"{pluralize(len(own), 'error')} on the browser's console."
        return Check(CheckName.CONSOLE, _FAILED, message, findings=tuple(own))
    if missing:
        message = f"No errors of its own; {len(missing)} things of other hosts could not be loaded without a network."
        return Check(CheckName.CONSOLE, _PASSED, message, findings=tuple(missing))
    return Check(CheckName.CONSOLE, _PASSED, "No errors on the browser's console.")


def _is_of_page_itself(view: Mapping[str, Any], said: str, url: str) -> bool:
    """Return True for the browser's own message about an error status of the page, or about favicon.ico."""
    if url.endswith("/favicon.ico"):
        return True
    return (view["status"] or 500) >= 400 and said.startswith("Failed to load resource") and url.count("/") == 3


def _accessibility(views: Sequence[Mapping[str, Any]]) -> Check:
    found = next((view["axe"] for view in views if view["axe"] is not None), None)
    name = CheckName.ACCESSIBILITY
    if found is None:
        return Check(name, _NOT_JUDGED, "There is no HTML page at `/` that axe could look at.")
    reported = [
        (text(impact) or "unknown", f"{text(id_)} ({text(impact)}): {text(help_)}, in {pluralize(int(n), 'place')}")
        for id_, impact, help_, n in found
    ]
    grave = [line for impact, line in reported if impact in _GRAVE]
    rest = [line for impact, line in reported if impact not in _GRAVE]
    if not reported:
        return Check(name, _PASSED, "axe found nothing that keeps people out.")
    message = f"axe found {len(grave)} serious and {len(rest)} lesser obstacles for people with disabilities."
    return Check(name, _WARNING if grave else _PASSED, message, findings=(*grave, *rest))


def _picture(view: Mapping[str, Any]) -> Screenshot | None:
    if not view["png"]:
        return None
    png = base64.b64decode(view["png"], validate=True)
    if len(png) > MAX_PNG or not png.startswith(_PNG) or png[12:16] != b"IHDR":
        raise ValueError("no picture of acceptable size")
    # The head of a PNG: width and height as big-endian 32-bit numbers (RFC 2083, 4.1.1).
    width, height = struct.unpack(">II", png[16:24])
    return Screenshot(view["name"], width, height, png)
