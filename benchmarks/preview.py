"""What the preview costs: beside a hand-tuned static nginx in front of the same app, and the app itself, in one run.

    python benchmarks/preview.py [--rounds 5] [--seconds 3] [--connections 1 8 64] [--json FILE]

Needs haproxy, nginx and wrk. They take turns, so that what else the machine does meets them alike; each figure is the
median of the rounds, each ratio the median of the rounds' ratios. Everything stays on 127.0.0.1.

The app is a few lines on uvloop, about as fast as Python gets: the faster the app, the more the proxy shows. The
preview does all that it does in production (routes from a map of thousands, token check, counters, forwarded headers);
the nginx has one app written into its configuration, and so has a HAProxy without a single rule, which tells how much
of what the preview costs is its rules.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvloop

from builderd.previews.haproxy.options import ProxyOptions
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.model import Address, Route, RouteState

HOST = "app-1a2b3c4d.localhost"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n" + b"x" * 128
#: Goals: at 64 connections, throughput and p99 beside nginx's; a route's appearance, in milliseconds.
GOAL_CONNECTIONS, GOAL_THROUGHPUT, GOAL_APPEARANCE = 64, 0.95, 2.0
MANY_ROUTES = 10_000
APPEARANCES = 300

NGINX = """
worker_processes auto; daemon off; error_log stderr crit; pid nginx.pid; worker_rlimit_nofile 8192;
events {{ worker_connections 4000; multi_accept on; }}
http {{
  access_log off; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 100000000;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  upstream app {{ server 127.0.0.1:{app}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    server_name {host};
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
    }}
  }}
}}
"""

RULELESS = """
global
  maxconn 8000
  noreuseport
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend visitors
  bind 127.0.0.1:{port}
  default_backend app
backend app
  http-reuse always
  server app 127.0.0.1:{app} pool-low-conn 10000
