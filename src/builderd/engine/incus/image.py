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

from builderd.core.errors import EngineUnavailable
from builderd.dependencies.model import APP
from builderd.engine.inventory import SEARCH_PATH
from builderd.engine.oci.network.host_files import CA_BUNDLE, HOME
from builderd.engine.oci.runtime.creation import OOM_SCORE, relative_secret
from builderd.engine.oci.storage.base import APP_UID, HOST_HOME, Base, ensure_base
from builderd.engine.port import Progress
from builderd.sandboxes.model import SECRETS_FOLDER

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

#: Most sockets that ``ports`` lists, those of the lowest ports: an app must not keep the service busy with them.
MOST_SOCKETS = 1024
_VALUES = {
    "APP_UID": APP_UID,
    "CONFINED": _CONFINED,
    "DROPPED": DROPPED,
    "DROP_SECONDS": DROP_SECONDS,
    "EXIT_RECORD": EXIT_RECORD,
    "FOLDER": FOLDER,
    "LOG": LOG,
    "MOST_SOCKETS": MOST_SOCKETS,
    "OOM_SCORE": OOM_SCORE,
    "ORDERED": ORDERED,
    "RESTARTED": RESTARTED,
}
#: The instances' programs, each with its ``@NAMES@`` replaced.
PROGRAMS = {
    path.name: re.sub(r"@([A-Z_]+)@", lambda found: str(_VALUES[found[1]]), path.read_text())
    for path in sorted(Path(__file__).with_name("programs").iterdir())
}


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


def ensure_image(progress: Progress, index: str | None, home: Path = HOST_HOME) -> Image:
    """Return the image, made if it is missing (half a minute). Blocks. Raises ``EngineUnavailable``."""
    base = ensure_base(progress, index=index)
    files = host_programs()
    # Named by all that decides its content.
    digest = hashlib.sha256(f"image 2\n{base.id}\n{PROGRAMS}\n{FOLDERS}\n".encode())
    for target, source in sorted(files.items()):
        with source.open("rb") as content:
            digest.update(f"{target} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    name = f"builderd-{digest.hexdigest()[:16]}"
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
