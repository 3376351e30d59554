"""What a user waits for on a cluster of Incus, beside the engine for one machine, in one run.

    script/bench incus [--rounds N] [--wakes N] [--visits N] [--json FILE]

A cluster of three members on this machine (script/incus-cluster) and a service in the network of its first; beside it a
service with this machine's own engine. They take turns. Medians in
milliseconds, over connections that are open already; a visit also has its p99.

"Another member": the app runs on a member that is not the service's, so that a visit goes from the service's HAProxy
over the members' network. "Plain": the app's own address, asked from the service's member without a proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from benchmarks.lifecycle import BARE, PYTHON, Clock, User, on_the_host
from benchmarks.wake import Visitor, percentile
from tests.acceptance.idling import make_idle
from tests.acceptance.incus_service import ask_incus, running_on
from tests.acceptance.live_service import LiveService, body, cold_service
from tests.incus import running_cluster

#: Seconds; short, so that there are many rounds.
IDLE = {"BUILDERD_IDLE__FREEZE_AFTER": "0.25", "BUILDERD_RATES__REQUESTS": "0"}
HERE, ELSEWHERE = "cluster, own member", "cluster, another member"
OWN, HOST = "one machine", "the host"

#: Keeps its connections, as an app does that is worth a proxy.
KEEPING = """\
import asyncio, os

