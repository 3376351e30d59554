"""The program that joins sandboxes (``join.c``) and starts programs for the launcher (``start.c``).

It is compiled once a host for each source, options and compiler.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from builderd.adapters.engines.oci.runtime.join import FAILED, sources_suffix
from builderd.adapters.engines.oci.storage.base import HOST_HOME
from builderd.domain.preflight import SEARCH_PATH

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("join.c")
_START, _HEADER = SOURCE.with_name("start.c"), SOURCE.with_name("join.h")
#: The source holds this architecture's system calls.
MACHINE = "x86_64"
COMPILER = "tcc"
_OPTIONS = ("-nostdlib", "-static")
_SECONDS = 60
#: Programs of other versions, and what a killed service left, are removed when no service has begun with them so long.
_KEPT_SECONDS = 30 * 86_400
#: Words for each part of the program that are tried before it is used, and the exit status of each.
_TRIALS = (
    ((), FAILED),
    (("start", "2", "/", "0", "0", "0", "0", "0", "/bin/true"), 0),
    (("limit", "0"), FAILED),
)
#: Of the header of a 64-bit ELF file: place of the section headers, their size and number. They are its end.
_SECTIONS, _SECTION_SIZE, _HEADER_BYTES = 40, 58, 64


def ensure_joiner(home: Path = HOST_HOME) -> Path | None:
    """Return the compiled program, made if there is none (10 ms); None where it cannot be made. Blocks.

    Without it commands begin by the runtime's own ``exec``, and other programs of the launcher by a fork.
    """
    if platform.machine() != MACHINE:
        return None
    compiler = shutil.which(COMPILER, path=SEARCH_PATH)
    if compiler is None:
        log.info(
            "joining program not compiled, commands begin by the runtime's exec, sandboxes by a fork missing=%s",
            COMPILER,
        )
        return None
    try:
        program = home / "join" / _name(compiler)
        program.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not _is_good(program):
            _compile(compiler, program)
        os.utime(program)
        _remove_old(program)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "joining program not compiled, commands begin by the runtime's exec, sandboxes by a fork error=%s",
            _words_of(error),
        )
        return None
    return program


def _name(compiler: str) -> str:
    """Return a name that differs with all that the program is made of, and ends as ``usable`` wants it."""
    sources = (one.read_bytes() for one in (SOURCE, _START, _HEADER))
    parts = (*sources, " ".join(_OPTIONS).encode(), _run(compiler, "-v").stdout.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16] + sources_suffix()


def _is_good(program: Path) -> bool:
    """Return True for a whole program that nobody but root could have written; log what is wrong with another file."""
    try:
        found = program.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning("joining program is not root's alone, compiled again file=%s", program)
        return False
    try:
        _refuse_damaged(program)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("joining program damaged, compiled again error=%s", _words_of(error))
        return False
    return True


def _refuse_damaged(program: Path) -> None:
    """Raise ``OSError`` or ``SubprocessError`` unless it is whole, and each of its parts ends as it should.

    The compiler succeeds also on a full disk, where its output is cut; one of another version may compile wrongly.
    """
    content = program.read_bytes()
    if len(content) < _HEADER_BYTES:
        raise OSError(f"{program} has only {len(content)} bytes")
    (sections,) = struct.unpack_from("<Q", content, _SECTIONS)
    size, count = struct.unpack_from("<HH", content, _SECTION_SIZE)
    if len(content) != sections + size * count:
        raise OSError(f"{program} has {len(content)} bytes instead of {sections + size * count}")
    for words, wanted in _TRIALS:
        status = _run(str(program), *words, check=False).returncode
        if status != wanted:
            raise OSError(f"{' '.join((str(program), *words))} ends with {status} instead of {wanted}")


def _compile(compiler: str, program: Path) -> None:
    """Compile beside its name and rename: another service of this host may do the same."""
    handle, unfinished = tempfile.mkstemp(dir=program.parent, prefix=".")
    os.close(handle)
    try:
        _run(compiler, *_OPTIONS, "-o", unfinished, str(SOURCE), str(_START))
        Path(unfinished).chmod(0o755)
        _refuse_damaged(Path(unfinished))
        # A crash of the machine after the rename must not find an empty file under the final name.
        with Path(unfinished).open("rb") as file:
            os.fsync(file)
        os.replace(unfinished, program)  # noqa: PTH105
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=check,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=_SECONDS,
        env={},
    )


def _remove_old(program: Path) -> None:
    before = time.time() - _KEPT_SECONDS
    for entry in os.scandir(program.parent):
        if entry.name != program.name and entry.stat(follow_symlinks=False).st_mtime < before:
            Path(entry).unlink(missing_ok=True)


def _words_of(error: Exception) -> str:
    return str(getattr(error, "stderr", None) or error).strip()
