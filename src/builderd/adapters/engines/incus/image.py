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
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

from builderd.adapters.engines.incus.guest import FOLDER, PROGRAMS
from builderd.adapters.engines.oci.network.host_files import CA_BUNDLE, HOME
from builderd.adapters.engines.oci.storage.base import HOST_HOME, Base, ensure_base
from builderd.domain.errors import EngineUnavailable
from builderd.domain.inventory import SEARCH_PATH
from builderd.ports.engine import Progress

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
    """Hold the lock of the folder of images; another process may be packing."""
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
