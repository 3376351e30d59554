"""The review's worker: what an attacker inside it can reach, and the result of a failing scanner."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.gate import bundle_of

from builderd.bootstrap.review import make_review_policy
from builderd.code.model import Bundle
from builderd.core.errors import MachineFault
from builderd.qa.port import Scan
from builderd.review.model import ReviewLimits, Severity
from builderd.review.scanners.tripwire.scanner import (
    MAX_HITS,
    Broken,
    TripwireScanner,
    find_tools,
    read_answer,
)
from builderd.review.service import assess
from builderd.settings import Settings

BUNDLE = bundle_of({"app.py": "print(1)\n"})
PATIENT = ReviewLimits(wall_seconds=60, cpu_seconds=2, memory_bytes=400_000_000)
LIMITS = ReviewLimits(wall_seconds=60, cpu_seconds=1, memory_bytes=400_000_000)
#: Less than any scan takes.
SHORT = replace(LIMITS, wall_seconds=1.5)


#: Shows anybody the checkout and the virtual environment, which may lie in a home that others cannot enter.
SHOWN = """
mount -t tmpfs -o mode=755 none /mnt
mkdir /mnt/code /mnt/venv
mount --bind "$1" /mnt/code
mount --bind "$2" /mnt/venv
cd /mnt/code
shift 2
exec setpriv --reuid 12345 --regid 12345 --clear-groups "$@"
"""


@pytest.fixture(scope="module", params=["as it is run", pytest.param("as somebody", marks=pytest.mark.root)])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of attempts to get out, of a worker started by root or by another user."""
    secret = tmp_path_factory.mktemp("host") / "secret"
    secret.write_text("secret")
    code, python, start = str(Path.cwd()), sys.executable, []
    if request.param == "as somebody":
        start = ["unshare", "--mount", "sh", "-euc", SHOWN, "sh", code, sys.prefix]
        code, python = "/mnt/code", "/mnt/venv/bin/python"
    done = subprocess.run(
        [*start, python, "-s", "-m", "tests.security.confined", str(secret)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"src:{code}:{code}/src"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_worker_sees_only_programs_of_the_host(outcomes: dict[str, Any]) -> None:
    assert set(outcomes["root"]) <= {"bin", "lib", "lib64", "usr", "dev", "work"}
    assert outcomes["a secret of the host"] == outcomes["users"] == outcomes["processes"] == "ENOENT"


def test_worker_has_no_network_and_no_access_to_processes(outcomes: dict[str, Any]) -> None:
    assert outcomes["a socket"] == outcomes["a unix socket"] == outcomes["tracing"] == "EPERM"
    assert outcomes["pid"] == 1
    assert outcomes["killing the parent"] == "ESRCH"


def test_worker_cannot_write_or_gain_privileges(outcomes: dict[str, Any]) -> None:
    assert outcomes["writing a program"] == outcomes["writing the root"] == "EROFS"
    assert outcomes["a namespace"] == outcomes["a mount"] == outcomes["io_uring"] == "EPERM"
    assert outcomes["uid"] != 0
    assert outcomes["capabilities"] == 0


def test_worker_child_ends_with_its_parent(outcomes: dict[str, Any]) -> None:
    assert outcomes["outliving its parent"] == outcomes["outliving its parent, by a number that is cut"] == "EPERM"
    assert outcomes["the signal at its parent's end"] == signal.SIGKILL
    assert outcomes["a name"] == 0


def test_worker_cannot_exhaust_the_host(outcomes: dict[str, Any]) -> None:
    assert outcomes["much memory"] == "MemoryError"
    assert outcomes["a large file"] in ("EFBIG", "ENOSPC")
    assert outcomes["many processes"] == "EAGAIN"


def test_worker_can_start_scanner_programs(outcomes: dict[str, Any]) -> None:
    assert outcomes["a program"] == ""


# Scanners that fail


def scanned(ruff: Path | None = None, limits: ReviewLimits = LIMITS, bundle: Bundle = BUNDLE) -> Scan:
    """Return the scan of a scanner whose ruff is another program."""

    async def scan() -> Scan:
        scanner = TripwireScanner(lambda: find_tools(None, ruff=ruff))
        try:
            return await scanner.scan(bundle, limits)
        finally:
            await scanner.close()

    return asyncio.run(scan())


def program(folder: Path, text: str) -> Path:
    folder.chmod(0o755)
    path = folder / "ruff"
    path.write_text(text)
    path.chmod(0o755)
    return path


FAILING = {
    "crashes": ("#!/bin/sh\nkill -SEGV $$\n", "ruff was ended by signal 11"),
    "eats memory": ("#!/usr/bin/python3\nx = [bytearray(1 << 20) for _ in range(100_000)]\n", "ruff exited with 1"),
    "eats time": ("#!/bin/sh\nwhile :; do :; done\n", "ruff "),
    "answers nonsense": ("#!/bin/sh\necho '{'\n", "ruff could not be used"),
    "answers too much": ("#!/bin/sh\nexec cat /dev/urandom\n", "ruff "),
    "does not start": ("#!/nowhere\n", "ruff could not be used"),
}


@pytest.mark.parametrize(("text", "why"), FAILING.values(), ids=FAILING)
def test_failing_scanner_blocks_the_version(tmp_path: Path, text: str, why: str) -> None:
    begun = time.monotonic()
    scan = scanned(program(tmp_path, text))
    assert time.monotonic() - begun < 60
    assert scan.failure is not None
    # A program that eats all there is takes the whole review with it.
    assert why in scan.failure or "memory" in scan.failure
    policy = make_review_policy(Settings())
    blocks = [f for f in assess(BUNDLE, "python3 app.py", scan, policy) if f.severity is Severity.BLOCK]
    assert [(f.rule, f.acceptable) for f in blocks] == [("SAN-scanner", False)]
    assert scan.failure in blocks[0].message


HANGING = {"alone": "#!/bin/sh\nexec sleep 60\n", "with a child": "#!/bin/sh\nsleep 60 &\nexec sleep 60\n"}


@pytest.mark.parametrize("text", HANGING.values(), ids=HANGING)
def test_hanging_scanner_is_a_machine_fault(tmp_path: Path, text: str) -> None:
    """Code that takes too much CPU time reaches that limit first, so only the machine is late without it."""
    with pytest.raises(MachineFault, match="did not finish within"):
        scanned(program(tmp_path, text), SHORT)


def test_review_over_its_wall_time_is_a_machine_fault() -> None:
    with pytest.raises(MachineFault, match=r"did not finish within 0.001 s"):
        scanned(limits=replace(LIMITS, wall_seconds=0.001))


def test_review_over_its_memory_limit_has_no_result() -> None:
    scan = scanned(limits=replace(LIMITS, memory_bytes=1))
    assert scan.failure is not None
    assert "of memory" in scan.failure
    assert scan.hits == ()


def test_review_over_cpu_limit_names_the_limit() -> None:
    lines = "".join(f"def f{n}(x):\n    return [x, {n}, str(x)]\n" for n in range(10_000))
    large = bundle_of({f"m{n}.py": lines for n in range(6)})
    scan = scanned(limits=replace(LIMITS, cpu_seconds=1, wall_seconds=60, memory_bytes=2_000_000_000), bundle=large)
    # A tenth more for each MB, in whole seconds.
    assert scan.failure == "the scanner needed more than 2 s of CPU time"


def test_killed_worker_is_replaced() -> None:
    async def use() -> list[Scan]:
        scanner = TripwireScanner(lambda: find_tools(None))
        try:
            scans = [await scanner.scan(BUNDLE, ReviewLimits())]
            assert scanner._worker is not None
            os.kill(scanner._worker.pid, signal.SIGKILL)
            scanner._worker.wait()
            return [*scans, await scanner.scan(BUNDLE, ReviewLimits())]
        finally:
            await scanner.close()

    assert [scan.failure for scan in asyncio.run(use())] == [None, None]


@pytest.mark.parametrize("killed", ["worker", "review", "tool"])
def test_scan_of_a_killed_process_is_a_machine_fault(tmp_path: Path, killed: str) -> None:
    scanner, kill = interruptible(tmp_path, killed)

    async def use() -> None:
        scanning = asyncio.create_task(scanner.scan(BUNDLE, PATIENT))
        try:
            await kill(scanning)
            await scanning
        finally:
            await scanner.close()

    with pytest.raises(MachineFault, match="the review's scanner was killed") as fault:
        asyncio.run(use())
    assert fault.value.retry_after


def test_scanner_that_cannot_start_is_a_machine_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MachineFault, match="the review's scanner did not start"):
        scanned()


Kill = Callable[[asyncio.Task[Scan]], Awaitable[None]]


def interruptible(folder: Path, killed: str) -> tuple[TripwireScanner, Kill]:
    """A scanner in whose scans a tool hangs, and what kills a part of it in the middle of one."""
    name = f"{os.getpid()}.25"
    tool = program(folder, f"#!/bin/sh\nexec sleep {name}\n")
    scanner = TripwireScanner(lambda: find_tools(None, ruff=tool))

    async def kill(scanning: asyncio.Task[Scan]) -> None:
        pid = None
        while pid is None:
            assert not scanning.done(), "it ended before it was in the middle"
            await asyncio.sleep(0.01)
            pid = await asyncio.to_thread(process_of, f"sleep {name}")
        assert scanner._worker is not None
        victims = {"worker": scanner._worker.pid, "review": parent_of(pid), "tool": pid}
        os.kill(victims[killed], signal.SIGKILL)

    return scanner, kill


def process_of(command: str) -> int | None:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return next((int(line.split()[0]) for line in listed.splitlines() if line.endswith(command)), None)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def running() -> str:
    """The command lines of all processes."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_reviews_end_with_their_worker(tmp_path: Path) -> None:
    """And with it no program that it started."""
    name = f"{os.getpid()}.125"
    with pytest.raises(MachineFault):
        scanned(program(tmp_path, f"#!/bin/sh\nsleep {name} &\nexec sleep {name}\n"), SHORT)
    assert f"sleep {name}" not in running()


def test_concurrent_reviews_do_not_mix() -> None:
    async def use() -> list[Scan]:
        scanner = TripwireScanner(lambda: find_tools(None))
        bundles = [bundle_of({"app.py": f"print({n})\n{'exec(' * (n % 2)}"}) for n in range(12)]
        try:
            return list(await asyncio.gather(*(scanner.scan(bundle, ReviewLimits()) for bundle in bundles)))
        finally:
            await scanner.close()

    found = [{hit.rule for hit in scan.hits if hit.rule.startswith("SAN-")} for scan in asyncio.run(use())]
    assert found == [set(), {"SAN-syntax"}] * 6


# Answers of a worker that was taken over

SOUND: dict[str, Any] = {"hits": [], "references": {}, "hooks": [], "failures": [], "skipped": []}
HIT = {"rule": "R", "path": "app.py", "line": 1, "text": "", "mark": "", "message": "", "advice": ""}


def changed(**parts: Any) -> bytes:
    return json.dumps({**SOUND, **parts}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 100_000,
        changed(hits=[{**HIT, "path": "../x"}]),
        changed(hits=[{**HIT, "line": -1}]),
        changed(hits=[{**HIT, "line": True}]),
        changed(hits=[{**HIT, "text": 1}]),
        changed(hits=1),
        changed(references=[]),
        changed(references={"app.py": {"modules": 1}}),
        changed(failures=None),
    ],
)
def test_malformed_worker_answer_is_a_failure(answer: bytes) -> None:
    with pytest.raises(Broken):
        read_answer(answer, BUNDLE, {})


def test_oversized_worker_answer_is_truncated() -> None:
    refers = {"modules": [], "scripts": [], "paths": [], "folders": [], "anything": 1}
    answer = changed(
        hits=[{**HIT, "text": "x" * 5_000}], hooks=["nowhere"], references={"other.py": refers, "app.py": refers}
    )
    seen = read_answer(answer, BUNDLE, {})
    assert len(seen.hits[0].text) == 1_000
    assert (seen.hooks, list(seen.references)) == ((), ["app.py"])
    assert not seen.references["app.py"].anything


def test_too_many_hits_are_a_failure() -> None:
    seen = read_answer(changed(hits=[HIT] * (MAX_HITS + 1)), BUNDLE, {})
    assert seen.failure is not None
    assert str(MAX_HITS) in seen.failure
    seen = read_answer(changed(hits=[HIT] * MAX_HITS), BUNDLE, {})
    assert seen.failure is None


def test_every_scanner_failure_is_kept() -> None:
    seen = read_answer(changed(failures=["a", "b"]), BUNDLE, {})
    assert seen.failure == "a; b"
    found = assess(BUNDLE, "", seen, make_review_policy(Settings()))
    assert [finding.rule for finding in found] == ["SAN-scanner"]
