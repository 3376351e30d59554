"""Commands that the launcher starts itself: confined as those of ``crun exec``, line by line, and never begun late."""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec, prepared
from tests.integration.oci.test_pool import reserved

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.runtime import executions, pool
from builderd.adapters.engines.oci.runtime.joined import can_join
from builderd.domain.errors import EngineUnavailable, InvalidState
from builderd.domain.processes import ProcessSpec, shell
from builderd.domain.sandboxes import SandboxSpec
from builderd.linux.processes import read_proc
from builderd.ports.engine import EngineOptions
from builderd.services.executions import Command, capture

pytestmark = pytest.mark.root

#: What a process can see of its own confinement. Options of prctl(2) that only read: linux/prctl.h.
PROBE = """
for file in status cgroup limits oom_score_adj attr/current environ mountinfo personality sched timerslack_ns \
    setgroups uid_map gid_map autogroup loginuid sessionid; do
  echo "== $file"; cat /proc/self/$file 2>&1 | tr '\\0' '\\n'
done | sort
cd /proc/self; for link in cwd root exe ns/* fd/*; do echo "$link $(readlink $link)"; done
umask; ulimit -a; ps -o sid=,pgid=,tty=,ni=,cls=,psr= -p $$ | sed 's/[0-9]*$//'; set | grep -v '^_='
python3 - <<'END'
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
for option in (2, 3, 7, 16, 21, 23, 25, 27, 30, 33, 37, 39, 42, 47, 51, 52, 54, 56, 63, 67, 69, 71):
    word = ctypes.c_int(-1)
    for arguments in ((0, 0), (1, 0), (ctypes.byref(word), 0)):
        print(option, libc.prctl(option, *arguments, 0, 0), ctypes.get_errno(), word.value)
print(os.getresuid(), os.getresgid(), os.getgroups(), os.sched_getaffinity(0), os.sched_getscheduler(0))
print(os.getpriority(os.PRIO_PROCESS, 0), [libc.syscall(252, 1, 0), libc.syscall(252, 2, 0)])
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
for call in (*range(0, 60), *range(95, 335), *range(424, 470)):
    # Refused calls, asked with arguments that make any other answer harmless.
    if call not in (
        *(7, 15, 23, 34, 35, 56, 57, 58, 59, 60, 61, 112, 219, 230, 231, 232, 247, 270, 271, 281, 322, 324, 435, 441),
    ):
        print(call, libc.syscall(call, -1, -1, -1, -1, -1, -1) < 0, ctypes.get_errno())
END
"""
#: What differs from process to process: numbers of pids, pipes and groups, memory and switches.
OWN = [
    (
        re.compile(
            r"^(Tgid|Pid|PPid|NStgid|NSpid|NSpgid|NSsid|Vm\w+|Rss\w+|.*ctxt_switches|SigQ|FDSize):.*", re.MULTILINE
        ),
        r"\1",
    ),
    (
        re.compile(
            r"^(cat \(.*|(se|sum|nr\w*|mm|clock|effective|avg|total|current|numa)\b.*:.*|OLDPWD=.*)\n", re.MULTILINE
        ),
        "",
    ),
    (re.compile(r"exec-[0-9a-f]{8}|pipe:\[\d+\]|(?<=PPID=)'?\d+'?|(?<=/autogroup-)\d+"), "…"),
    (re.compile(r"^ *\d+ +\d+ +\?", re.MULTILINE), "own session ?"),
    (re.compile(r"(?<=/proc/)\d+"), "…"),
]


@pytest.fixture
async def engine(settings: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OciEngine]:
    """An engine with one prepared sandbox, also on a machine that is never idle."""
    monkeypatch.setattr(pool, "IDLE_CPUS", -1)
    async with prepared(replace(settings, sandbox_pool=1)) as engine:
        yield engine


