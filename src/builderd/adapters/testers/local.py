"""The QA testers of one machine. Implements ``ports.testers.Testers``."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from builderd.adapters.testers import jail, visits
from builderd.adapters.testers.jail import VENV, JailFailed, Job
from builderd.adapters.testers.judging import judge_browser, judge_crawl, judge_probe
from builderd.domain.inventory import SEARCH_PATH, PreflightCheck
from builderd.domain.qa import Check, CheckName, Outcome, Visit
from builderd.ports.testers import Browsing, Target
from builderd.sandboxing.bubblewrap import missing

T = TypeVar("T")

#: The port inside the jail that leads to the app (``workers/start.py``).
PORT = 7000
PAGES, CRAWL_SECONDS = 50, 3.0
#: The number of examples bounds the probe: the time is only against hanging, since jails run at low priority.
EXAMPLES, PROBE_SECONDS = 10, 60
BROWSER_SECONDS = 45.0
MB = 1_000_000
#: Bytes. Chromium's processes share pages, which count for each of them.
BROWSER_MEMORY = 3_000 * MB
WORKER_MEMORY = 600 * MB


class LocalTesters:
    def __init__(self, chromium: Path) -> None:
        self._chromium = chromium

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
        if not self._chromium.exists():
            why = "no Chromium is installed on this machine (builderd setup --with-browser)"
            return Browsing(_not_judged(*_OF_BROWSER)(why))
        axe = _axe()
        request = {
            "url": target.url,
            "port": PORT,
            "seconds": BROWSER_SECONDS - 5,
            "chromium": str(self._chromium),
            "axe": str(axe),
        }
        job = Job("browser.py", request, BROWSER_SECONDS, BROWSER_MEMORY, output=15 * MB)
        return await _work(target, job, judge_browser, lambda why: Browsing(_not_judged(*_OF_BROWSER)(why)))


_OF_BROWSER = (CheckName.BROWSER, CheckName.CONSOLE, CheckName.ACCESSIBILITY)


def _axe() -> Path:
    """Return the path inside the jail of axe-core, which the package axe-playwright-python contains."""
    package = importlib.util.find_spec("axe_playwright_python")
    assert package is not None, "it is among the service's requirements"
    assert package.origin is not None
    return VENV / Path(package.origin).parent.relative_to(sys.prefix) / "axe.min.js"


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
