"""Jail of a program that parses hostile input: command lines for bubblewrap, prlimit and setpriv. Pure, but for looks.

bubblewrap gives it a network namespace with only loopback, a pid namespace, and a read-only root of the host's ``/usr``
and chosen folders. It runs as a uid that owns no files, and is the first to be killed when memory is short.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builderd.sandboxing.privileges import Limits

#: A uid that owns no file: above Debian's own ids, below those of the sandboxes.
UID = 899_999
#: Bytes of the jail's own temporary files.
TMP_BYTES = 256_000_000
#: A folder of every Debian, which is mounted over only in the jail's mount namespace.
STAGE = Path("/mnt")


@dataclass(frozen=True, slots=True)
class Folder:
    """``source`` on the host is seen at ``target``, read-only. ``name`` is unique in a jail."""

    name: str
    source: Path
    target: Path


def missing() -> str | None:
    """Return the reason why this machine cannot run jails, or None."""
    for program in ("bwrap", "setpriv", "prlimit", "unshare", "choom"):
        if shutil.which(program) is None:
            return f"{program} is not installed on this machine: run builderd setup"
    return None if os.geteuid() == 0 else "the service does not run as root"


def limited(limits: Limits) -> list[str]:
    """Return the words before a command that runs within limits."""
    return ["prlimit", *limits.arguments(), "--"]


def unprivileged(uid: int | None = None, capability: str = "") -> list[str]:
    """Return the words before a command that gains no privileges.

    It runs as ``uid`` without any, or as root with at most one capability.
    """
    if uid is None:
        kept = f"-all,+{capability}" if capability else "-all"
        return ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={kept}", "--"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]


def jailed(command: Sequence[str], limits: Limits, folders: Sequence[Folder]) -> list[str]:
    """Return the command line that runs a command in a jail, with the folders bound inside."""
    return [
        *("unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", make_stage(folders), "sh"),
        *("nice", "-n", "15", "choom", "-n", "1000", "--"),
        *limited(limits),
        *unprivileged(UID),
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"),  # noqa: S108
        *("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
        *("--symlink", "usr/bin", "/bin", "--ro-bind-try", "/etc/fonts", "/etc/fonts"),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"),
        *("--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--size", str(TMP_BYTES), "--tmpfs", "/dev/shm"),  # noqa: S108
        *(word for folder in folders for word in ("--ro-bind", str(STAGE / folder.name), str(folder.target))),
        *("--chdir", "/tmp", "--hostname", "jail", "--", *command),  # noqa: S108
    ]


def make_stage(folders: Sequence[Folder]) -> str:
    """Return a shell script that binds the folders below ``STAGE`` and runs its arguments.

    An unprivileged program could not reach them if a parent folder is open to root only. Runs in a mount namespace.
    """
    made = [f"mount -t tmpfs -o mode=755,size=64k tmpfs {STAGE}"]
    for folder in folders:
        made += [
            f"mkdir {STAGE / folder.name}",
            f"mount --bind {shlex.quote(str(folder.source))} {STAGE / folder.name}",
        ]
    return " && ".join([*made, 'exec "$@"'])


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process and its descendants; shared pages count for each."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            resident[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        total += resident.get(one, 0)
        waiting += children.get(one, [])
    return total
