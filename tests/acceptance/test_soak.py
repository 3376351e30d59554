"""Many cycles of a builder's life leave nothing behind on the host."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.host_traces import assert_traces, traces_at_rest
from tests.acceptance.live_service import LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine

log = logging.getLogger(__name__)
CYCLES = int(os.environ.get("BUILDERD_SOAK_CYCLES", "1000"))
#: Calls that a mixed cycle makes, and most bytes by which the service may grow with each: some 500 were measured over
#: 4,500 calls behind 1,500, and fewer later. Most are pages of the database, until the page cache of each of SQLite's
#: connections is full (2 MB); of the builders themselves nothing is kept (tests/unit/server/test_kept.py).
CALLS_PER_CYCLE, KEPT_BYTES = 25, 1000


def host_wide() -> dict[str, int]:
    """Counts of the whole host, which also catch what does not bear the instance's name."""
    return {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": len(list(Path("/sys/class/net").iterdir())),
        "loops": sum(1 for loop in Path("/sys/block").glob("loop*") if (loop / "loop/backing_file").exists()),
        "cgroups": sum(1 for _ in os.walk("/sys/fs/cgroup")),
        "firewall": len(
            subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout.splitlines()
        ),
    }


def of_process(service: LiveService) -> dict[str, int]:
    """Return the memory in bytes, open files and threads of the service's process."""
    assert service.process is not None
    folder = Path(f"/proc/{service.process.pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "memory": int(fields["VmRSS"].split()[0]) << 10,
        "files": len(list((folder / "fd").iterdir())),
        "threads": int(fields["Threads"]),
    }


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.engines
def test_a_thousand_lifecycles_leave_no_traces(engine: OwnEngine | OnIncus, service: LiveService) -> None:
    def cycle(number: int) -> None:
        data = service.create(f"soak-{abs(number)}-{number < 0}".lower(), env={"GREETING": str(number)})
        assert service.visit(data).text == str(number)
        if number % 10 == 0:
            service.call("POST", f"/builders/{data['uuid']}/restart")
        assert service.call("DELETE", f"/builders/{data['uuid']}").status_code == 200

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cycle, range(-20, 0)))  # threads, connections and files that are opened once and kept
    before, host_before = traces_at_rest(service), host_wide()
    assert service.process is not None
    open_files = Path(f"/proc/{service.process.pid}/fd")
    files_before = len(list(open_files.iterdir()))
    with ThreadPoolExecutor(2) as pool:
        # There each takes some 4 s of CPU.
        list(pool.map(cycle, range(CYCLES // 10 if engine.is_incus else CYCLES)))
    assert_traces(service, before)
    # Members have namespaces of their own.
    assert engine.is_incus or host_wide() == host_before
    assert len(list(open_files.iterdir())) <= files_before + 5


@pytest.mark.root
@pytest.mark.slow
def test_mixed_operations_leave_nothing_in_the_service(service: LiveService) -> None:
    """Make calls of all kinds for two clients at a time, each with a builder of its own."""
    numbers = itertools.count()

    def cycle(_: int) -> None:
        number = next(numbers)
        data = service.create(f"mixed-{number}", env={"GREETING": str(number)})
        path = f"/builders/{data['uuid']}"
        assert service.visit(data).text == str(number)

        def done(method: str, below: str, **options: Any) -> None:
            response = service.call(method, f"{path}{below}", **options)
            assert response.is_success, f"{method} {below}: {response.text}"

        for turn in range(4):
            done("POST", "/exec", json={"command": f"echo {turn}"})
            done("PUT", f"/files/data-{turn}.txt", content=b"x" * 20_000)
            done("GET", f"/files/data-{turn}.txt")
            done("GET", "/logs")
        done("GET", "")
        done("GET", "/metrics")
        done("GET", "/events")
        done("PATCH", "", json={"env": {"GREETING": "changed"}})
        done("POST", "/preview-links", json={})
        done("POST", "/ssh", json={})
        done("POST", "/restart")
        done("DELETE", "")

    def run(cycles: int) -> dict[str, int]:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(cycle, range(cycles)))
        at_rest = traces_at_rest(service)
        seen = of_process(service)
        log.warning("at rest process=%s host=%s", seen, host_wide())
        traces.append(at_rest)
        return seen

    traces: list[dict[str, list[str]]] = []
    # What is made once and kept, and what each tenant, minute and route of the metrics has one of, comes first.
    before, host_before = run(CYCLES // 5), host_wide()
    after = before
    for _ in range(4):
        after = run(CYCLES // 10)
    assert traces[-1] == traces[0]
    assert host_wide() == host_before
    assert after["threads"] <= before["threads"] + 2
    assert after["files"] <= before["files"] + 5
    kept = (after["memory"] - before["memory"]) / (4 * (CYCLES // 10) * CALLS_PER_CYCLE)
    assert kept < KEPT_BYTES, f"{kept:.0f} bytes of each call"