@pytest.fixture
async def spec(engine: OciEngine) -> SandboxSpec:
    spec = await make_spec(engine, apps.SILENT, env={"PORT": "8000", "QUOTED": 'it\'s "a"\n$HOME `x` \udcff'})
    await engine.start(spec)
    return spec


async def seen(engine: OciEngine, spec: SandboxSpec, command: Command) -> list[str]:
    result = await capture(engine, spec.id, command, 1_000_000)
    assert result.exit_code == 0, result.output
    text = result.output
    for pattern, put in OWN:
        text = pattern.sub(put, text)
    return text.splitlines()


@pytest.mark.parametrize("claimed", [False, True], ids=["its own", "claimed from the pool"])
async def test_a_command_is_confined_line_by_line_as_by_crun(
    engine: OciEngine, claimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"id": await reserved(engine)} if claimed else {}
    spec = await make_spec(engine, apps.SILENT, **changes)
    await engine.start(spec)
    command = Command(PROBE, ENGINE_TIMEOUT, stdin=b"", cwd="/tmp", env={"MARK": "own"})
    assert can_join(engine._here.runs, record_of(engine, spec), command.spec)
    ours = await seen(engine, spec, command)
    monkeypatch.setattr(executions, "can_join", lambda *_: False)
    theirs = await seen(engine, spec, command)
    assert list(difflib.unified_diff(theirs, ours, "by crun", "by the launcher", lineterm="", n=0)) == []
    assert len(ours) > 300
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "MARK=own", "500"):
        assert line in ours
    # The fourth is the shell's own: the pipe from readlink.
    assert [line for line in ours if line.startswith("fd/")] == [f"fd/{one} …" for one in range(4)]


def record_of(engine: OciEngine, spec: SandboxSpec):  # type: ignore[no-untyped-def]
    record = engine._here.runs.find(spec.id)
    assert record
    return record


async def test_streams_are_kept_apart_and_input_arrives(engine: OciEngine, spec: SandboxSpec) -> None:
    async with engine.open_process(spec.id, ProcessSpec(shell("cat; echo wrong >&2; exit 7"))) as process:
        await process.write(b"given")
        process.close_input()
        assert (await process.read(), await process.read_errors(), await process.wait()) == (b"given", b"wrong\n", 7)


async def test_a_program_is_searched_for_by_the_shell_inside(engine: OciEngine, spec: SandboxSpec) -> None:
    assert (
        await execute(engine, spec.id, "mkdir -p ~/.local/bin; ln -s /proc/self/exe ~/.local/bin/tool", 10, 9)
    ).exit_code == 0
    async with engine.open_process(spec.id, ProcessSpec(("tool", "-c", "echo $0"))) as process:
        assert await process.read() == b"tool\n", "the shell, and no program of the host's"


