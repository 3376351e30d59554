"""What many running builders cost on a cluster of Incus, whose members are on this machine (``script/incus-cluster``).

    script/bench cluster [--members N] [--builders 30,100,300] [--json FILE]

At each number of running builders: creates a second, CPU and memory at rest, and CPU and time of single calls. CPU time
is that of the processes named, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.acceptance.incus_members import ask
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import LiveService, body
from tests.incus import IncusCluster, running_cluster

#: Seconds of rest over which CPU time is counted.
REST_SECONDS = 40.0
ROUNDS = 5
CLOCK_TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")

#: A server of a few MB, in Perl of the base.
TINY = """\
use IO::Socket::INET;
my @at = (LocalAddr => "0.0.0.0", LocalPort => $ENV{PORT}, ReuseAddr => 1);
my $server = IO::Socket::INET->new(@at, Listen => 64) or die;
while (my $visitor = $server->accept) {
    while (defined(my $line = <$visitor>)) { last if $line =~ /^\\r?\\n/ }
    print $visitor "HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nhello";
    close $visitor;
}
"""
#: All is promised many times over: this is about what is used.
SETTINGS = {
    "BUILDERD_STORE__OVERCOMMIT": "100",
    "BUILDERD_CAPACITY__CPU": "1000",
    "BUILDERD_CAPACITY__MEMORY": "1000",
    "BUILDERD_RATES__REQUESTS": "0",
}


class Watched:
    """CPU seconds and resident memory of the service, and of the members' incusd with what they started."""

    def __init__(self, service: LiveService, cluster: IncusCluster) -> None:
        assert service.process is not None
        self._service = service.process.pid
        self._logs = [f"{cluster.folder}/node{path.name[4:]}/incusd.log" for path in cluster.folder.glob("node*/")]

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds so far of the service and of all incusd, ended children included."""
        return _cpu(self._service), sum(_cpu(pid) for pid in self._incusd())

    def memory(self) -> tuple[float, float]:
        """Return the resident MB of the service, and of all incusd."""
        return _memory(self._service), sum(_memory(pid) for pid in self._incusd())

    def _incusd(self) -> Sequence[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if words[0].endswith("/incusd") and any(log in words for log in self._logs):
                found.append(int(path.parent.name))
        return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / CLOCK_TICKS


def _memory(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def available() -> int:
    """Return MemAvailable in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def create(service: LiveService, number: int) -> dict[str, Any]:
    resources = {"cpu": 0.25, "memory": 0.125, "disk": 1}
    request = body(f"tiny-{number}", resources=resources, auto_stop_interval=0)
    request |= {"files": {"main.pl": TINY}, "entrypoint": "perl main.pl"}
    answer = service.call("POST", "/builders", json=request)
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def timed(watched: Watched, call: Callable[[], object]) -> dict[str, float]:
    """Return medians of a call: ms, and the ms of CPU that the service and all incusd had meanwhile."""
    rows = []
    for _ in range(ROUNDS):
        cpu, begun = watched.cpu(), time.perf_counter()
        call()
        seconds, after = time.perf_counter() - begun, watched.cpu()
        rows.append((seconds, after[0] - cpu[0], after[1] - cpu[1]))
    names = ("ms", "service CPU ms", "incusd CPU ms")
    return {
        name: round(statistics.median(values) * 1000, 1)
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def measure(service: LiveService, cluster: IncusCluster, made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a cluster with so many running builders."""
    watched = Watched(service, cluster)
    cpu, begun = watched.cpu(), time.monotonic()
    time.sleep(REST_SECONDS)
    rest = [
        round((after - before) / (time.monotonic() - begun) * 100, 1)
        for before, after in zip(cpu, watched.cpu(), strict=True)
    ]
    memory = [round(value) for value in watched.memory()]
    some = made[len(made) // 2]
    extra: list[dict[str, Any]] = []

    def one_more() -> None:
        extra.append(create(service, 100_000 + len(extra)))

    calls: dict[str, Callable[[], object]] = {
        "visit": lambda: service.visit(some),
        "list of builders, 100 a page": lambda: service.call("GET", "/builders?per_page=100"),
        "builder": lambda: service.call("GET", f"/builders/{some['uuid']}"),
        "create → 201": one_more,
        "exec": lambda: service.call("POST", f"/builders/{some['uuid']}/exec", json={"command": "true"}),
        "delete": lambda: service.call("DELETE", f"/builders/{extra.pop()['uuid']}"),
        "Incus: list of instances": lambda: ask(cluster, "instances?recursion=1"),
        "Incus: … with states": lambda: ask(cluster, "instances?recursion=2"),
        "Incus: list of volumes": lambda: ask(cluster, "storage-pools/default/volumes/custom?recursion=1"),
        "Incus: … names alone": lambda: ask(cluster, "storage-pools/default/volumes/custom"),
    }
    return {
        "at rest, % of one CPU (service, all incusd)": rest,
        "resident MB (service, all incusd)": memory,
        "calls": {name: timed(watched, call) for name, call in calls.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--builders", default="30,100,300")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with (
        running_cluster(options.members) as cluster,
        tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder,
        service_on(cluster, Path(folder) / "data", **SETTINGS) as service,
    ):
        made = [create(service, 0)]
        for wanted in map(int, options.builders.split(",")):
            before, begun, count = available(), time.perf_counter(), wanted - len(made)
            watched = Watched(service, cluster)
            cpu = watched.cpu()
            with ThreadPoolExecutor(4) as pool:
                made += pool.map(lambda number: create(service, number), range(len(made), wanted))
            seconds, after = time.perf_counter() - begun, watched.cpu()
            row = {
                "creates/s": round(count / seconds, 2),
                "CPU seconds of a create (service, all incusd)": [
                    round((now - then) / count, 2) for then, now in zip(cpu, after, strict=True)
                ],
                "MB of the machine for each": round((before - available()) / count / 1e6, 1),
                "answered": sum(service.visit(data).status_code == 200 for data in made),
                **measure(service, cluster, made),
            }
            result[str(wanted)] = row
            print(wanted, json.dumps(row, ensure_ascii=False), flush=True)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
