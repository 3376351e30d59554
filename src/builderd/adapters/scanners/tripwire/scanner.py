"""The service's side of the built-in scanner: finds the tools, keeps the worker warm, and validates its answers.

The answers are untrusted: a scanned file may have taken the worker over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from builderd.adapters.scanners.tripwire.analysis import Tools
from builderd.adapters.scanners.tripwire.worker import (
    OUT_OF_CPU,
    OUT_OF_MEMORY,
    TOOL_KILLED,
    TOOL_LATE,
    UNCONFINED,
)
from builderd.domain.bundles import Bundle
from builderd.domain.errors import helper_died, machine_fault
from builderd.domain.reviews import MB, Hit, ReviewLimits
from builderd.domain.sources import Kind, References, select_files
from builderd.ports.scanners import NOTHING_RUN, Scan

_MODULE = "builderd.adapters.scanners.tripwire.worker"
_SOURCE = str(Path(__file__).parents[4])
#: Counts up when the own rules change, since reports are kept by it.
RULES = 7
#: Seconds for the worker to read its rules; and, past a review's limit, until the worker itself is given up.
START_SECONDS, GRACE_SECONDS = 60.0, 3.0
#: An answer longer than this is none.
MAX_ANSWER = 16 << 20
MAX_SCANS = 4
#: Of these, scans of bundles with 1 MB of code or more, which take up to three times as long.
MAX_LARGE_SCANS = 2
_SIGXCPU, _SIGKILL = 24, 9
#: A scan whose process is killed is begun again so many times.
RETRIES = 1

log = logging.getLogger(__name__)


class Broken(Exception):
    """The scan has no result because of its input; the message says why."""


class Died(Exception):
    """The scan has no result because of the machine: the worker was killed, or cannot be started."""


class Late(Exception):
    """The scan ran out of time before its limit of CPU time. Code that needs too much CPU reaches that limit first."""


class TripwireScanner:
    """One worker for all reviews, started at the first; another one should it end. ``find`` finds its tools."""

    def __init__(self, find: Callable[[], Toolbox]) -> None:
        self._find = find
        self._worker: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = threading.Lock()
        self._limit = asyncio.Semaphore(MAX_SCANS)
        self._large_limit = asyncio.Semaphore(MAX_LARGE_SCANS)
        #: Its own: a scan may take minutes, and all other work shares the few threads of the event loop.
        self._threads = ThreadPoolExecutor(MAX_SCANS, "reviews")

    @cached_property
    def _toolbox(self) -> Toolbox:
        """Found at the first use: the base image may be built while the service starts."""
        return self._find()

    @property
    def name(self) -> str:
        return f"tripwire {RULES} {json.dumps(dict(self._toolbox.versions), sort_keys=True)}"

    async def prepare(self) -> None:
        try:
            await asyncio.to_thread(self._warm)
        except (Died, OSError) as error:
            raise machine_fault(error) or helper_died("the review's scanner", str(error)) from error

    async def scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN) -> Scan:
        is_large = await _reads_much(bundle, limits, run)
        with ExitStack() as places:
            for limit in (self._large_limit, self._limit) if is_large else (self._limit,):
                await limit.acquire()
                places.callback(limit.release)
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._scan, bundle, limits, run)
            held = places.pop_all()
            # Held until the thread is done, also when the caller is cancelled.
            running.add_done_callback(lambda _: held.close())
        return await asyncio.shield(running)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._end)

    def _warm(self) -> socket.socket:
        with self._starting:
            if self._control is None:
                self._control = self._start()
            return self._control

    def _scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind]) -> Scan:
        try:
            packed = pack_sources(bundle, limits, run)
            answer, skipped = read_answer(self._ask_with_retry(packed, limits), bundle)
        except (Broken, Unbelievable) as error:
            return Scan((), {}, (), self._toolbox.versions, failure=str(error))
        except (Died, Late, OSError) as error:
            log.warning("review scanner failed error=%s", error)
            raise machine_fault(error) or helper_died("the review's scanner", str(error)) from error
        left_out = dict.fromkeys(skipped, "not on this machine, so left out")
        return Scan(
            answer.hits, answer.references, answer.hooks, {**self._toolbox.versions, **left_out}, answer.failure
        )

    def _ask_with_retry(self, packed: Packed, limits: ReviewLimits) -> bytes:
        """The worker's answer, of another worker where one was killed. Raises as ``_ask``."""
        for _ in range(RETRIES):
            try:
                return self._ask(packed, limits)
            except Died as error:
                log.warning("review scanner died, retrying error=%s", error)
        return self._ask(packed, limits)

    def _ask(self, packed: Packed, limits: ReviewLimits) -> bytes:
        """The worker's answer. Raises ``Broken``, ``Died``, ``Late`` or ``OSError``."""
        limits = limits.for_size(packed.read_bytes)
        files = _memory(packed.content)
        report, child_report = os.pipe2(os.O_CLOEXEC)
        ended, child_ended = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                control = self._send(json.dumps(asdict(limits)).encode(), [files, child_report, child_ended])
            finally:
                for descriptor in (files, child_report, child_ended):
                    os.close(descriptor)
            answer, end = _read_both(report, ended, limits.wall_seconds + GRACE_SECONDS)
        except TimeoutError:
            # It is the worker who ends what is late, and says so: this one hangs.
            self._end(control)
            raise Died("did not answer in time") from None
        finally:
            os.close(report)
            os.close(ended)
        _check_end(end, limits)
        return answer

    def _send(self, packet: bytes, descriptors: list[int]) -> socket.socket:
        """The worker's socket, over which it was sent. One that was killed is replaced."""
        for attempt in (1, 2):
            control = self._warm()
            try:
                socket.send_fds(control, [packet], descriptors)
            except OSError as error:
                self._end(control)
                if attempt == 2:
                    raise Died("does not answer") from error
            else:
                return control
        raise AssertionError("unreachable")

    def _start(self) -> socket.socket:
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
            self._worker = None
            raise Died(word.decode(errors="replace") or "did not start")
        return ours

    def _end(self, failed: socket.socket | None = None) -> None:
        """End the worker; with ``failed`` only while that is its socket, since another scan may have replaced it."""
        with self._starting:
            control, worker = self._control, self._worker
            if failed is not None and control is not failed:
                return
            self._control = self._worker = None
            if control is not None:
                control.close()
            if worker is not None:
                worker.kill()
                worker.wait()


