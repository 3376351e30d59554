"""The service's side of the built-in scanner: finds the tools, keeps the worker warm, and validates its answers.

The answers are untrusted: a scanned file may have taken the worker over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from builderd.code.model import Bundle, BundleFile
from builderd.code.sources import Kind, References, select_files
from builderd.core.errors import helper_died, machine_fault
from builderd.qa.port import NOTHING_RUN, Scan
from builderd.review.model import Hit, ReviewLimits
from builderd.review.scanners.tripwire.analysis import Tools
from builderd.review.scanners.tripwire.worker import OUT_OF_CPU, OUT_OF_MEMORY, TOOL_KILLED, TOOL_LATE, UNCONFINED

_MODULE = "builderd.review.scanners.tripwire.worker"
_SOURCE = str(Path(__file__).parents[4])
#: Counts up when the own rules change, since reports are kept by it.
RULES = 9
#: Path under which the commands are scanned, as a script: no file has it.
COMMANDS = ""
#: Seconds for the worker to read its rules; and, past a review's limit, until the worker itself is given up.
START_SECONDS, GRACE_SECONDS = 60.0, 3.0
#: An answer longer than this is none.
MAX_ANSWER = 16 << 20
MAX_SCANS = 4
_SIGXCPU, _SIGKILL = 24, 9

log = logging.getLogger(__name__)

#: Tools and versions by the name of the tool or of its rules.
Toolbox = tuple[Tools, Mapping[str, str]]


class Broken(Exception):
    """The scan has no result because of its input, or its answer is malformed; the message says why."""


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
        #: Its own: a scan may take minutes, and all other work shares the few threads of the event loop.
        self._threads = ThreadPoolExecutor(MAX_SCANS, "reviews")

    @cached_property
    def _toolbox(self) -> Toolbox:
        """Found at the first use: the base image may be built while the service starts."""
        return self._find()

    @property
    def name(self) -> str:
        return f"tripwire {RULES} {json.dumps(dict(self._toolbox[1]), sort_keys=True)}"

    async def prepare(self) -> None:
        try:
            await asyncio.to_thread(self._warm)
        except (Died, OSError) as error:
            raise machine_fault(error) or helper_died("the review's scanner", str(error)) from error

    async def scan(
        self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN, commands: str = ""
    ) -> Scan:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._scan, bundle, limits, run, commands)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._end)

    def _warm(self) -> socket.socket:
        with self._starting:
            if self._worker is not None and self._worker.poll() is not None:
                self._close()
            if self._control is None:
                self._control = self._start()
            return self._control

    def _scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind], commands: str) -> Scan:
        _, versions = self._toolbox
        try:
            read = select_files(bundle.files, limits, run).read
            command_lines = BundleFile(COMMANDS, commands.encode())
            content = pack_sources(bundle, [*read, (command_lines, Kind.SCRIPT)])
            limits = limits.for_size(sum(file.size for file, _ in read))
            return read_answer(self._ask(content, limits), bundle, versions)
        except Broken as error:
            return Scan((), {}, (), versions, failure=str(error))
        except (Died, Late, OSError) as error:
            log.warning("review scanner failed error=%s", error)
            raise machine_fault(error) or helper_died("the review's scanner", str(error)) from error

    def _ask(self, content: bytes, limits: ReviewLimits) -> bytes:
        """Return the worker's answer. Raises ``Broken``, ``Died``, ``Late`` or ``OSError``."""
        control = self._warm()
        deadline = time.monotonic() + limits.wall_seconds + GRACE_SECONDS
        (report, child_report), (ended, child_ended) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        try:
            try:
                with os.fdopen(os.memfd_create("review", os.MFD_CLOEXEC), "wb") as files:
                    files.write(content)
                    files.flush()
                    self._send(control, limits, [files.fileno(), child_report, child_ended])
            finally:
                os.close(child_report)
                os.close(child_ended)
            answer, end = _read_all(report, deadline), _read_all(ended, deadline)
        except TimeoutError:
            # It is the worker who ends what is late, and says so: this one hangs.
            self._end(control)
            raise Died("did not answer in time") from None
        finally:
            os.close(report)
            os.close(ended)
        if not end:
            self._end(control)
            raise Died("was killed")
        _check_end(json.loads(end), limits)
        return answer

    def _send(self, control: socket.socket, limits: ReviewLimits, descriptors: list[int]) -> None:
        try:
            socket.send_fds(control, [json.dumps(asdict(limits)).encode()], descriptors)
        except OSError as error:
            self._end(control)
            raise Died("does not answer") from error

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._worker = subprocess.Popen(
                [
                    *(sys.executable, "-s", "-P", "-m", _MODULE),
                    *(str(theirs.fileno()), json.dumps(asdict(self._toolbox[0]))),
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
            if failed is None or self._control is failed:
                self._close()

    def _close(self) -> None:
        control, worker = self._control, self._worker
        self._control = self._worker = None
        if control is not None:
            control.close()
        if worker is not None:
            worker.kill()
            worker.wait()


def pack_sources(bundle: Bundle, read: Sequence[tuple[BundleFile, Kind]]) -> bytes:
    """Pack files for a worker: an 8-byte length, a JSON header with paths and sizes, then the contents.

    Data files and files over a limit are left out: the service judges those itself.
    """
    files = [(file.path, kind.value, file.size) for file, kind in read]
    header = json.dumps({"files": files, "paths": [file.path for file in bundle.files]}).encode()
    return b"".join((len(header).to_bytes(8, "big"), header, *(file.content for file, _ in read)))


def _read_all(pipe: int, deadline: float) -> bytes:
    """Read to the end. Raises ``TimeoutError`` at the deadline, ``Broken`` for too much."""
    content = bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        part = os.read(pipe, 1 << 16)
        if not part:
            return bytes(content)
        content += part
        if len(content) > MAX_ANSWER:
            raise Broken("the scanner's answer is too long to be believed")
    raise TimeoutError


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
_REFERENCES = ("modules", "scripts", "paths", "folders")


def read_answer(content: bytes, bundle: Bundle, versions: Mapping[str, str]) -> Scan:
    """Parse the worker's answer, which is not trusted. Raises ``Broken``."""
    paths = {file.path for file in bundle.files}
    try:
        answer = json.loads(content)
        reported = answer["hits"]
        hits = tuple(_hit(entry, paths) for entry in reported[:MAX_HITS])
        references = {
            path: References(
                **{name: tuple(map(_text, entry[name])) for name in _REFERENCES}, anything=entry["anything"] is True
            )
            for path, entry in answer["references"].items()
            if path in paths
        }
        hooks = tuple(path for path in answer["hooks"] if path in paths)
        failures = [_text(failure) for failure in answer["failures"]]
        if len(reported) > MAX_HITS:
            failures.append(f"the scanner found {len(reported)} things, of which {MAX_HITS} can be judged")
        left_out = {_text(name): "not on this machine, so left out" for name in answer["skipped"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Broken("the scanner gave no answer that can be read") from error
    return Scan(hits, references, hooks, {**versions, **left_out}, "; ".join(failures) or None)


def _hit(entry: Mapping[str, Any], paths: set[str]) -> Hit:
    line = entry["line"]
    if entry["path"] not in {*paths, COMMANDS} or not isinstance(line, int) or isinstance(line, bool) or line < 0:
        raise ValueError("a hit outside the bundle")
    words = {name: _text(entry[name]) for name in ("rule", "text", "mark", "message", "advice")}
    return Hit(path=entry["path"], line=line, **words)


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


def find_tools(target: Path | None, node: Path | None = None, ruff: Path | None = None) -> Toolbox:
    """Return the tools, and the versions that stand in each report.

    ``target`` is the root file system that apps see: its own Node.js then judges the syntax.

    Without one, the given ``node`` does, if any. Python's syntax is this process's: apps have the same Debian's.
    """
    ruff = ruff or Path(sys.executable).with_name("ruff")
    # Folders of programs that do not lie in /usr, which is there anyway.
    prefixes = sorted({sys.base_prefix, *((str(node.parent),) if node else ())})
    binds = [(prefix, prefix) for prefix in prefixes if not Path(prefix).is_relative_to("/usr")]
    binds.append((str(ruff), RUFF))
    script: tuple[str, ...] | None = (str(node),) if node else None
    versions = {"python": OWN_PYTHON, **RULE_VERSIONS, **{package: version(package) for package in PACKAGES}}
    if target is not None:
        binds.append((str(target), TARGET))
        if (target / "usr/bin/node").exists():
            # Run by the loader and with the libraries of that root file system.
            loader, libraries = LOADERS[platform.machine()], f"usr/lib/{platform.machine()}-linux-gnu"
            script = (f"{TARGET}/usr/{loader}", "--library-path", f"{TARGET}/{libraries}", f"{TARGET}/usr/bin/node")
        versions["base"] = target.parent.name
    return Tools(RUFF, script, tuple(binds)), versions
