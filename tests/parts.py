"""List the files of one part of the suite: python tests/parts.py real|incus|heavy|fast

``real``: files that may hold tests with a marker of NEEDS, each of their own file or one of a fixture that a
conftest.py beside or above it makes; a line that also says ``slow`` is about tests of script/soak. ``incus``: files
with tests on a cluster of Incus, which one process runs. ``heavy``: those of heavy.txt. ``fast``: all others that may
hold a test without such a marker. Collecting only these files saves each process of pytest importing the others.
tests/conftest.py checks that none is missed.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
NEEDS_ROOT = ("root", "postgres")
NEEDS = (*NEEDS_ROOT, "haproxy")
_MARKS = rf"\bmark\.(?:{'|'.join(NEEDS)})\b"


@cache
def may_need(path: Path) -> bool:
    """Return True if the file may hold tests with a marker of NEEDS that script/test runs."""
    folders = [folder for folder in path.parents if folder.is_relative_to(ROOT) and folder != ROOT]
    files = (path, *(folder / "conftest.py" for folder in folders))
    return any(_has(file, rf"^(?!.*\bmark\.slow\b).*{_MARKS}") for file in files)


@cache
def may_use_incus(path: Path) -> bool:
    """Return True if the file may hold tests with the marker ``incus`` that script/test runs."""
    return _has(path, r"\bmark\.engines\b")


@cache
def heavy() -> frozenset[Path]:
    """Return the files whose tests use so much CPU that ``script/test --fast`` leaves them out."""
    lines = (ROOT / "heavy.txt").read_text().splitlines()
    return frozenset(ROOT / line for line in lines if not line.startswith("#"))


@cache
def _has(file: Path, pattern: str) -> bool:
    return file.exists() and re.search(pattern, file.read_text(), re.MULTILINE) is not None


def files(part: str) -> list[Path]:
    files = sorted(ROOT.rglob("test_*.py"))
    match part:
        case "real":
            return [file for file in files if may_need(file)]
        case "incus":
            return [file for file in files if may_use_incus(file)]
        case "heavy":
            return [file for file in files if file in heavy()]
        case "fast":
            return [file for file in files if file not in heavy() and not _has(file, rf"^pytestmark = .*{_MARKS}")]
        case _:
            raise SystemExit(f"unknown part {part!r}: real, incus, heavy or fast")


if __name__ == "__main__":
    sys.stdout.writelines(f"{file}\n" for file in files(sys.argv[1]))
