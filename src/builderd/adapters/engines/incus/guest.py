"""Programs of the service inside an instance, as the text that goes into its image. Pure.

Process 1 is tini, its child ``entry``. ``run`` wraps each program that is executed beside the app; ``end`` ends one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from builderd.adapters.engines.oci.storage.base_recipe import APP_UID
from builderd.domain.layers import APP

#: Folder of these programs in the image.
FOLDER = "/opt/builderd"
#: Folder on the instance's root of the logs of both streams, ``out`` and ``err``, and of the record of its end.
LOG = "/log"
EXIT_RECORD = f"{LOG}/exit"
#: Made once the order came, and when the instance is started another time.
ORDERED, RESTARTED = f"{LOG}/ordered", f"{LOG}/restarted"
#: Bytes by which ``run`` reports that the program begins (and the id of its process), or that its folder is missing.
READY, NO_FOLDER = b"\x06", b"\x15"
#: Process 1. As a subreaper it takes over what an ended command leaves in the background.
INIT = f"/usr/bin/tini -s -- {FOLDER}/entry"

_CONFINED = "setpriv --bounding-set=-all --inh-caps=-all --no-new-privs"
_AS_APP = f"{_CONFINED} --reuid={APP_UID} --regid={APP_UID} --clear-groups"

#: Waits for its order, which only the service gives and only once: an instance that somebody else starts (Incus when a
#: member returns) never runs the app, and one that is started again ends at once. So an app has one writer at most.
#: The order is a file of shell commands through a FIFO in memory, so that Incus stores neither variables nor secrets.
ENTRY = rf"""#!/bin/sh
umask 022
if [ -e {ORDERED} ]; then : >{RESTARTED}; exit 0; fi
mkdir -m 700 /run/builderd
mkfifo -m 600 /run/builderd/order /run/builderd/out /run/builderd/err
log() {{
  LD_LIBRARY_PATH={FOLDER}/lib exec {FOLDER}/s6-log -b -l 1048576 n3 s"$LOG_BYTES" T {LOG}/"$1" </run/builderd/"$1"
}}
killed() {{
  cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null |
    while read -r name count; do [ "$name" != oom_kill ] || echo "$count"; done
}}
run() {{
  log out & out=$!
  log err & err=$!
  cd "$APP_FOLDER"
  setsid {_AS_APP} -- env -i "$@" >/run/builderd/out 2>/run/builderd/err </dev/null & app=$!
  # setsid made it the leader of a group: all that it started gets the signal.
  trap 'kill -TERM -$app' TERM INT PWR
  exec >/dev/null 2>&1
  wait $app; code=$?
  while kill -0 $app 2>/dev/null; do wait $app; code=$?; done
  # A process that the app left behind may keep the log open.
  ( sleep 0.5; kill -TERM $out $err ) & wait $out $err
  set -- $(killed)
  echo "$code ${{1:-0}} $(date +%s.%N)" >{EXIT_RECORD}.new && mv {EXIT_RECORD}.new {EXIT_RECORD}
  exit $code
}}
. /run/builderd/order
"""

#: ``run USER CWD JOINED CAPABILITIES PROGRAM…``: as root without capabilities but those, or as the app (USER 1000).
#: tini is a subreaper here too: whatever the program starts stays below its process, and ``end`` finds it.
RUN = r"""#!/bin/sh
user=$1 folder=$2 joined=$3 kept=$4; shift 4
[ "$joined" = 0 ] || exec 2>&1
cd -- "$folder" 2>/dev/null || { printf '\025'; exit 1; }
printf '\006%s\n' $$
set -- setpriv --bounding-set="$kept" --inh-caps="$kept" --ambient-caps="$kept" --no-new-privs --pdeathsig KILL \
  --reuid="$user" --regid="$user" --clear-groups -- env -i "$@"
exec /usr/bin/tini -s -- "$@"
"""

#: ``end PROCESS``: kill a ``run`` with all below it. Each is stopped first, so that none can start another meanwhile.
END = r"""#!/bin/sh
below() {
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do echo "$child"; below "$child"; done
}
round=0
while [ $round -lt 50 ]; do
  found=$(below "$1")
  [ -n "$found" ] || break
  kill -STOP $found 2>/dev/null; found="$found $(below "$1")"
  kill -KILL $found 2>/dev/null
  round=$((round + 1))
done
kill -KILL "$1" 2>/dev/null
exit 0
"""

PROGRAMS = {"entry": ENTRY, "run": RUN, "end": END}

#: Waits for the FIFO and passes on what it reads.
DELIVER = ("/bin/sh", "-c", "while [ ! -p /run/builderd/order ]; do sleep 0.005; done; cat >/run/builderd/order")


def order(
    argv: Sequence[str],
    env: Mapping[str, str],
    files: Mapping[str, str],
    secrets: Mapping[str, str],
    log_bytes: int,
    folder: str = APP,
) -> bytes:
    """Return the order that runs ``argv`` in ``folder`` with this environment.

    ``files`` are root's and readable by all, ``secrets`` lie in memory and are the app's alone. The environment is kept
    for the commands beside the app, in a file that only root reads.
    """
    lines = [f": >{ORDERED}", f"LOG_BYTES={max(log_bytes // 4, 4096)} APP_FOLDER={shlex.quote(folder)}"]
    lines += [f"printf %s {shlex.quote(text)} >{shlex.quote(path)}" for path, text in files.items()]
    for path, text in secrets.items():
        above = shlex.quote(path.rpartition("/")[0])
        lines += [
            f"mkdir -p -m 755 {above}",
            f"(umask 077; printf %s {shlex.quote(text)} >{shlex.quote(path)}); chmod 400 {shlex.quote(path)}",
            f"chown {APP_UID}:{APP_UID} {shlex.quote(path)} {above}; chmod 500 {above}",
        ]
    pairs = [shlex.quote(f"{name}={value}") for name, value in env.items()]
    kept = " ".join(pairs)
    lines += [
        f"printf %s {shlex.quote(kept)} >/run/builderd/environment; chmod 600 /run/builderd/environment",
        f"run {kept} {shlex.join(argv)}",
    ]
    return "\n".join(lines).encode() + b"\n"


def exec_argv(argv: Sequence[str], env: Mapping[str, str], folder: str, *, joined: bool) -> list[str]:
    """Return the argv that runs a program as the app does: its user, its environment and ``env``, no capability."""
    own = [f"{name}={value}" for name, value in env.items()]
    text = (
        'eval "set -- $(cat /run/builderd/environment) \\"\\$@\\""; '
        f'exec {FOLDER}/run {APP_UID} "$0" {int(joined)} -all "$@"'
    )
    return ["/bin/sh", "-c", text, folder, *own, *argv]


def root_argv(argv: Sequence[str], env: Mapping[str, str], folder: str, *, user: int = 0, kept: str = "") -> list[str]:
    """Return the argv that runs a program of a build or a tool, with both streams joined.

    ``kept`` are the capabilities that it keeps, as setpriv names them (``+dac_read_search``).
    """
    own = [f"{name}={value}" for name, value in env.items()]
    return [f"{FOLDER}/run", str(user), folder, "1", f"-all{',' + kept if kept else ''}", *own, *argv]
