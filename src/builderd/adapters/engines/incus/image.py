"""Image of all instances: the base root file system of this host with the service's programs, made once a recipe.

It is a split image (metadata and a squashfs), kept beside the bases of the host. Incus unpacks it once on each member,
before the first instance there.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

from builderd.adapters.engines.oci.network.host_files import CA_BUNDLE, HOME
from builderd.adapters.engines.oci.runtime.bundle import OOM_SCORE
from builderd.adapters.engines.oci.runtime.creation import relative_secret
from builderd.adapters.engines.oci.storage.base import APP_UID, HOST_HOME, Base, ensure_base
from builderd.domain.errors import EngineUnavailable
from builderd.domain.inventory import SEARCH_PATH
from builderd.domain.layers import APP
from builderd.domain.sandboxes import SECRETS_FOLDER
from builderd.ports.engine import Progress

#: Folder of these programs in the image.
FOLDER = "/opt/builderd"
#: Folder on the instance's root of the logs of both streams, ``out`` and ``err``, and of the record of its end.
LOG = "/log"
EXIT_RECORD = f"{LOG}/exit"
#: Made once the order came, and when the instance is started another time.
ORDERED, RESTARTED = f"{LOG}/ordered", f"{LOG}/restarted"
#: Bytes by which ``run`` reports that the program begins (and the id of its process), or that its folder is missing.
READY, NO_FOLDER = b"\x06", b"\x15"
#: Byte by which ``begin`` asks for the specification of the program.
ASKING = b"\x05"
#: Process 1. As a subreaper it takes over what an ended command leaves in the background.
INIT = f"/usr/bin/tini -s -- {FOLDER}/entry"

#: Seconds for which lines of a log without space are dropped at a time, and what stands in their place.
DROP_SECONDS = 5
DROPPED = "builderd: lines were dropped here: no space was left for the log"

_CONFINED = "setpriv --bounding-set=-all --inh-caps=-all --no-new-privs"
_AS_APP = f"{_CONFINED} --reuid={APP_UID} --regid={APP_UID} --clear-groups"

#: Waits for its order, which only the service gives and only once: an instance that somebody else starts (Incus when a
#: member returns) never runs the app, and one that is started again ends at once. So an app has one writer at most.
#: The order is a file of shell commands through a FIFO in memory, so that Incus stores neither variables nor secrets.
#: While s6-log cannot write, on a full pool or root, it reads nothing and says so every two seconds. An app must not
#: wait for that: ``drop`` reads instead then, and leaves a line in the log.
ENTRY = rf"""#!/bin/sh
umask 022
if [ -e {ORDERED} ]; then : >{RESTARTED}; exit 0; fi
mkdir -m 700 /run/builderd
mkfifo -m 600 /run/builderd/order /run/builderd/out /run/builderd/err /run/builderd/stuck
log() {{
  LD_LIBRARY_PATH={FOLDER}/lib exec {FOLDER}/s6-log -b -l 1048576 n3 s"$LOG_BYTES" T {LOG}/"$1" </run/builderd/"$1" \
    2<>/run/builderd/stuck
}}
drop() {{
  while read -r line; do
    for name in out err stuck; do timeout {DROP_SECONDS} cat /run/builderd/$name >/dev/null & done
    wait
    timeout 1 echo "{DROPPED}" >/run/builderd/err
  done </run/builderd/stuck
}}
killed() {{
  cat /run/cgroup/memory.events /run/cgroup/memory/memory.oom_control 2>/dev/null |
    while read -r name count; do [ "$name" != oom_kill ] || echo "$count"; done
}}
run() {{
  log out & out=$!
  log err & err=$!
  drop 2>/dev/null &
  cd "$APP_FOLDER"
  setsid {_AS_APP} -- {FOLDER}/begin app "$@" \
    >/run/builderd/out 2>/run/builderd/err </dev/null 3</run/builderd/environment & app=$!
  # setsid made it the leader of a group: all that it started gets the signal.
  trap 'kill -TERM -$app' TERM INT PWR
  exec >/dev/null 2>&1
  wait $app; code=$?
  while kill -0 $app 2>/dev/null; do wait $app; code=$?; done
  # A process that the app left behind may keep the log open, and s6-log stays while it cannot write.
  ( sleep 0.5; kill -TERM $out $err; sleep {DROP_SECONDS}; kill -KILL $out $err ) & wait $out $err
  set -- $(killed)
  echo "$code ${{1:-0}} $(date +%s.%N)" >{EXIT_RECORD}.new && mv {EXIT_RECORD}.new {EXIT_RECORD}
  exit $code
}}
. /run/builderd/order
"""

#: ``run USER JOINED CAPABILITIES``: as root without capabilities but those, or as the app (USER 1000), which gets the
#: app's variables. tini is a subreaper here too: whatever the program starts stays below its process, and ``end`` finds
#: it. A terminal echoes nothing while ``begin`` reads. What Incus executes has incusd's score of kills for memory, and
#: not the instance's; a command can lower its own to that again, since only the host's root sets a least one.
RUN = rf"""#!/bin/sh
user=$1 joined=$2 kept=$3 modes=
{{ echo {OOM_SCORE} >/proc/self/oom_score_adj; }} 2>/dev/null
[ "$joined" = 0 ] || exec 2>&1
if [ -t 0 ]; then modes=$(stty -g); stty raw -echo; fi
if [ "$user" = {APP_UID} ] && [ -e /run/builderd/environment ]; then
  exec 3</run/builderd/environment