async def answer(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", int(os.environ["PORT"]))
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Side:
    """A service, and the network in which its callers are."""

    name: str
    service: LiveService
    network: Callable[[], AbstractContextManager[object]]

    @contextlib.contextmanager
    def user(self) -> Iterator[User]:
        with self.network(), httpx.Client(timeout=60) as client:
            user = User(self.service, client)
            user.call("GET", "/builders/spending", 200)
            yield user


def life(clock: Clock, side: Side, name: str) -> None:
    """One builder from its creation to its end; it runs on the member that has the fewest."""
    with side.user() as user:
        request = body(f"bench-{time.monotonic_ns()}", BARE)
        with clock.time(f"{name}: create → 200"):
            data = user.call("POST", "/builders", 202, prefer="respond-async", json=request)
            user.wait_served(data)
        user.wait_judged(data)
        path = f"/builders/{data['uuid']}"
        check_member(user, data, name)
        for _ in range(3):
            with clock.time(f"{name}: exec"):
                user.call("POST", f"{path}/exec", 200, json={"command": "/bin/true"})
        with clock.time(f"{name}: stop"):
            user.call("POST", f"{path}/stop", 200)
        with clock.time(f"{name}: start → 200"):
            user.call("POST", f"{path}/start", 200)
            user.wait_served(data)
        with clock.time(f"{name}: delete"):
            user.call("DELETE", path, 200)


def check_member(user: User, data: dict[str, Any], name: str) -> None:
    """Raise ``AssertionError`` unless the builder runs where the figures say."""
    member = user.call("GET", f"/builders/{data['uuid']}", 200)["member"]
    assert (member == "node1") == (name == HERE), f"{name}: on {member}"


def wakes(clock: Clock, side: Side, name: str, count: int) -> None:
    """A frozen app and a stopped one, each woken by a visit."""
    with side.network():
        data = side.service.create(f"sleeps-{name.replace(', ', '-').replace(' ', '-')}", BARE, auto_stop_interval=10)
        visitor = Visitor(side.service, data)
        for _ in range(count):
            visitor.until_frozen()
            with clock.time(f"{name}: wake of a frozen app"):
                visitor.visit()
        for _ in range(max(1, count // 4)):
            make_idle(side.service, data)
            visitor.until_stopped()
            with clock.time(f"{name}: wake of a stopped app"):
                visitor.visit()
        side.service.call("DELETE", f"/builders/{data['uuid']}")


def visits(clock: Clock, targets: dict[str, tuple[Side, str, int, str]], count: int) -> None:
    """Visit each target (address, port and host) in turns, over connections that stay open."""
    connections = {}
    for name, (side, address, port, _) in targets.items():
        with side.network():
            connections[name] = http.client.HTTPConnection(address, port, timeout=60)
            connections[name].connect()
    for _ in range(count):
        for name, connection in connections.items():
            with clock.time(name):
                connection.request("GET", "/", headers={"Host": targets[name][3]})
                assert connection.getresponse().read() == b"ok"


def visit_targets(own: Side, cluster: Side) -> dict[str, tuple[Side, str, int, str]]:
    """Make apps that are visited: one on this machine's engine, one on each of two members."""
    targets: dict[str, tuple[Side, str, int, str]] = {}
    for side, name in ((own, OWN), (cluster, HERE), (cluster, ELSEWHERE)):
        with side.network():
            data = side.service.create(f"visited-{len(targets)}", KEEPING)
            host = data["preview_url"].split("/")[2]
            targets[f"{name}: visit"] = (side, "127.0.0.1", side.service.preview_port, host)
            if side is cluster:
                address, member = address_of_app(side.service, data["uuid"])
                assert (member == "node1") == (name == HERE)
                targets[f"{name}: visit, plain"] = (side, address, 8000, host)
    return targets


def address_of_app(service: LiveService, uuid: str) -> tuple[str, str]:
    """Return the address and the member of the builder's instance."""
    found = ask_incus(service, "instances?recursion=1")
    (one,) = [one for one in found if one["config"].get("user.builderd.builder") == uuid]
    return one["config"]["user.builderd.ip"], one["location"]


@contextlib.contextmanager
def both_sides() -> Iterator[tuple[Side, Side]]:
    """The engine for one machine, and a cluster whose three members have one builder each."""
    with (
        tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder,
        cold_service(Path(folder) / "own", **IDLE) as own,
        running_cluster(3) as cluster,
        running_on(cluster, Path(folder) / "data", **IDLE) as service,
    ):
        sides = Side(OWN, own, contextlib.nullcontext), Side("cluster", service, cluster.network_of)
        own.create("warm-up")
        with cluster.network_of():
            # The image is unpacked on a member before its first instance there.
            for number in range(3):
                service.create(f"fill-{number}")
        yield sides


def measure(rounds: int, woken: int, visited: int) -> Clock:
    clock = Clock()
    with both_sides() as (own, cluster):
        for name in (HERE, ELSEWHERE):
            if name == ELSEWHERE:
                # One more on the first member: what is made now goes to another.
                with cluster.network():
                    cluster.service.create("fill-own")
            for _ in range(rounds):
                on_the_host(clock, f"{HOST}: start → 200", BARE, PYTHON)
                life(clock, own, OWN)
                life(clock, cluster, name)
            wakes(clock, cluster, name, woken)
        wakes(clock, own, OWN, woken)
        with cluster.network():
            (extra,) = cluster.service.call("GET", "/builders?name=fill-own").json()["data"]
            cluster.service.call("DELETE", f"/builders/{extra['uuid']}")
        visits(clock, visit_targets(own, cluster), visited)
    return clock


def table(samples: dict[str, list[float]]) -> str:
    """Rows by what was done, columns by where."""
    done = list(dict.fromkeys(name.partition(": ")[2] for name in samples if not name.startswith(HOST)))
    lines = [f"| ms | {OWN} | {HERE} | {ELSEWHERE} |", "|---|---|---|---|"]
    for what in done:
        cells = [_cell(samples.get(f"{where}: {what}"), what) for where in (OWN, HERE, ELSEWHERE)]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    host = statistics.median(samples[f"{HOST}: start → 200"])
    return "\n".join([*lines, "", f"The same app as a plain process of the host: {host:.1f} ms to its first answer."])


def _cell(times: list[float] | None, what: str) -> str:
    if not times:
        return ""
    p99 = f" (p99 {percentile(times, 99):.2f})" if what.startswith("visit") else ""
    return f"{statistics.median(times):.{2 if p99 else 1}f}{p99}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--wakes", type=int, default=20)
    parser.add_argument("--visits", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    begun = time.monotonic()
    clock = measure(options.rounds, options.wakes, options.visits)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}; {time.monotonic() - begun:.0f} s")
    print(table(clock.samples))
    if options.json:
        options.json.write_text(json.dumps(clock.samples, indent=1))


if __name__ == "__main__":
    main()
