"""CPU time of a service, and of what it starts: on a machine with other work, it says more than the clock."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
#: A process is idle after so many looks in a row, so many seconds apart, in each of which it used less than this.
IDLE_LOOKS, LOOK_SECONDS, IDLE_MS = 2, 0.005, 0.05
IDLE_DEADLINE = 10.0
#: Parts of a service's live children, by a word of their command.
HELPERS = {b"launcher": "launcher and commands", b"tripwire": "review"}
#: Where version 1 of control groups counts CPU time, and where it shares it out: with systemd, one hierarchy.
CPUACCT, CPU = Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup/cpu")
#: A process may fork between the list of a group's processes and their move, or between both and the removal.
LEAVE_ROUNDS = 100
#: All that the launcher starts: shims (conmon), and crun with a sandbox's first process up to its own group.
STARTED = "launcher, shims and crun; commands"


def spent(service: int) -> dict[str, float]:
    """Return milliseconds so far (proc(5)) by part: the service's process, its ended children, its launcher.

    The launcher's are those of the programs that it ran to their end, too: of commands, but of no app.
    """
    own, ended = _times(service)
    launchers = [_times(pid) for pid in _children(service) if b"launcher" in _words(pid)]
    return {"service": own, "its children": ended, "launcher and commands": sum(map(sum, launchers))}


def between(before: dict[str, float], after: dict[str, float], rounds: int) -> dict[str, float]:
    """Return the milliseconds of one round."""
    return {name: round((after[name] - before[name]) / rounds, 1) for name in before}


def _times(pid: int) -> tuple[float, float]:
    """Return the CPU time of a process, and that of its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MS, (int(fields[13]) + int(fields[14])) * _TICK_MS


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def of_threads(pid: int) -> float:
    """Return the milliseconds of a process by the nanoseconds of its threads, which do not end in a service."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e6


def until_idle(pid: int) -> float:
    """Return ``of_threads`` of a process once it has used next to nothing for a while.

    Raises ``TimeoutError`` if it is never idle.
    """
    deadline, used, quiet = time.monotonic() + IDLE_DEADLINE, of_threads(pid), 0
    while quiet < IDLE_LOOKS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} was not idle within {IDLE_DEADLINE:g} s")
        time.sleep(LOOK_SECONDS)
        now = of_threads(pid)
        quiet = quiet + 1 if now - used < IDLE_MS and not _is_ready(pid) else 0
        used = now
    return used


def _is_ready(pid: int) -> bool:
    """Return whether a thread of the process runs or waits for a CPU: one that waits has used nothing either."""
    stats = (file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat"))
    return any(stat.rpartition(")")[2].split()[0] == "R" for stat in stats)


@contextlib.contextmanager
def counted_launcher(service: int) -> Iterator[Path | None]:
    """Count what a service's launcher starts in a control group of its own, to the nanosecond.

    The CPU time of an ended process is otherwise known in steps of 10 ms, more than crun takes, and that of conmon's
    only from conmon. None on version 2, where shims enter groups of the same hierarchy and so leave this one, and
    before the service has a launcher.
    """
    launchers = [child for child in _children(service) if b"launcher" in _words(child)]
    if not CPUACCT.exists() or (CPU.exists() and CPUACCT.samefile(CPU)) or not launchers:
        yield None
        return
    group = CPUACCT / f"builderd-bench-{service}"
    group.mkdir()
    try:
        for launcher in launchers:
            (group / "cgroup.procs").write_text(str(launcher))
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Move a group's processes to the root, and remove it. Raises ``OSError`` when there are always new ones."""
    for _ in range(LEAVE_ROUNDS):
        for left in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has ended
                (group.parent / "cgroup.procs").write_text(left)
        with contextlib.suppress(OSError):  # a process was forked meanwhile
            group.rmdir()
            return
    group.rmdir()


def of_machine(service: int, data_dir: Path, group: Path | None = None) -> defaultdict[tuple[str, int], float]:
    """Return milliseconds so far by part and process: of a service, its helpers and its live sandboxes.

    ``group`` is that of ``counted_launcher``. Of processes that have ended, only those are there whose parent lives and
    has waited for them, in steps of 10 ms.
    """
    found: defaultdict[tuple[str, int], float] = defaultdict(float)
    found["service", service] = of_threads(service)
    found["ended children of the service", service] = _times(service)[1]
    if group:
        found[STARTED, service] = int((group / "cpuacct.usage").read_text()) / 1e6
    for child in _children(service):
        if group and b"launcher" in _words(child):
            continue
        part = next((part for word, part in HELPERS.items() if word in _words(child)), "other children of the service")
        _add_all(found, part, child)
    for path in Path("/proc").glob("[0-9]*"):
        words = _words(pid := int(path.name))
        if bytes(data_dir) not in words or _parent(pid) != 1:
            continue
        if b"conmon" in words:
            if not group:
                _add(found, "monitors, and crun for sandboxes of the pool", pid)
            for app in _children(pid):
                _add_all(found, "apps", app)
        elif b"haproxy" in words:
            _add_all(found, "proxy", pid)
    return found


def _add_all(found: defaultdict[tuple[str, int], float], part: str, pid: int) -> None:
    """Add a process and all below it."""
    with contextlib.suppress(OSError):
        for child in _children(pid):
            _add_all(found, part, child)
    _add(found, part, pid)


def _add(found: defaultdict[tuple[str, int], float], part: str, pid: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        found[part, pid] = of_threads(pid) + _times(pid)[1]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
