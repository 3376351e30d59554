"""A machine without memory: the app that takes it is killed and started again; service, proxy and neighbours go on.

The parent of all sandboxes' memory groups stands in for a small machine: the service's own processes move into it.
"""

from __future__ import annotations

import base64
import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService
from tests.acceptance.test_killed_monitors import events_of, monitors
from tests.small_memory import limited_memory

from builderd.engine.oci.network.allocations import known_instance
from builderd.engine.oci.runtime.cgroups import ROOT, Cgroups

pytestmark = pytest.mark.root

MB = 1 << 20
#: What is left to the apps of the small machine; the one that takes more may have 1 GB of its service.
LEFT = 200 * MB
HOG = TINY_APP.replace(
    "    def do_GET(self):\n",
    "    def do_GET(self):\n        if 'take' in self.path:\n            kept.append(b'x' * (600 << 20))\n",
).replace("class App", "kept = []\n\nclass App")
APPS, REVIEWS = 500, 1000
CAP_SYS_RESOURCE = 24


def processes(service: LiveService) -> Mapping[int, str]:
    """Return the command lines of the service's processes on the host, by their ids, without what is in sandboxes."""
    assert service.process is not None
    found = {service.process.pid: "service"}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (str(service.data_dir) in line or parent == service.process.pid) and int(folder.name) not in found:
                found[int(folder.name)] = line
    return found


def has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> number & 1)


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_apps_are_killed_for_memory_before_what_serves_them(service: LiveService) -> None:
    app = service.create("scored")
    try:
        inside = service.call(
            "POST", f"/builders/{app['uuid']}/exec", json={"command": "cat /proc/[0-9]*/oom_score_adj | sort -u"}
        ).json()["data"]
        assert inside["output"].split() == [str(APPS)]
        lowered = service.call(
            "POST", f"/builders/{app['uuid']}/exec", json={"command": "echo 0 > /proc/self/oom_score_adj"}
        ).json()["data"]
        # The kernel takes the score as the least one only from a process with this capability, as the host's root has.
        assert (lowered["exit_code"] != 0) == has_capability(CAP_SYS_RESOURCE)
        scores = {name: score(pid) for pid, name in processes(service).items() if Path(f"/proc/{pid}").exists()}
        assert {"service", "haproxy", "conmon", "launcher"} <= {
            word for word in ("service", "haproxy", "conmon", "launcher") for name in scores if word in name
        }
        too_late = {name: value for name, value in scores.items() if value > 0 and value != REVIEWS}
        assert not too_late, "nothing that serves apps is killed as early as they are"
    finally:
        service.call("DELETE", f"/builders/{app['uuid']}")


def test_creates_of_much_code_at_once_cost_the_service_little_memory(service: LiveService) -> None:
    """Two of 19 MB grew it from 174 to 510 MB, and it kept 373."""

    def memory(field: str) -> int:
        assert service.process is not None
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) >> 10

    def create(number: int) -> None:
        content = base64.b64encode(random.Random(number).randbytes(12_000_000)).decode()
        files = {"main.py": TINY_APP, "data": {"content": content, "encoding": "base64"}}
        with service.deployed(f"large-{number}", files, "python3 main.py", port=8000) as app:
            assert service.visit(app).text == "hello"

    assert service.process is not None
    create(0)  # what is made once and kept is there
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")  # the most from here on; see proc(5)
    before = memory("VmRSS:")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(create, range(1, 3)))
    assert memory("VmHWM:") < before + 60


@contextlib.contextmanager
def small_machine(service: LiveService) -> Iterator[Path]:
    """Limit the memory of the service and all its sandboxes together to what they have now, and ``LEFT``."""
    instance = known_instance(service.data_dir)
    assert instance
    cgroups = Cgroups(instance.id)
    group = ROOT / ("memory" if cgroups.version == 1 else "") / cgroups.parent.lstrip("/")
    used = {1: "memory.usage_in_bytes", 2: "memory.current"}[cgroups.version]
    # Version 2 has processes in leaves alone: there the service stays outside.
    inside = processes(service) if cgroups.version == 1 else {}
    for pid in inside:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))
    try:
        with limited_memory(group, cgroups.version, int((group / used).read_text()) + LEFT):
            yield group
    finally:
        for pid in processes(service) if cgroups.version == 1 else ():
            with contextlib.suppress(ProcessLookupError):
                (ROOT / "memory/cgroup.procs").write_text(str(pid))


def test_app_that_takes_the_machines_memory_is_killed_and_its_neighbour_is_served(service: LiveService) -> None:
    with contextlib.ExitStack() as stack:
        made = {}
        for name, code in (("neighbour", TINY_APP), ("hog", HOG)):
            made[name] = service.create(name, code, resources={"memory": 1})
            stack.callback(service.call, "DELETE", f"/builders/{made[name]['uuid']}")
        hog, neighbour = made["hog"], made["neighbour"]
        vital = {pid for pid, line in processes(service).items() if "conmon" not in line and score(pid) <= 0}
        watched = monitors(service)
        with small_machine(service):
            service.visit(hog, path="/take")
            deadline = time.monotonic() + PATIENCE
            while not (ended := events_of(service, hog, "sandbox.ended")):
                assert time.monotonic() < deadline, service.log_tail()
                time.sleep(0.05)
            assert ended[0]["details"]["cause"] == "host_out_of_memory"
            assert service.visit(neighbour).text == "hello"
            service.wait_served(hog)
        assert vital <= processes(service).keys()
        assert events_of(service, neighbour, "builder.restarting") == []
        assert len(watched.keys() - monitors(service).keys()) == 1, "the hog's monitor alone has ended"
        assert "out of memory" in service.builder(hog["uuid"])["status_reason"]