else
  exec 3</dev/null
fi
exec /usr/bin/tini -s -- setpriv --bounding-set="$kept" --inh-caps="$kept" --ambient-caps="$kept" --no-new-privs \
  --pdeathsig KILL --reuid="$user" --regid="$user" --clear-groups -- {FOLDER}/begin command "$modes"
"""

#: ``begin app PROGRAM…`` or ``begin command MODES``, confined already: becomes the program with the variables of
#: descriptor 3. A command's specification (``specified``) comes by its input, once it has asked for it.
BEGIN = r"""#!/usr/bin/perl
use strict;
my ($kind, @words) = @ARGV;
open(my $kept, '<&=', 3) or die;
my @pairs = do { local $/; split /\0/, (<$kept> // '') };
close $kept;
sub take {
  my ($wanted, $taken) = (shift, '');
  while (length $taken < $wanted) {
    sysread(STDIN, $taken, $wanted - length $taken, length $taken) or exit 1;
  }
  return $taken;
}
if ($kind eq 'command') {
  syswrite STDOUT, "\005";
  my ($folder, $count, @rest) = split /\0/, take(hex take(8)), -1;
  system 'stty', $words[0] if $words[0] ne '';
  push @pairs, splice(@rest, 0, $count);
  @words = @rest;
  unless (chdir $folder) { syswrite STDOUT, "\025"; exit 1 }
  syswrite STDOUT, "\006" . getppid() . "\n";
}
%ENV = map { my ($name, $value) = split /=/, $_, 2; ($name, $value) } @pairs;
exec { $words[0] } @words;
print STDERR "$words[0]: $!\n";
exit 127;
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

#: ``deliver`` waits for the FIFO, and passes the order on.
_DELIVER = """#!/bin/sh
exec 2>&1
until [ -p /run/builderd/order ]; do sleep 0.01; done
exec cat >/run/builderd/order
"""

#: Most sockets that ``ports`` lists, those of the lowest ports: an app must not keep the service busy with them.
MOST_SOCKETS = 1024
#: Lists each address and port that listens once, in lines as those of proc_pid_net(5).
PORTS = r"""#!/usr/bin/perl
my %found;
for my $table ('net/tcp', 'net/tcp6') {
  open(my $file, '<', "/proc/$table") or next;
  while (<$file>) {
    my @fields = split;
    $found{$fields[1]} = hex((split /:/, $fields[1])[1]) if $fields[3] eq '0A';
  }
}
my @listed = sort { $found{$a} <=> $found{$b} } keys %found;
splice @listed, MOST if @listed > MOST;
print "0: $_ 0 0A\n" for @listed;
""".replace("MOST", str(MOST_SOCKETS))

PROGRAMS = {"entry": ENTRY, "run": RUN, "begin": BEGIN, "end": END, "deliver": _DELIVER, "ports": PORTS}

DELIVER, LIST_PORTS = ((*_CONFINED.split(), "--", f"{FOLDER}/{name}") for name in ("deliver", "ports"))


def order(
    argv: Sequence[str],
    env: Mapping[str, str],
    files: Mapping[str, str],
    secrets: Mapping[str, str],
    log_bytes: int,
    folder: str = APP,
) -> bytes:
    """Return the order that runs ``argv`` in ``folder`` with this environment.

    ``files`` are root's and readable by all. ``secrets`` are files below ``SECRETS_FOLDER``, which is in memory, for
    the app alone; raises ``ValueError`` for a path that leads elsewhere. The environment is kept for the commands
    beside the app, in a file that only root reads.
    """
    lines = [f": >{ORDERED}", f"LOG_BYTES={max(log_bytes // 4, 4096)} APP_FOLDER={shlex.quote(folder)}"]
    lines += [f"printf %s {shlex.quote(text)} >{shlex.quote(path)}" for path, text in files.items()]
    lines += _secret_files(secrets)
    pairs = "".join(f" {shlex.quote(f'{name}={value}')}" for name, value in env.items())
    # printf is a part of the shell: no process has the variables among its arguments.
    kept = f"printf '%s\\0'{pairs}" if pairs else ":"
    lines += [
        f"(umask 077; {kept} >/run/builderd/environment)",
        f"run {shlex.join(argv)}",
    ]
    return "\n".join(lines).encode() + b"\n"


def _secret_files(secrets: Mapping[str, str]) -> list[str]:
    """Return the commands that write ``<credential>/<variable>`` → text for the app alone."""
    if not secrets:
        return []
    written = {f"{SECRETS_FOLDER}/{relative_secret(name)}": text for name, text in secrets.items()}
    files = shlex.join(written)
    folders = shlex.join([SECRETS_FOLDER, *sorted({path.rpartition("/")[0] for path in written})])
    return [
        f"mkdir -m 700 {folders}",
        *(f"(umask 077; printf %s {shlex.quote(text)} >{shlex.quote(path)})" for path, text in written.items()),
        f"chmod 400 {files}; chmod 500 {folders}; chown {APP_UID}:{APP_UID} {files} {folders}",
    ]


def exec_argv(*, joined: bool) -> list[str]:
    """Return the argv that runs a program as the app does: its user and its variables, no capability."""
    return [f"{FOLDER}/run", str(APP_UID), str(int(joined)), "-all"]


def root_argv(*, user: int = 0, kept: str = "") -> list[str]:
    """Return the argv that runs a program of a build or a tool, with both streams joined.

    ``kept`` are the capabilities that it keeps, as setpriv names them (``+dac_read_search``).
    """
    return [f"{FOLDER}/run", str(user), "1", f"-all{',' + kept if kept else ''}"]


def specified(argv: Sequence[str], env: Mapping[str, str], folder: str) -> bytes:
    """Return the specification of a program for ``begin``: its length in hex (8 digits), then parts between NULs."""
    pairs = [f"{name}={value}" for name, value in env.items()]
    packed = "\0".join([folder, str(len(pairs)), *pairs, *argv]).encode()
    return f"{len(packed):08x}".encode() + packed


_UNUSED_SECONDS = 30 * 86_400.0
#: Folders of the image that are mounted over, with their modes.
FOLDERS = {
    **dict.fromkeys((HOME[1:], "layer", "node_modules", "mnt", FOLDER[1:], f"{FOLDER[1:]}/lib"), "755"),
    "disk": "711",
    "log": "700",
}


@dataclass(frozen=True, slots=True)
class Image:
    """Image on this host. ``name`` is its alias in Incus, ``rootfs`` the squashfs, ``base_id`` the base in it,
    ``unpacked_bytes`` its size on a member."""

    name: str
    rootfs: Path
    base_id: str
    unpacked_bytes: int


def ensure_image(progress: Progress, home: Path = HOST_HOME) -> Image:
    """Return the image, made if it is missing (half a minute). Blocks. Raises ``EngineUnavailable``."""
    base = ensure_base(progress=progress)
    files = host_programs()
    name = image_name(base.id, files)
    folder = home / "incus"
    rootfs = folder / f"{name}.squashfs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(folder / "lock"):
        if not rootfs.exists():
            progress("image: packing the base root file system for Incus (once per host)")
            _pack(base, files, rootfs)
            for other in folder.glob("*.squashfs"):
                if other != rootfs and time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                    other.unlink()
                    _size_file(other).unlink(missing_ok=True)
        os.utime(rootfs)
    return Image(name, rootfs, base.id, int(_size_file(rootfs).read_text()))


def host_programs() -> Mapping[str, Path]:
    """Return the path in the image of each program that comes from this host. Raises ``EngineUnavailable``."""
    logger = shutil.which("s6-log", path=SEARCH_PATH)
    if logger is None:
        raise EngineUnavailable("s6-log, which keeps the apps' logs, is not installed: apt-get install s6.")
    files = {f"{FOLDER[1:]}/s6-log": Path(logger), "usr/local/bin/uv": Path(find_uv_bin())}
    for line in _output("ldd", logger).splitlines():
        if found := re.match(r"\s*(libskarnet\S+) => (/\S+)", line):
            files[f"{FOLDER[1:]}/lib/{found[1]}"] = Path(found[2])
    if restic := shutil.which("restic", path=SEARCH_PATH):
        files["usr/local/bin/restic"] = Path(restic)
    if CA_BUNDLE.exists():
        files[str(CA_BUNDLE)[1:]] = CA_BUNDLE
    return files


def image_name(base_id: str, files: Mapping[str, Path]) -> str:
    """Name an image by all that decides its content."""
    digest = hashlib.sha256(f"image 2\n{base_id}\n{PROGRAMS}\n{FOLDERS}\n".encode())
    for target, source in sorted(files.items()):
        with source.open("rb") as content:
            digest.update(f"{target} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"builderd-{digest.hexdigest()[:16]}"


def _pack(base: Base, files: Mapping[str, Path], target: Path) -> None:
    unfinished = target.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    programs = target.with_suffix(".programs")
    programs.mkdir(exist_ok=True)
    try:
        for name, text in PROGRAMS.items():
            (programs / name).write_text(text)
        users = (base.root / "etc/passwd").read_text()
        (programs / "passwd").write_text(users.replace(":/app:", f":{HOME}:"))
        added = {f"{FOLDER[1:]}/{name}": programs / name for name in PROGRAMS} | dict(files)
        added["etc/passwd"] = programs / "passwd"
        _output(*pack_argv(base.root, added, unfinished))
        size = int(_output("du", "--summarize", "--block-size=1", str(base.root)).split()[0])
        _size_file(target).write_text(str(size + sum(path.stat().st_size for path in added.values())))
        unfinished.rename(target)
    finally:
        shutil.rmtree(programs)
        unfinished.unlink(missing_ok=True)


def _size_file(rootfs: Path) -> Path:
    """Return the file that has the size of the unpacked image."""
    return rootfs.with_suffix(".size")


def pack_argv(root: Path, added: Mapping[str, Path], target: Path) -> list[str]:
    """Return the command that packs ``root`` with files added to it, whose paths there are the keys."""
    pseudo = [f"{name} d {mode} 0 0" for name, mode in FOLDERS.items() if not (root / name).exists()]
    pseudo += [f"{name} f {'644' if name.startswith('etc/') else '755'} 0 0 cat {path}" for name, path in added.items()]
    excluded = [name for name in added if (root / name).exists()]
    return [
        *("mksquashfs", str(root), str(target), "-noappend", "-quiet", "-no-progress"),
        *("-comp", "zstd", "-Xcompression-level", "1"),
        *(word for line in pseudo for word in ("-p", line)),
        *(("-e", *excluded) if excluded else ()),
    ]


def metadata(image: Image, architecture: str) -> bytes:
    """Return the metadata tarball of a split image."""
    described = {
        "architecture": architecture,
        "creation_date": int(image.rootfs.stat().st_mtime),
        "properties": {"description": f"builderd base {image.base_id}"},
    }
    text = json.dumps(described).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("metadata.yaml")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return packed.getvalue()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lock the folder of images: another process may be packing."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except FileNotFoundError as error:
        package = {"mksquashfs": "squashfs-tools"}.get(argv[0], argv[0])
        raise EngineUnavailable(f"{argv[0]} is not installed: apt-get install {package}.") from error
    except subprocess.CalledProcessError as error:
        raise EngineUnavailable(f"{argv[0]} failed: {error.stderr.strip()}") from error
