"""Where the service's CPU time goes in one GET, one command and one create, by part: samples of py-spy, classified.

    script/bench profile [--source CHECKOUT] [--calls get exec create] [--seconds N] [--samples FOLDER]
    script/bench profile --compare BEFORE AFTER

Needs py-spy (``pip install py-spy``) in the PATH, or at ``--py-spy``. With ``--source`` the service is that of another
checkout, such as of an older version (``git worktree add``); the rules of ``profile_parts`` hold for both.
``--compare`` shows the samples of two folders side by side. A name that begins several folders (``old`` for ``old1``
and ``old2``) stands for all of them, so that versions can be measured in turns.

py-spy looks 250 times a second at the thread that holds the interpreter's lock, without stopping it: no sample has what
the kernel and the database do without the lock. Parts are shares of these samples, in milliseconds of the CPU time that
the process used in all. The code of a create was reviewed before; the apps of the creates before it run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from benchmarks.cpu import until_idle
from benchmarks.creates import RESOURCES
from benchmarks.lifecycle import BARE, User
from benchmarks.profile_parts import shares
from benchmarks.scale.subject import RawClient
from tests.acceptance.live_service import LiveService, body

CALLS = ("get", "exec", "create")
RATE = 250
WARM_UP = 3
#: Apps that one machine has room for; other calls never come to this.
MOST = {"create": 24}


@dataclass
class Checkout(LiveService):
    """A service of another checkout: its tokens, too, are made by its own command line."""

    source: Path = Path()

    def environment(self, **more: str) -> dict[str, str]:
        return {**super().environment(**more), "PYTHONPATH": str(self.source / "src")}

    def make_token(self, tenant: str, *words: str) -> str:
        argv = self.command("token", "create", "--tenant", tenant, *words)
        done = subprocess.run(argv, env=self.environment(), check=True, capture_output=True, text=True)
        return done.stdout.splitlines()[-1]


@contextlib.contextmanager
def sampled(py_spy: str, pid: int, file: Path) -> Iterator[None]:
    """Sample a process for the time of the block, and write its stacks to the file, one kind a line."""
    argv = [py_spy, "record", "--pid", str(pid), "--rate", str(RATE), "--format", "raw", "--output", str(file)]
    argv += ["--gil", "--nonblocking", "--duration", "unlimited"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as spy:
        assert spy.stdout
        for line in spy.stdout:
            if "Sampling process" in line:
                break
        else:
            raise SystemExit(f"py-spy ended with {spy.wait()}")
        try:
            yield
        finally:
            spy.send_signal(signal.SIGINT)
            spy.communicate()


def measure(options: argparse.Namespace, samples: Path) -> None:
    """Write the samples of each call, and what one took, into the folder."""
    with (
        tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place,
        httpx.Client(timeout=60) as client,
    ):
        folder = Path(place)
        folder.chmod(0o755)
        settings = {"BUILDERD_RATES__REQUESTS": "0"}
        service = Checkout(folder / "data", settings, cold=True, source=options.source.resolve())
        try:
            service.start()
            for name, call in _calls(service, User(service, client)).items():
                if name in options.calls:
                    _measure_one(options, service, name, call, samples)
        finally:
            service.down()


def _calls(service: LiveService, user: User) -> dict[str, Callable[[], Any]]:
    made = user.call("POST", "/builders", 201, json=body("profiled", BARE))
    path = f"/builders/{made['uuid']}"
    raw, number = RawClient(service), itertools.count()

    def another() -> dict[str, Any]:
        return body(f"more-{next(number)}", BARE, resources=RESOURCES)

    return {
        "get": lambda: raw.get(f"/api/v1{path}"),
        "exec": lambda: user.call("POST", f"{path}/exec", 200, json={"command": "/bin/true"}),
        "create": lambda: user.call("POST", "/builders", 201, json=another()),
    }


def _measure_one(
    options: argparse.Namespace, service: LiveService, name: str, call: Callable[[], Any], samples: Path
) -> None:
    assert service.process
    pid = service.process.pid
    for _ in range(WARM_UP):
        call()
    with sampled(options.py_spy, pid, samples / f"{name}.raw"):
        before, count, end = until_idle(pid), 0, time.monotonic() + options.seconds
        while time.monotonic() < end and count < MOST.get(name, count + 1):
            call()
            count += 1
        cpu = (until_idle(pid) - before) / count
    figures = {"calls": count, "cpu_ms": cpu, "load": os.getloadavg()[0]}
    (samples / f"{name}.json").write_text(json.dumps(figures) + "\n")
    print(name, figures, flush=True)


def of_samples(start: Path, call: str) -> tuple[Counter[str], int]:
    """Return milliseconds of one call by part, and the number of calls, of all folders whose name begins so."""
    sums: Counter[str] = Counter()
    calls = 0
    for file in sorted(start.parent.glob(f"{start.name}*/{call}.raw")):
        figures = json.loads(file.with_suffix(".json").read_text())
        with file.open() as lines:
            for part, share in shares(lines).items():
                sums[part] += share * figures["cpu_ms"] * figures["calls"]
        calls += figures["calls"]
    return Counter({part: ms / calls for part, ms in sums.items()}), calls


def table(call: str, starts: Sequence[Path]) -> str:
    """Return a table in Markdown: a row for each part, a column for each of the samples; "" without samples."""
    columns = [of_samples(start, call) for start in starts]
    if not all(calls for _, calls in columns):
        return ""
    heads = (f"{start.name}, {calls} calls" for start, (_, calls) in zip(starts, columns, strict=True))
    rows = [(f"{call}: CPU ms of the service for one", *heads), ("---",) * (1 + len(starts))]
    rows.append(("**all**", *(f"{ms.total():.2f}" for ms, _ in columns)))
    parts = sorted({part for ms, _ in columns for part in ms}, key=lambda part: -columns[0][0][part])
    rows += [(part, *(f"{ms[part]:.2f}" for ms, _ in columns)) for part in parts]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=CALLS)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--py-spy", default=shutil.which("py-spy") or "py-spy")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="builderd-bench-") as place:
        folder = given.samples or Path(place) / "samples"
        if not given.compare:
            if not shutil.which(given.py_spy):
                raise SystemExit("this benchmark needs py-spy: pip install py-spy, then --py-spy PATH")
            folder.mkdir(parents=True, exist_ok=True)
            measure(given, folder)
        for call in given.calls:
            print(table(call, given.compare or [folder]), end="\n\n")


if __name__ == "__main__":
    main()
