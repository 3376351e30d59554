"""A create and a start as a chart: when each stage begins and ends, from the call's arrival to the app's first 200.

    script/bench timeline [--rounds N] [--pool N] [--width N]

The calls of ``script/bench lifecycle``; of the rounds, that with the median time is shown. Stages overlap, and a stage
holds its waits: what a stage computes is told by ``script/bench creates --stages``. The service runs as
``python -m benchmarks.timeline SPANS_FILE serve …``, which notes the begin and the end of each call of the functions in
``STAGES``, by the clock that all processes share; SIGUSR1 writes them to the file as JSON, and forgets them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from benchmarks.lifecycle import BARE, User
from tests.acceptance.live_service import LiveService, body, running

#: A stage, and the function that it is, in the order of the chart's lines. An indented stage is a part of another.
STAGES = (
    ("call, until its answer", "api.server.request_log", "RequestLog.__call__"),
    ("transactions that write", "store.store", "Store.write"),
    ("reads of the store", "store.store", "Store.read"),
    ("observations", "reconciler.core.observe", "observe"),
    ("review", "services.verdicts", "report_of"),
    ("disk with the code", "reconciler.stages.first_start", "FirstStart._make_disk"),
    ("sandbox", "adapters.engines.oci.engine.starting", "Starting.start"),
    ("  created by crun", "adapters.engines.oci.runtime.runs", "Runs.create"),
    ("  given disk, files and limits", "adapters.engines.oci.runtime.claims", "Claims._give"),
    ("  released: the program begins", "adapters.engines.oci.runtime.runs", "Runs.release"),
    ("program, until it listens", "reconciler.stages.listening", "wait_until_up"),
    ("route in the proxy", "adapters.previews.haproxy.previews", "HaproxyPreviews.put"),
    ("QA gate", "reconciler.stages.gate", "Gate.check"),
)


class Span(NamedTuple):
    """A call of a stage's function: its begin and end, in seconds of the clock or milliseconds of a chart."""

    stage: str
    begin: float
    end: float


def record(file: Path) -> None:
    """Note the spans of all stages from now on; write them to the file at SIGUSR1."""
    spans: list[Span] = []
    for stage, module, name in STAGES:
        _replace(importlib.import_module(f"builderd.{module}"), name.split("."), stage, spans)

    def write(*_: object) -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(spans))
        spans.clear()
        partial.replace(file)

    signal.signal(signal.SIGUSR1, write)


def _replace(module: Any, path: Sequence[str], stage: str, spans: list[Span]) -> None:
    """Put a coroutine function that notes its spans in the place of one, also where it was imported by its name."""
    owner = functools.reduce(getattr, path[:-1], module)
    function, name = getattr(owner, path[-1]), path[-1]

    @functools.wraps(function)
    async def noting(*args: Any, **more: Any) -> Any:
        begun = time.perf_counter()
        try:
            return await function(*args, **more)
        finally:
            spans.append(Span(stage, begun, time.perf_counter()))

    for one in [owner, *sys.modules.values()]:
        if vars(one).get(name) is function:
            setattr(one, name, noting)


class Recorded(LiveService):
    """A service that notes spans."""

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.timeline", str(self._file), *self.words(*words)]

    def environment(self, **more: str) -> dict[str, str]:
        own = super().environment(**more)
        return {**own, "PYTHONPATH": f"{own['PYTHONPATH']}:{Path(__file__).parents[1]}"}

    def take(self) -> list[Span]:
        """Return the spans since the last time."""
        assert self.process
        self._file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        while not self._file.exists():
            time.sleep(0.005)
        return [Span(*one) for one in json.loads(self._file.read_text())]

    @property
    def _file(self) -> Path:
        return self.data_dir.parent / "spans.json"


def chart(spans: Sequence[Span], begin: float, end: float, width: int) -> str:
    """Return a line for each stage that had begun by the end: its first begin, its last end, and where it went on."""
    whole, lines = 1000 * (end - begin), ["begin, ms     end"]
    for stage in dict.fromkeys([*(stage for stage, *_ in STAGES), *(span.stage for span in spans)]):
        parts = [(1000 * (one.begin - begin), 1000 * (one.end - begin)) for one in spans if one.stage == stage]
        parts = [(first, last) for first, last in parts if last > 0 and first < whole]
        if parts:
            last = max(last for _, last in parts)
            until = f"{last:8.1f}" if last <= whole else "   later"
            lines.append(f"{max(min(parts)[0], 0):9.1f}{until}  {_bar(parts, whole / width, width)}  {stage}")
    return "\n".join(lines)


def _bar(parts: Sequence[tuple[float, float]], cell: float, width: int) -> str:
    """Return a character for each span of ``cell`` milliseconds."""
    return "".join(
        "█" if any(first < (at + 1) * cell and last > at * cell for first, last in parts) else "·"
        for at in range(width)
    )


def measure(rounds: int, pool: int) -> dict[str, list[tuple[list[Span], float, float]]]:
    """Return spans, begin and end of each round by what was called. The first round warms up, and is left out."""
    found: dict[str, list[tuple[list[Span], float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        recorded = Recorded(Path(place) / "data", {"BUILDERD_SANDBOX_POOL": str(pool)}, cold=True)
        with running(recorded), httpx.Client(timeout=60) as client:
            user = User(recorded, client)
            for number in range(rounds + 1):
                for name, data, begin, visited, end in _round(user):
                    user.wait_judged(data)
                    spans = [*recorded.take(), Span("visit, answered by 200", visited, end)]
                    if number:
                        found.setdefault(name, []).append((spans, begin, end))
    return found


def _round(user: User) -> Iterator[tuple[str, dict[str, Any], float, float, float]]:
    """Yield each call with its builder, its begin, and begin and end of the visit that the app answered."""
    begin = _settled()
    data = user.call("POST", "/builders", 202, prefer="respond-async", json=body("bench", BARE))
    yield "create → the first 200", data, begin, user.wait_served(data), time.perf_counter()
    path = f"/builders/{data['uuid']}"
    user.call("POST", f"{path}/stop", 200)
    begin = _settled()
    user.call("POST", f"{path}/start", 200)
    yield "start of a stopped one → 200", data, begin, user.wait_served(data), time.perf_counter()
    user.call("DELETE", path, 200)


def _settled() -> float:
    """Wait for what follows the calls before, and for the pool; return the time."""
    time.sleep(1)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pool", type=int, default=4, help="the setting sandbox_pool; 0: none is prepared")
    parser.add_argument("--width", type=int, default=60, help="characters of a line's bar")
    options = parser.parse_args()
    for name, rounds in measure(options.rounds, options.pool).items():
        spans, begin, end = sorted(rounds, key=lambda one: one[2] - one[1])[len(rounds) // 2]
        took = f"{1000 * (end - begin):.1f} ms, the median of {len(rounds)} rounds"
        print(f"{name}: {took}, load {os.getloadavg()[0]:.1f}\n\n{chart(spans, begin, end, options.width)}\n")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        record(Path(sys.argv[1]))
        del sys.argv[1]
        from builderd.cli.main import main as builderd

        builderd()
    else:
        main()
