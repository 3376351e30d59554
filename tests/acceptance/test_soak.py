"""Many cycles of a builder's life leave nothing behind on the host."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.acceptance.host_traces import assert_traces, traces_at_rest
from tests.acceptance.live_service import LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine

CYCLES = int(os.environ.get("BUILDERD_SOAK_CYCLES", "1000"))


def host_wide() -> dict[str, int]:
    """Counts of the whole host, which also catch what does not bear the instance's name."""
    return {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": len(list(Path("/sys/class/net").iterdir())),
        "loops": sum(1 for loop in Path("/sys/block").glob("loop*") if (loop / "loop/backing_file").exists()),
        "cgroups": sum(1 for _ in os.walk("/sys/fs/cgroup")),
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