"""


@dataclass(frozen=True, slots=True)
class Target:
    """``processes`` are those whose CPU time is counted; None for the app itself."""

    name: str
    port: int
    processes: Callable[[], list[int]] | None


@dataclass(frozen=True, slots=True)
class Reading:
    requests_per_second: float
    p99_ms: float
    cpu_us: float | None


def measure(rounds: int = 5, seconds: int = 3, connections: tuple[int, ...] = (1, 8, 64)) -> dict[str, Any]:
    """All figures; the shape is that of the JSON file."""
    for program in ("haproxy", "nginx", "wrk"):
        if not _which(program):
            raise SystemExit(f"this benchmark needs {program}: script/setup --bench installs it")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, asyncio.Runner() as runner, _app() as app:
        place = Path(directory)
        previews, port = _start_previews(runner, place / "p")
        try:
            return _measure(runner, previews, port, app, place, rounds, seconds, connections)
        finally:
            runner.run(previews.down())


def _measure(
    runner: asyncio.Runner,
    previews: HaproxyPreviews,
    port: int,
    app: int,
    place: Path,
    rounds: int,
    seconds: int,
    connections: tuple[int, ...],
) -> dict[str, Any]:
    address = Address("127.0.0.1", app)
    appears = {1: runner.run(_appearance(previews, port, address))}
    runner.run(_fill(previews, MANY_ROUTES))
    appears[MANY_ROUTES] = runner.run(_appearance(previews, port, address))
    runner.run(previews.put(Route(HOST, RouteState.OPEN, address)))
    pid_file = place / "p" / "haproxy.pid"
    with _nginx(place, app) as (nginx_port, nginx), _ruleless(place, app) as (ruleless_port, ruleless):
        targets = (
            Target("direct", app, None),
            Target("nginx", nginx_port, lambda: _family(nginx)),
            Target("haproxy", ruleless_port, lambda: [ruleless]),
            Target("preview", port, lambda: _family(int(pid_file.read_text()))),
        )
        throughput = {count: _compare(targets, count, rounds, seconds) for count in connections}
    return {"throughput": throughput, "route_appears_ms": appears, "rounds": rounds, "seconds": seconds}


# Throughput


def _compare(targets: tuple[Target, ...], connections: int, rounds: int, seconds: int) -> dict[str, Any]:
    readings: dict[str, list[Reading]] = {target.name: [] for target in targets}
    for number in range(rounds):
        turn = number % len(targets)
        for target in (*targets[turn:], *targets[:turn]):
            readings[target.name].append(_load(target, connections, seconds))
    result: dict[str, Any] = {name: _median(of) for name, of in readings.items()}
    for name in ("haproxy", "preview"):
        pairs = list(zip(readings[name], readings["nginx"], strict=True))
        result[f"{name}_to_nginx"] = {
            "throughput": _rounded(statistics.median(a.requests_per_second / b.requests_per_second for a, b in pairs)),
            "p99": _rounded(statistics.median(a.p99_ms / b.p99_ms for a, b in pairs)),
            "cpu": _rounded(statistics.median((a.cpu_us or 0) / (b.cpu_us or 1) for a, b in pairs)),
        }
    return result


def _median(readings: list[Reading]) -> dict[str, float | None]:
    cpu = [one.cpu_us for one in readings if one.cpu_us is not None]
    return {
        "requests_per_second": round(statistics.median(one.requests_per_second for one in readings)),
        "p99_ms": _rounded(statistics.median(one.p99_ms for one in readings)),
        "cpu_us_per_request": _rounded(statistics.median(cpu)) if cpu else None,
    }


def _load(target: Target, connections: int, seconds: int) -> Reading:
    before = _cpu(target)
    argv = ["wrk", f"-t{min(2, connections)}", f"-c{connections}", f"-d{seconds}", "--latency", "-H", f"Host: {HOST}"]
    argv.append(f"http://127.0.0.1:{target.port}/")
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    spent = _cpu(target) - before
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"requests to {target.name} failed:\n{told}")
    count, rate, p99 = _read(told)
    return Reading(rate, p99, spent / count * 1e6 if target.processes else None)


def _read(told: str) -> tuple[int, float, float]:
    """Requests, requests a second, and milliseconds, of what wrk prints."""
    count = re.search(r"(\d+) requests in", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", told)
    if not (count and rate and p99):
        raise SystemExit(f"wrk says what is not understood:\n{told}")
    return int(count[1]), float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]]


def _cpu(target: Target) -> float:
    """Seconds of CPU time that the target's processes have used."""
    return sum(_cpu_of(pid) for pid in target.processes()) if target.processes else 0.0


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _family(parent: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


# Appearance


async def _appearance(previews: HaproxyPreviews, port: int, address: Address) -> dict[str, float]:
    """From the decision to open a route until its first 200, over a new connection, with no pause in between."""
    spans = []
    for number in range(APPEARANCES):
        route = Route(f"new-{number}.localhost", RouteState.OPEN, address)
        start = time.perf_counter()
        await previews.put(route)
        answer = _first_answer(port, route.host)
        spans.append((time.perf_counter() - start) * 1000)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        await previews.remove(route.host)
    spans.sort()
    return {"median": _rounded(statistics.median(spans)), "p99": _rounded(spans[int(len(spans) * 0.99)])}


def _first_answer(port: int, host: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return connection.recv(4096)


async def _fill(previews: HaproxyPreviews, count: int) -> None:
    for number in range(count):
        await previews.put(Route(f"n{number}.localhost", RouteState.OPEN, Address("127.0.0.1", 9)))


# What runs


def _start_previews(runner: asyncio.Runner, directory: Path) -> tuple[HaproxyPreviews, int]:
    port = _free_port()
    previews = HaproxyPreviews(directory, ProxyOptions(port=port))
    runner.run(previews.start())
    return previews, port


def _nginx(place: Path, app: int) -> contextlib.AbstractContextManager[tuple[int, int]]:
    port = _free_port()
    (place / "nginx.conf").write_text(NGINX.format(app=app, port=port, host=HOST))
    return _beside(port, _which("nginx") or "nginx", "-p", str(place), "-c", "nginx.conf")


def _ruleless(place: Path, app: int) -> contextlib.AbstractContextManager[tuple[int, int]]:
    port = _free_port()
    (place / "ruleless.cfg").write_text(RULELESS.format(app=app, port=port))
    return _beside(port, _which("haproxy") or "haproxy", "-db", "-f", str(place / "ruleless.cfg"))


@contextlib.contextmanager
def _beside(port: int, *argv: str) -> Iterator[tuple[int, int]]:
    """Its port and its process id."""
    # A session of its own, as the preview has: the kernel shares out time by session.
    with subprocess.Popen(argv, start_new_session=True) as process:
        try:
            _await_listening(port)
            yield port, process.pid
        finally:
            process.terminate()


@contextlib.contextmanager
def _app() -> Iterator[int]:
    port = _free_port()
    with subprocess.Popen((sys.executable, __file__, "--app", str(port))) as process:
        try:
            _await_listening(port)
            yield port
        finally:
            process.send_signal(signal.SIGKILL)


class App(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER * data.count(b"\r\n\r\n"))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(App, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def _await_listening(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing listens on port {port}")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


# What is told


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"{'connections':>11}  {'':8}{'requests/s':>11}{'p99 ms':>9}{'CPU µs':>8}   beside nginx: throughput, p99, CPU"
    ]
    for connections, row in figures["throughput"].items():
        for name in ("direct", "nginx", "haproxy", "preview"):
            one = row[name]
            cpu = one["cpu_us_per_request"]
            line = f"{connections:>11}  {name:8}{one['requests_per_second']:>11,}{one['p99_ms']:>9}{cpu or '':>8}"
            if ratio := row.get(f"{name}_to_nginx"):
                line += f"   {ratio['throughput']:.2f}, {ratio['p99']:.2f}, {ratio['cpu']:.2f}"
            lines.append(line)
    lines.append("")
    for routes, span in figures["route_appears_ms"].items():
        lines.append(f"a route appears in {span['median']} ms (p99 {span['p99']}) among {routes:,} routes")
    lines += ["", *verdicts(figures)]
    return "\n".join(lines)


def verdicts(figures: dict[str, Any]) -> list[str]:
    slowest = max(span["median"] for span in figures["route_appears_ms"].values())
    told = [(f"a route appears within {GOAL_APPEARANCE:.0f} ms", slowest <= GOAL_APPEARANCE)]
    if row := figures["throughput"].get(GOAL_CONNECTIONS):
        ratio, at = row["preview_to_nginx"], f"at {GOAL_CONNECTIONS} connections"
        told.append((f"throughput {at} at least {GOAL_THROUGHPUT} of nginx's", ratio["throughput"] >= GOAL_THROUGHPUT))
        told.append((f"p99 {at} no worse than nginx's", ratio["p99"] <= 1.0))
    return [f"{'met    ' if met else 'NOT MET'}  {goal}" for goal, met in told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--app", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.app:
        uvloop.run(_serve(given.app))
        return
    figures = measure(given.rounds, given.seconds, tuple(given.connections))
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
