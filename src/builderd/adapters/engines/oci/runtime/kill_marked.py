"""Kill of a command inside gVisor, found by a variable of its environment: the host does not see its processes."""

from __future__ import annotations

import asyncio

from builderd.adapters.engines.oci.runtime import command
from builderd.adapters.engines.oci.runtime.bundle import ProcessConfig, make_process, process_of
from builderd.adapters.engines.oci.runtime.launching import Program
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.adapters.engines.oci.runtime.runtime_commands import runtime_mounts
from builderd.linux.json_files import write_json
from builderd.linux.processes import open_files

#: Environment of the runtime's own command.
COMMAND_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
#: Variable of a command's environment with its name.
MARK = "BUILDERD_EXEC"
#: Timeout of the command that kills.
_KILLER_SECONDS = 10.0
#: Two rounds, for children forked during the first one.
_KILL_MARKED = r"""
for round in 1 2; do
  for process in /proc/[0-9]*; do
    if tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "$0"; then kill -KILL "${process#/proc/}"; fi
  done
done"""


async def kill_marked(runs: Runs, record: Record, name: str) -> bool:
    """Kill the command of this name and its children. Return False when the killer did not end in time.

    A process that took the variable off is not found, and where no more processes may be started nothing is. With the
    sandbox all of them are gone.
    """
    folder = runs.config.bundle(record.id)
    document = folder / f"{name}.kill.json"
    argv = ["/bin/sh", "-c", _KILL_MARKED, f"{MARK}={name}"]
    try:
        user = process_of((folder / "config.json").read_text())["user"]["uid"]
        write_json(document, make_process(ProcessConfig(argv, COMMAND_ENV, user, open_files())))
    except FileNotFoundError:
        return True
    pid_file = document.with_suffix(".pid")
    runtime = runs.commands.runtime(record)
    try:
        killer = command.execute(runtime, record.id, document, pid_file)
        program = Program(killer, COMMAND_ENV, mounts=runtime_mounts(runtime), name=document.stem)
        return (await asyncio.wait_for(runs.launcher.run(program), _KILLER_SECONDS)).status == 0
    except TimeoutError:
        await runs.launcher.kill(document.stem)
        return False
    finally:
        document.unlink(missing_ok=True)
        pid_file.unlink(missing_ok=True)
