"""The service's side of the built-in scanner: keeps the worker warm, hands it files, and believes nothing it says."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from builderd.adapters.scanners.tripwire.answers import Unbelievable, read_answer
from builderd.adapters.scanners.tripwire.toolbox import Toolbox
from builderd.adapters.scanners.tripwire.worker import OUT_OF_CPU, OUT_OF_MEMORY
from builderd.domain.bundles import Bundle
from builderd.domain.review_policies import ReviewLimits
from builderd.domain.sources import Kind, choose
from builderd.ports.scanners import NOTHING_RUN, Scan

_MODULE = "builderd.adapters.scanners.tripwire.worker"
_SOURCE = str(Path(__file__).parents[4])
#: Counts up when the own rules change, since reports are kept by it.
RULES = 3
#: Seconds for the worker to read its rules; and, past a review's limit, until the worker itself is given up.
START_SECONDS, GRACE_SECONDS = 60.0, 3.0
#: An answer longer than this is none.
MAX_ANSWER = 16 << 20
MAX_SCANS = 4
_SIGXCPU, _SIGKILL, _SIGABRT = 24, 9, 6

log = logging.getLogger(__name__)


class Broken(Exception):
    """The scan has no result; the message says why."""


class TripwireScanner:
    """One worker for all reviews, started at the first; another one should it end. ``find`` finds its tools."""

    def __init__(self, find: Callable[[], Toolbox]) -> None:
        self._find = find
        self._worker: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = threading.Lock()
        self._turns = asyncio.Semaphore(MAX_SCANS)

    @cached_property
    def _toolbox(self) -> Toolbox:
        """Looked for at the first need: what apps run on may be made while the service starts."""
        return self._find()

    @property
    def name(self) -> str:
        return f"tripwire {RULES} {json.dumps(dict(self._toolbox.versions), sort_keys=True)}"

    async def prepare(self) -> None:
        await asyncio.to_thread(self._warm)

    async def scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN) -> Scan:
        async with self._turns:
            return await asyncio.to_thread(self._scan, bundle, limits, run)

    async def close(self) -> None:
        await asyncio.to_thread(self._end)

    def _warm(self) -> None:
        with self._starting:
            if self._control is None:
                self._start()

    def _scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind]) -> Scan:
        try:
            answer, skipped = read_answer(self._ask(pack_sources(bundle, limits, run), limits), bundle)
        except (Broken, Unbelievable, OSError) as error:
            return Scan((), {}, (), self._toolbox.versions, failure=str(error))
        left_out = dict.fromkeys(skipped, "not on this machine, so left out")
        return Scan(
            answer.hits, answer.references, answer.hooks, {**self._toolbox.versions, **left_out}, answer.failure
        )

    def _ask(self, packed: bytes, limits: ReviewLimits) -> bytes:
        """The worker's answer. Raises ``Broken``."""
        files = _memory(packed)
        told, child_told = os.pipe2(os.O_CLOEXEC)
        ended, child_ended = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._send(json.dumps(asdict(limits)).encode(), [files, child_told, child_ended])
            finally:
                for descriptor in (files, child_told, child_ended):
                    os.close(descriptor)
            answer, end = _read_both(told, ended, limits.wall_seconds + GRACE_SECONDS)
        except TimeoutError:
            self._end()
            raise Broken(_late(limits)) from None
        finally:
            os.close(told)
            os.close(ended)
        _check_end(end, limits)
        return answer

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        for attempt in (1, 2):
            self._warm()
            control = self._control
            try:
                assert control is not None
                socket.send_fds(control, [packet], descriptors)
            except (OSError, AssertionError) as error:
                self._end()
                if attempt == 2:
                    raise Broken("the scanner's process does not answer") from error
            else:
                return

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._worker = subprocess.Popen(
                [
                    sys.executable,
                    "-s",
                    "-P",
                    "-m",
                    _MODULE,
                    str(theirs.fileno()),
                    json.dumps(asdict(self._toolbox.tools)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env={"PYTHONPATH": _SOURCE, "LANG": "C.UTF-8"},
            )
        ours.settimeout(START_SECONDS)
        try:
            word = ours.recv(4096)
        except OSError:
            word = b""
        if word != b"ready":
            ours.close()
            self._worker.kill()
            self._worker.wait()
            raise Broken(word.decode(errors="replace") or "the scanner's process did not start")
        ours.settimeout(START_SECONDS)
        self._control = ours

    def _end(self) -> None:
        with self._starting:
            control, worker = self._control, self._worker
            self._control = self._worker = None
            if control is not None:
                control.close()
            if worker is not None:
                worker.kill()
                worker.wait()


def pack_sources(bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind]) -> bytes:
    """What a worker is to read: an 8-byte length, a header in JSON with paths and sizes, then the contents.

    Data is left out, and so is what is over a limit: the service has judged that itself.
    """
    read = choose(bundle.files, limits, run).read
    files = [(file.path, kind.value, file.size) for file, kind in read]
    header = json.dumps({"files": files, "paths": [file.path for file in bundle.files]}).encode()
    return b"".join((len(header).to_bytes(8, "big"), header, *(file.content for file, _ in read)))


def _memory(content: bytes) -> int:
    descriptor = os.memfd_create("review", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_both(told: int, ended: int, seconds: float) -> tuple[bytes, Any]:
    """The answer, and how the child ended; raises ``TimeoutError`` or ``Broken``."""
    deadline = time.monotonic() + seconds
    read: dict[int, bytearray] = {told: bytearray(), ended: bytearray()}
    with selectors.DefaultSelector() as selector:
        for descriptor in read:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                read[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
                if len(read[key.fd]) > MAX_ANSWER:
                    raise Broken("the scanner's answer is too long to be believed")
    if not read[ended]:
        raise Broken("the scanner's process ended")
    return bytes(read[told]), json.loads(read[ended])


def _check_end(end: Mapping[str, Any], limits: ReviewLimits) -> None:
    status = end["status"]
    if end["late"]:
        raise Broken(_late(limits))
    memory, cpu = f"{limits.memory_bytes // 1_000_000} MB of memory", f"{limits.cpu_seconds} s of CPU time"
    if status == OUT_OF_MEMORY:
        raise Broken(f"the scanner needed more than {memory}")
    if status in (OUT_OF_CPU, 128 + _SIGXCPU):
        raise Broken(f"the scanner needed more than {cpu}")
    if status == 128 + _SIGKILL:
        raise Broken(f"the scanner was killed: it needed more than {memory} or {cpu}")
    if status > 128:
        raise Broken(f"the scanner crashed with signal {status - 128}")
    if status:
        raise Broken("the scanner failed")


def _late(limits: ReviewLimits) -> str:
    return f"the scanner did not finish within {limits.wall_seconds:g} s"
