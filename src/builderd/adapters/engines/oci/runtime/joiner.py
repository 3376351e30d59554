"""The program that joins sandboxes (``join.c``), compiled once a host for each version of its source."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from builderd.adapters.engines.oci.storage.base import HOST_HOME
from builderd.domain.preflight import SEARCH_PATH

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("join.c")
#: The source holds this architecture's system calls.
MACHINE = "x86_64"
COMPILER = "tcc"
_OPTIONS = ("-nostdlib", "-static")
_SECONDS = 60


def ensure_joiner(home: Path = HOST_HOME) -> Path | None:
    """Return the compiled program, made if there is none (10 ms); None where it cannot be made. Blocks.

    Without it commands begin by the runtime's own ``exec``.
    """
    compiler = shutil.which(COMPILER, path=SEARCH_PATH)
    program = home / "join" / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    if platform.machine() != MACHINE:
        return None
    if program.exists():
        return program
    if compiler is None:
        log.info("joining program not compiled, commands begin by the runtime's exec missing=%s", COMPILER)
        return None
    program.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        _compile(compiler, program)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("joining program not compiled, commands begin by the runtime's exec error=%s", _words_of(error))
        return None
    return program


def _compile(compiler: str, program: Path) -> None:
    """Compile beside its name and rename: another service of this host may do the same."""
    handle, unfinished = tempfile.mkstemp(dir=program.parent, prefix=".")
    os.close(handle)
    try:
        command = [compiler, *_OPTIONS, "-o", unfinished, str(SOURCE)]
        subprocess.run(
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS, env={}
        )
        Path(unfinished).chmod(0o755)
        # A crash of the machine after the rename must not find an empty file under the final name.
        with Path(unfinished).open("rb") as file:
            os.fsync(file)
        os.replace(unfinished, program)  # noqa: PTH105
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _words_of(error: Exception) -> str:
    return str(getattr(error, "stderr", None) or error).strip()