async def test_a_command_that_was_given_up_never_begins(engine: OciEngine, spec: SandboxSpec) -> None:
    """Cancelled while the launcher cannot answer; then the launcher goes on."""
    launcher = engine._here.launcher._process
    assert launcher
    os.kill(launcher.pid, signal.SIGSTOP)
    try:
        begun = asyncio.ensure_future(execute(engine, spec.id, "touch /app/begun", ENGINE_TIMEOUT, 100))
        await asyncio.sleep(0.2)
        begun.cancel()
        asyncio.get_running_loop().call_later(0.5, os.kill, launcher.pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await begun
    finally:
        os.kill(launcher.pid, signal.SIGCONT)
    assert (await execute(engine, spec.id, "ls -A /app; pgrep -c touch", ENGINE_TIMEOUT, 100)).output == "0\n"


async def test_a_reused_pid_is_not_joined(engine: OciEngine, spec: SandboxSpec) -> None:
    record = record_of(engine, spec)
    process = record.process
    assert process
    other = await make_spec(engine, apps.SILENT)
    await engine.start(other)
    wrong = replace(process, pid=record_of(engine, other).process.pid)
    engine._here.runs._known[record.id] = replace(record, process=wrong)
    try:
        async with executions.execution(
            engine._here.runs, engine._here.runs._known[record.id], ProcessSpec(shell("true"))
        ):
            pytest.fail("it began in another sandbox")
    except InvalidState:
        pass
    finally:
        engine._here.runs._known[record.id] = record


@pytest.mark.parametrize("content", [b"", b"1234567"])
async def test_without_a_whole_filter_nothing_begins(engine: OciEngine, spec: SandboxSpec, content: bytes) -> None:
    runs = engine._here.runs
    file = runs.commands.runtime(record_of(engine, spec)).root / spec.id / "seccomp.bpf"
    # Of one inode with crun's cache: never written to.
    kept = file.rename(file.with_name("kept"))
    try:
        file.write_bytes(content)
        with pytest.raises(InvalidState, match="holds no filter"):
            await execute(engine, spec.id, "touch /app/begun", ENGINE_TIMEOUT, 100)
        file.unlink()
        assert not can_join(runs, record_of(engine, spec), ProcessSpec(("true",)))
    finally:
        kept.rename(file)
    assert (await execute(engine, spec.id, "ls -A /app", ENGINE_TIMEOUT, 100)).output == ""


async def test_commands_of_all_sandboxes_leave_no_process_on_the_host(engine: OciEngine, spec: SandboxSpec) -> None:
    process = engine._here.launcher._process
    assert process
    async with engine.open_process(spec.id, ProcessSpec(shell("echo begun; sleep 1000"))) as open_process:
        assert await open_process.read() == b"begun\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        # Meanwhile it may prepare a sandbox.
        async with asyncio.timeout(ENGINE_TIMEOUT):
            while [read_proc(f"{child}/comm") for child in children.read_text().split()] != ["sh\n"]:
                await asyncio.sleep(0.01)


async def test_a_command_of_a_killed_launcher_is_cut_off_and_the_next_one_works(
    engine: OciEngine, spec: SandboxSpec
) -> None:
    process = engine._here.launcher._process
    assert process
    os.kill(process.pid, signal.SIGSTOP)
    begun = asyncio.ensure_future(execute(engine, spec.id, "touch /app/begun", ENGINE_TIMEOUT, 100))
    await asyncio.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await begun
    assert (await execute(engine, spec.id, "ls -A /app", ENGINE_TIMEOUT, 100)).output == ""


async def test_without_a_joining_program_that_works_commands_begin_by_the_runtime(
    engine: OciEngine, spec: SandboxSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The program is gone since the service's start: nobody but the log hears of it."""
    launcher = engine._here.launcher
    launcher._end()  # the next one gets another program
    launcher.joiner = tmp_path / "gone"
    results = await asyncio.gather(*(execute(engine, spec.id, f"echo {one}", ENGINE_TIMEOUT, 100) for one in "ab"))
    assert [(result.exit_code, result.output) for result in results] == [(0, "a\n"), (0, "b\n")]
    assert launcher.joiner is None
    assert caplog.text.count("until a restart") == 1
    assert not can_join(engine._here.runs, record_of(engine, spec), ProcessSpec(("true",)))


STRAYS = textwrap.dedent("""
    import os, time
    from builderd.adapters.engines.oci.runtime.join import reap_strays
    stray, known = (os.fork() or os._exit(0) for _ in range(2))
    for pid in (stray, known):
        while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
    last = os.fork()
    if last == 0:
        time.sleep(1000)
    print(reap_strays({known}), reap_strays({known, last}))
    print(os.path.exists(f"/proc/{stray}"), os.path.exists(f"/proc/{known}"))
    os.waitpid(known, 0)
    os.kill(last, 9)
    os.waitid(os.P_PID, last, os.WEXITED | os.WNOWAIT)
    print(reap_strays(set()), reap_strays(set()))
""")


def test_children_that_nobody_watches_are_reaped_and_no_others() -> None:
    done = subprocess.run([sys.executable, "-c", STRAYS], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\nFalse True\nFalse False\n"
