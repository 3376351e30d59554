"""The fence: a shell process that ends the proxy at a deadline, unless the service moves that in time.

Where another service may take over, this machine's routes are wrong soon after: an address may be another tenant's app.
A service that is killed or stopped cannot end its proxy, so the fence does. The deadline is in seconds since the boot,
with time in suspend (as in /proc/uptime), so setting the clock does not move it.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import subprocess
import time

from builderd.adapters.previews.haproxy import process
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.linux import atomic_files

#: Seconds to wait for the fence to write its pid file.
SPAWN_TIMEOUT = 10.0
#: It ends once the file is gone: a start of the proxy that was under way at the deadline ends, too. Workers end with
#: their master.
_SCRIPT = """\
echo $$ >"$1"; deadline=$2; config=$3; proxy=$4
while until=; read -r until <"$deadline"; do
  read -r now rest </proc/uptime
  if [ "${now%.*}" -ge "$until" ]; then
    pid=; read -r pid <"$proxy"
    if [ -n "$pid" ] && grep -qsF -e "$config" "/proc/$pid/cmdline"; then kill -KILL "$pid"; fi
  fi
  sleep 1
done
"""


async def set_deadline(files: ProxyFiles, until: float) -> None:
    """Let the proxy run until this time since the boot, in seconds, and no longer unless this is called again."""
    files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_files.replace(files.deadline, f"{math.ceil(until)}\n".encode())
    if process.find_process(files.fence_pid, files) is not None:
        return
    await asyncio.to_thread(_spawn, files)
    # Before its pid file is written, another call would start a second fence.
    limit = asyncio.get_running_loop().time() + SPAWN_TIMEOUT
    while process.find_process(files.fence_pid, files) is None and asyncio.get_running_loop().time() < limit:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def lift(files: ProxyFiles) -> None:
    """Let the proxy run without a deadline. Idempotent."""
    files.deadline.unlink(missing_ok=True)
    if (fence := process.find_process(files.fence_pid, files)) is not None:
        fence.kill()
        await fence.wait(process.END_TIMEOUT)
    files.fence_pid.unlink(missing_ok=True)


def is_past(files: ProxyFiles) -> bool:
    """Return True if the deadline has passed: no proxy may be started until it is moved or lifted."""
    try:
        until = int(files.deadline.read_text())
    except FileNotFoundError:
        return False
    return until <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def take_down(files: ProxyFiles) -> None:
    """End the proxy, and remove all its files, routes among them. Idempotent."""
    await process.end(files)
    # Last: the proxy of an earlier term has its fence for as long as it runs.
    await lift(files)
    shutil.rmtree(files.directory, ignore_errors=True)


def _spawn(files: ProxyFiles) -> None:
    paths = (files.fence_pid, files.deadline, files.config, files.pid)
    subprocess.run(
        ("setsid", "--fork", "sh", "-c", _SCRIPT, "fence", *map(str, paths)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        cwd="/",
        check=True,
    )