async def _reads_much(bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind]) -> bool:
    """Return True if a review reads 1 MB or more of the bundle, which has more time for it."""
    if sum(file.size for file in bundle.files) < MB:
        return False
    read = (await asyncio.to_thread(select_files, bundle.files, limits, run)).read
    return sum(file.size for file, _ in read) >= MB


class Packed(NamedTuple):
    """Files of a review, ``read_bytes`` in sum."""

    content: bytes
    read_bytes: int


def pack_sources(bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind]) -> Packed:
    """Pack files for a worker: an 8-byte length, a JSON header with paths and sizes, then the contents.

    Data files and files over a limit are left out: the service judges those itself.
    """
    read = select_files(bundle.files, limits, run).read
    files = [(file.path, kind.value, file.size) for file, kind in read]
    header = json.dumps({"files": files, "paths": [file.path for file in bundle.files]}).encode()
    content = b"".join((len(header).to_bytes(8, "big"), header, *(file.content for file, _ in read)))
    return Packed(content, sum(file.size for file, _ in read))


def _memory(content: bytes) -> int:
    descriptor = os.memfd_create("review", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_both(report: int, ended: int, seconds: float) -> tuple[bytes, Any]:
    """The answer, and how the child ended; raises ``TimeoutError``, ``Broken`` or ``Died``."""
    deadline = time.monotonic() + seconds
    read: dict[int, bytearray] = {report: bytearray(), ended: bytearray()}
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
        raise Died("was killed")
    return bytes(read[report]), json.loads(read[ended])


def _check_end(end: Mapping[str, Any], limits: ReviewLimits) -> None:
    status = end["status"]
    if end["late"] or status == TOOL_LATE:
        raise Late(f"did not finish within {limits.wall_seconds:g} s, since the machine is overloaded")
    memory, cpu = f"{limits.memory_bytes // 1_000_000} MB of memory", f"{limits.cpu_seconds} s of CPU time"
    if status == OUT_OF_MEMORY:
        raise Broken(f"the scanner needed more than {memory}")
    if status in (OUT_OF_CPU, 128 + _SIGXCPU):
        raise Broken(f"the scanner needed more than {cpu}")
    if status in (-_SIGKILL, 128 + _SIGKILL, TOOL_KILLED):
        raise Died("was killed")
    if status == UNCONFINED:
        raise Died("could not be confined")
    if status > 128:
        raise Broken(f"the scanner crashed with signal {status - 128}")
    if status:
        raise Broken("the scanner failed")


#: More are not judged, and so nothing passes for them.
MAX_HITS = 20_000
MAX_TEXT = 1_000


class Unbelievable(Exception):
    """The answer is malformed."""


class ScanResult(NamedTuple):
    hits: tuple[Hit, ...]
    references: Mapping[str, References]
    hooks: tuple[str, ...]
    failure: str | None


def read_answer(content: bytes, bundle: Bundle) -> tuple[ScanResult, Sequence[str]]:
    """Parse the findings and the names of missing tools. Raises ``Unbelievable``."""
    paths = {file.path for file in bundle.files}
    try:
        answer = json.loads(content)
        reported = answer["hits"]
        hits = tuple(_hit(entry, paths) for entry in reported[:MAX_HITS])
        references = {path: _references(entry) for path, entry in answer["references"].items() if path in paths}
        hooks = tuple(path for path in answer["hooks"] if path in paths)
        failures = [_text(failure) for failure in answer["failures"]]
        if len(reported) > MAX_HITS:
            failures.append(f"the scanner found {len(reported)} things, of which {MAX_HITS} can be judged")
        skipped = [_text(name) for name in answer["skipped"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unbelievable("the scanner gave no answer that can be read") from error
    return ScanResult(hits, references, hooks, "; ".join(failures) or None), skipped


def _hit(entry: Mapping[str, Any], paths: set[str]) -> Hit:
    line = entry["line"]
    if entry["path"] not in paths or not isinstance(line, int) or isinstance(line, bool) or line < 0:
        raise ValueError("a hit outside the bundle")
    words = {name: _text(entry[name]) for name in ("rule", "text", "mark", "message", "advice")}
    return Hit(path=entry["path"], line=line, **words)


def _references(entry: Mapping[str, Any]) -> References:
    names = {name: tuple(_text(one) for one in entry[name]) for name in ("modules", "scripts", "paths", "folders")}
    return References(**names, anything=entry["anything"] is True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text was expected")
    return value[:MAX_TEXT]


RUFF, TARGET = "/opt/ruff", "/opt/target"
#: The vendored rules (see ``rules/``).
RULE_VERSIONS = {"gitleaks rules": "8.30.1", "GuardDog rules": "3.2.0"}
PACKAGES = ("google-re2", "ruff", "yara-python")
LOADERS = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}
OWN_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """``versions`` stand in each report."""

    tools: Tools
    versions: Mapping[str, str]


def find_toolbox(target: Path | None, node: Path | None = None, ruff: Path | None = None) -> Toolbox:
    """``target`` is the root file system that apps see: its own Python and Node.js then judge the syntax.

    Without one, this process's Python does, and the given ``node``, if any.
    """
    ruff = ruff or Path(sys.executable).with_name("ruff")
    binds = [(prefix, prefix) for prefix in _prefixes(node)]
    if ruff.is_file():
        binds.append((str(ruff), RUFF))
    python = OWN_PYTHON
    script: tuple[str, ...] | None = (str(node),) if node else None
    if target is not None:
        # Debian's Node.js reads a part of itself from there; nothing else of the worker reads anything there.
        binds += [(str(target), TARGET), (str(target / "usr/share"), "/usr/share")]
        python = _python_of(target) or OWN_PYTHON
        script = _foreign(target, "usr/bin/node") or script
    other = None if python == OWN_PYTHON or target is None else _foreign(target, f"usr/bin/python{python}")
    tools = Tools(RUFF if ruff.is_file() else None, script, other, tuple(binds))
    return Toolbox(tools, _versions(python, target))


def _prefixes(node: Path | None) -> list[str]:
    """Folders of programs that do not lie in /usr, which is there anyway."""
    wanted = {sys.base_prefix, *((str(node.parent),) if node else ())}
    return sorted(prefix for prefix in wanted if not Path(prefix).is_relative_to("/usr"))


def _python_of(target: Path) -> str | None:
    """``3.13``: what the target's ``python3`` leads to."""
    try:
        return str((target / "usr/bin/python3").readlink()).removeprefix("python")
    except OSError:
        return None


def _foreign(target: Path, program: str) -> tuple[str, ...] | None:
    """A program of another root file system, run by the loader and with the libraries of that one."""
    loader, triplet = LOADERS[platform.machine()], f"{platform.machine()}-linux-gnu"
    if not (target / program).exists():
        return None
    return (f"{TARGET}/usr/{loader}", "--library-path", f"{TARGET}/usr/lib/{triplet}", f"{TARGET}/{program}")


def _versions(python: str, target: Path | None) -> Mapping[str, str]:
    found = {"python": python, **RULE_VERSIONS}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not on this machine, so left out"
    if target is not None:
        found["base"] = target.parent.name
    return found
