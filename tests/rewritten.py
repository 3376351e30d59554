"""Compile the tests with pytest's assertions, once for all processes of pytest: python tests/rewritten.py

Started together in a fresh clone, each process rewrites all 750 files, 7 s of CPU, since none finds yet what another
is about to write. What is already compiled stays. Failing here costs the time only: pytest does it again.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _pytest.assertion import rewrite

STATE: Any = SimpleNamespace(trace=lambda _: None)
#: Of pytest's settings, this is the one that decides about the code.
CONFIG: Any = SimpleNamespace(getini={"enable_assertion_pass_hook": False}.__getitem__)


def compile_rewritten(file: Path) -> None:
    cache = rewrite.get_cache_dir(file)
    compiled = cache / f"{file.stem}{rewrite.PYC_TAIL}"
    if rewrite._read_pyc(file, compiled) is None and rewrite.try_makedirs(cache):
        source_hash, code = rewrite._rewrite_test(file, CONFIG)
        rewrite._write_pyc(STATE, code, source_hash, compiled)


if __name__ == "__main__":
    sys.setrecursionlimit(10_000)
    root = Path(__file__).parent
    files = [file for pattern in ("test_*.py", "conftest.py") for file in root.rglob(pattern)]
    with ProcessPoolExecutor() as processes:
        list(processes.map(compile_rewritten, files, chunksize=20))
