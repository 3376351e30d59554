"""A service with many stored builders, and what one turn of it measures."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
from benchmarks.cpu import of_threads, until_idle
from benchmarks.lifecycle import BARE, User
from benchmarks.scale.figures import Row, medians
from benchmarks.scale.rows import copy_builder
from tests.acceptance.live_service import LiveService, body
from tests.postgres import PostgresServer

#: Seconds after readiness in which the service's CPU time is counted.
CPU_SPAN = 30.0
#: Calls of a turn: starts, creates and those of spending; lists.
CALLS, LISTS = 3, 50
#: For the background jobs that follow a call (they look 0.1 s after it).
SETTLE_SECONDS = 0.3
#: Calls that are not counted: psycopg prepares a statement at its sixth execution on a connection.
WARM_CALLS = 6
LIST = "/api/v1/builders?per_page=100"
#: Seconds in which the CPU time of services without calls is counted.
IDLE_SPAN = 10.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Subject:
    """One service, its user, and what was measured: alone in ``alone``, in turns by name and round in ``rounds``."""

    def __init__(self, service: LiveService, client: httpx.Client, made: Row, backends: Backends | None) -> None:
        self.service = service
        self.alone: Row = {}
        self.rounds: defaultdict[str, list[float]] = defaultdict(list)
        self._user = User(service, client)
        self._made = made
        self._backends = backends
        self._lists: list[float] = []

    def measure_alone(self) -> None:
        """Measure what the start of the service costs; the service has ended afterwards."""
        begun = time.monotonic()
        self.service.start()
        ready, before = time.monotonic(), cpu_seconds(self.service)
        first = self._create() / 1000
        time.sleep(max(ready + CPU_SPAN - time.monotonic(), 0))
        spent = cpu_seconds(self.service) - before
        self.service.terminate()
        self.alone |= {"service start, s": ready - begun, "CPU of start, s": before}
        self.alone |= {"first create, s": first, "CPU in 30 s, s": spent}

    def warm_up(self) -> None:
        """Start the service, and call it until the database's driver has prepared the statements of the calls."""
        self.service.start()
        for _ in range(WARM_CALLS):
            self._start_and_visit()
            self._create()
        self._settle()

    def take_turn(self) -> None:
        """Measure each kind of call several times, one after the other.

        Another service's turn has taken the processor's caches from this one: first calls are not counted.
        """
        found: Row = {}
        self._start_and_visit()
        self._create()
        self._settle()
        with self._cpu(found, "start and stop", CALLS):
            found["start, ms"] = statistics.median(self._start_and_visit() for _ in range(CALLS))
        with self._cpu(found, "create and delete", CALLS):
            found["create, ms"] = statistics.median(self._create() for _ in range(CALLS))
        with self._cpu(found, "spending", CALLS):
            spending = spans(CALLS, lambda: self._user.call("GET", "/builders/spending", 200))
            found["spending, ms"] = statistics.median(spending)
        with RawClient(self.service) as raw:
            spans(WARM_CALLS, lambda: raw.get(LIST))
            with self._cpu(found, "list", LISTS):
                self._lists += spans(LISTS, lambda: raw.get(LIST))
        for name, value in found.items():
            self.rounds[name].append(value)

    def figures(self) -> Row:
        listed = sorted(self._lists)
        lists = {"list, p50 ms": listed[len(listed) // 2], "list, p99 ms": listed[len(listed) * 99 // 100 - 1]}
        return {**self.alone, **medians(self.rounds), **lists, "rounds": dict(self.rounds)}

    def _settle(self) -> float:
        """Wait for the jobs that follow a call; return the milliseconds of CPU that the service has used."""
        assert self.service.process
        time.sleep(SETTLE_SECONDS)
        return until_idle(self.service.process.pid)

    @contextmanager
    def _cpu(self, found: Row, name: str, number: int) -> Iterator[None]:
        """Note the CPU time of each of so many calls, what its background jobs took meanwhile included."""
        assert self.service.process
        before, of_server = of_threads(self.service.process.pid), self._backends.cpu() if self._backends else 0.0
        yield
        found[f"{name}, CPU ms"] = (self._settle() - before) / number
        if self._backends:
            found[f"{name}, CPU ms of the database's server"] = (self._backends.cpu() - of_server) / number

    def _create(self) -> float:
        """Return the milliseconds of a create call; then delete the builder."""
        begun = time.perf_counter()
        data = self._user.call("POST", "/builders", 201, json=body("more", BARE))
        spent = 1000 * (time.perf_counter() - begun)
        self._user.call("DELETE", f"/builders/{data['uuid']}", 200)
        return spent

    def _start_and_visit(self) -> float:
        """Return the milliseconds from the start call to the app's first answer; then stop the app."""
        begun = time.perf_counter()
        self._user.call("POST", f"/builders/{self._made['uuid']}/start", 200)
        self._user.wait_served(self._made)
        spent = 1000 * (time.perf_counter() - begun)
        self._user.call("POST", f"/builders/{self._made['uuid']}/stop", 200)
        return spent


@contextmanager
def prepared(number: int, server: PostgresServer | None) -> Iterator[Subject]:
    """Yield a service that has ended, with its own folder and database and so many stopped builders in it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bd-scale-", dir="/var/tmp")))
        folder.chmod(0o755)
        database = stack.enter_context(server.database() if server else nullcontext())
        service = LiveService(folder / "data", {"BUILDERD_DATABASE_URL": database} if database else {})
        stack.callback(service.down)
        service.start()
        client = stack.enter_context(httpx.Client(timeout=60))
        user = User(service, client)
        made = user.call("POST", "/builders", 201, json=body("first", BARE))
        user.call("POST", f"/builders/{made['uuid']}/stop", 200)
        service.terminate()
        copy_builder(database or f"sqlite:///{folder}/data/builderd.db", number)
        # Puts the routes of the copies, once: the proxy keeps them from here on.
        service.start()
        service.terminate()
        yield Subject(service, client, made, stack.enter_context(Backends(database)) if database else None)


def idle_cpu(subjects: list[Subject]) -> list[float]:
    """Return the seconds of CPU that each service uses in a span without calls, all at the same time."""
    before = [cpu_seconds(one.service) for one in subjects]
    time.sleep(IDLE_SPAN)
    return [cpu_seconds(one.service) - used for one, used in zip(subjects, before, strict=True)]


class Backends:
    """The processes of PostgreSQL's server that work for one database."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def cpu(self) -> float:
        """Return their milliseconds so far, without this connection's; those of a closed connection are lost."""
        found = self._connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return sum(of_threads(pid) for (pid,) in found)


class RawClient:
    """Client on one connection that only receives, so that a percentile is not that of a client's own work.

    httpx takes 1.2 ms of CPU to read a list of a hundred, this client 0.1: neither is time of the service.
    """

    def __init__(self, service: LiveService) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=60)
        self._head = f"HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.token}\r\n\r\n"
        self._buffer = bytearray(1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> None:
        """Receive the whole answer, which must be a 200 with a Content-Length."""
        self._socket.sendall(f"GET {path} {self._head}".encode())
        room, received, whole = memoryview(self._buffer), 0, len(self._buffer)
        while received < whole:
            more = self._socket.recv_into(room[received:])
            assert more, "the connection was closed within an answer"
            received += more
            if whole == len(self._buffer) and (end := self._buffer.find(b"\r\n\r\n", 0, received)) >= 0:
                head = bytes(self._buffer[:end]).lower()
                assert head.startswith(b"http/1.1 200"), head
                whole = end + 4 + int(head.partition(b"content-length:")[2].split()[0])


def spans(number: int, call: Callable[[], Any]) -> list[float]:
    """Return the milliseconds of each call, sorted."""
    found = []
    for _ in range(number):
        begun = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - begun))
    return sorted(found)


def cpu_seconds(service: LiveService) -> float:
    """Return the CPU time of the service's own process (proc(5), utime and stime)."""
    assert service.process is not None
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
