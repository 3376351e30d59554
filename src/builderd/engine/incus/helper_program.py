"""Program of the helper instance: works on the files of volumes that are attached to it. Standard library only.

It reads a line of JSON, which names its one task, then frames where the task has content, from its input; it writes a
line of JSON, then frames where the answer has content. A frame is its length in eight digits of hex, then the bytes; an
empty one ends the content. Content without its end was broken off.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from builderd.code.model import Bundle, BundleFile
from builderd.core.errors import BuilderdError, ValidationFailed
from builderd.dependencies.model import NODE_MODULES, AppBuild
from builderd.engine.oci.storage import app_builds, tree
from builderd.engine.oci.storage.app_builds import FinishedBuild, layer_error, measure, write_version
from builderd.engine.oci.storage.subvolumes import folder
from builderd.files.model import Condition, FileEntry

#: Where volumes are attached.
VOLUMES = Path("/mnt")
OWNER = 1000
_APP, _INCOMING, _TRASH = "app", "incoming", "trash"
_PIECE_BYTES = 1 << 17
_HEX = 8
#: Seconds for which a deleted folder is emptied at once; what is left goes with the next deletion.
_CLEAR_SECONDS = 20.0

Json = dict[str, Any]


class BrokenOffError(Exception):
    """The content ended before its last frame."""


def read_frames(source: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of all frames. Raises ``BrokenOffError``."""
    while True:
        head = source.read(_HEX)
        if len(head) < _HEX:
            raise BrokenOffError
        length = int(head, 16)
        if not length:
            return
        data = source.read(length)
        if len(data) < length:
            raise BrokenOffError
        yield data


def frame(data: bytes) -> bytes:
    return f"{len(data):08x}".encode() + data


def say(answer: Json) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def entry_json(entry: FileEntry) -> Json:
    return asdict(entry) | {"modified_at": entry.modified_at.timestamp()}


def condition_of(request: Json) -> Condition:
    sets = {name: request.get(name) for name in ("matches", "differs")}
    return Condition(**{name: None if tags is None else frozenset(tags) for name, tags in sets.items()})


def _volume(request: Json) -> Path:
    return VOLUMES / str(request["volume"])


def app_of(request: Json) -> Path:
    """Return the folder ``app`` of the request's volume, made if missing."""
    app = _volume(request) / _APP
    if not app.exists():
        app.mkdir(mode=0o755)
        os.chown(app, OWNER, OWNER)
    return app


def private(request: Json, name: str) -> Path:
    """Return a folder of the volume beside ``app``, hidden from the app."""
    path = _volume(request) / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def list_files(request: Json) -> None:
    with folder(app_of(request)) as root:
        page = tree.list_folder(root, request["path"], request["skip"], request["count"])
    say({"entries": [entry_json(entry) for entry in page.entries], "total": page.total})


def open_file(request: Json) -> None:
    """Answer with the entry, then each line of input (start and length) with its bytes."""
    with folder(app_of(request)) as root:
        descriptor = tree.open_file(root, request["path"])
    say({"entry": entry_json(tree.make_entry(request["path"].rpartition("/")[2], os.fstat(descriptor)))})
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        start, length = map(int, line.split())
        end = start + length
        while start < end and (piece := os.pread(descriptor, min(_PIECE_BYTES, end - start), start)):
            out.write(frame(piece))
            start += len(piece)
        out.write(frame(b""))
        out.flush()


def write_file(request: Json) -> None:
    """Answer once what can be checked beforehand is right, then again when the file is there."""
    app, path, condition = app_of(request), request["path"], condition_of(request)
    with folder(app) as root:
        tree.check(root, path, condition)
    if request["size"] is not None and request["size"] > request["limit"]:
        raise OSError(errno.EDQUOT, "larger than the disk")
    with folder(private(request, _INCOMING)) as staging:
        flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
        with tree.closing(os.open(".", flags, 0o600, dir_fd=staging)) as staged:
            say({"ready": True})
            for piece in read_frames(sys.stdin.buffer):
                tree.write_all(staged, piece)
            os.fsync(staged)
            with folder(app) as root:
                present = tree.check(root, path, condition)
                os.fchown(staged, OWNER, OWNER)
                os.fchmod(staged, tree.mode_of(present, request["executable"]))
                entry = tree.put(root, path, staged, staging, OWNER)
    say({"entry": entry_json(entry), "new": present is None})


def delete_file(request: Json) -> None:
    with folder(app_of(request)) as root:
        moved = tree.delete(
            root,
            request["path"],
            condition_of(request),
            partial(folder, private(request, _TRASH)),
            recursive=request["recursive"],
        )
    say({})
    if moved:
        end = time.monotonic() + _CLEAR_SECONDS
        with folder(private(request, _TRASH)) as trash:
            tree.clear(trash, lambda: time.monotonic() > end)


def archive(request: Json) -> None:
    """Answer with the frames of a tar archive; its end says that it is whole."""
    argv = [*tree.TAR, f"--directory={app_of(request)}", "."]
    say({})
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as tar:
        assert tar.stdout
        while piece := tar.stdout.read(_PIECE_BYTES):
            sys.stdout.buffer.write(frame(piece))
    if tar.returncode in (0, tree.TAR_CHANGED):
        sys.stdout.buffer.write(frame(b""))


@contextmanager
def received_files(request: Json) -> Iterator[list[BundleFile]]:
    """Yield the files whose content follows, one after the other, in the order of the request."""
    spool = Path(f"/tmp/files-{os.getpid()}")  # noqa: S108 (of an instance without apps)
    spool.mkdir(mode=0o700)
    try:
        pieces, left, files = read_frames(sys.stdin.buffer), b"", []
        for number, (path, size, executable) in enumerate(request["files"]):
            stored = spool / str(number)
            with stored.open("wb") as file:
                missing = size
                while missing:
                    left = left or next(pieces)
                    file.write(left[:missing])
                    missing, left = missing - len(left[:missing]), left[missing:]
            files.append(BundleFile(path, tree.StoredContent(stored, size), executable))
        if next(pieces, None) is not None:
            raise BrokenOffError
        yield files
    finally:
        shutil.rmtree(spool)


def put_bundle(request: Json) -> None:
    """Bring a version onto the disk. ``written`` are the paths of the files that changed."""
    app_of(request)
    written = frozenset(request["written"])
    with received_files(request) as files:
        changed = [file for file in files if file.path in written]
        build = None
        if request["build"]:
            build = FinishedBuild(request["build_key"], VOLUMES / request["build"] / app_builds.FOLDER)
        disk = _volume(request)
        write_version(disk, (changed, request["removed"]), Bundle("", tuple(files)), build, OWNER)
    os.sync()
    say({})


def fill_build(request: Json) -> None:
    """Write a version's files into a build's layer, and the packages of its dependencies beside them."""
    layer = _volume(request)
    with received_files(request) as files:
        build = AppBuild(Bundle("", tuple(files)), None, request["root"])
        app_builds.place_files(layer, build, 0)
        packages = VOLUMES / request["dependencies"] / NODE_MODULES if request["dependencies"] else None
        if packages and packages.is_dir() and not app_builds.has_own_packages(build):
            shutil.copytree(packages, layer / "packages", symlinks=True)
    say({})


def finish_build(request: Json) -> None:
    """Reduce a build's layer to what it made, and measure it. ``error`` says why it cannot be kept."""
    layer, error = _volume(request), None
    if request["app"]:
        shutil.rmtree(layer / "packages", ignore_errors=True)
        with received_files(request) as files:
            try:
                app_builds.keep_result(layer, Bundle("", tuple(files)))
            except app_builds.BuildRefused as refused:
                error = f"error: {refused}"
    else:
        error = layer_error(layer)
    os.sync()
    has_packages = "1" if (layer / NODE_MODULES).is_dir() else ""
    say({"error_line": error, "bytes": measure(layer), "node": has_packages})


def put_home_in(request: Json) -> None:
    """Move the user's home of a copy among the files, where a backup finds it. Idempotent."""
    tree.put_home_in(_volume(request))
    say({})


def take_home_out(request: Json) -> None:
    """Move the home of a restored disk out of the files. Idempotent."""
    tree.take_home_out(_volume(request))
    os.sync()
    say({})


TASKS: Mapping[str, Callable[[Json], None]] = {
    task.__name__: task
    for task in (
        *(list_files, open_file, write_file, delete_file, archive),
        *(put_bundle, fill_build, finish_build, put_home_in, take_home_out),
    )
}


def error_json(error: Exception) -> Json:
    if isinstance(error, ValidationFailed):
        return {"error": "ValidationFailed", "errors": error.errors}
    if isinstance(error, BuilderdError):
        return {"error": type(error).__name__, "message": error.message}
    if isinstance(error, OSError):
        return {"error": "OSError", "errno": error.errno, "message": str(error)}
    return {"error": "Exception", "message": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Do the task of the first line."""
    request = json.loads(sys.stdin.buffer.readline())
    try:
        TASKS[request["task"]](request)
    except BrokenOffError:
        sys.exit(1)
    except Exception as error:
        say(error_json(error))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
