"""Packages that others wrote: fetched by pip and npm as pinned in ``packages.txt``, and never installed or run here."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("packages.txt")
#: Larger files are data, and larger archives are no app.
MAX_FILE, MAX_FILES = 5_000_000, 20_000
FETCH_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Package:
    """A line of the list. ``entrypoint`` None: its example apps are what counts, else the package itself is an app."""

    source: str
    name: str
    version: str
    sha256: str
    entrypoint: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive."""

    content: bytes
    executable: bool


def read_list(path: Path = LIST) -> Sequence[Package]:
    """``<sdist | wheel | npm> <name> <version> <sha256> [entrypoint]`` on each line that is no comment."""
    lines = [line.split(None, 4) for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
    return [Package(*line) for line in lines]


def fetch(packages: Sequence[Package], cache: Path) -> dict[Package, Path]:
    """Their archives, by the ordinary clients. Raises where one is not what was pinned."""
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        archives = list(pool.map(lambda package: _archive(package, cache), packages))
    return dict(zip(packages, archives, strict=True))


def _archive(package: Package, cache: Path) -> Path:
    folder = cache / package.sha256
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as made:
            _download(package, Path(made))
            (found,) = Path(made).iterdir()
            digest = hashlib.sha256(found.read_bytes()).hexdigest()
            if digest != package.sha256:
                raise SystemExit(f"{package.title} has sha256 {digest}, and not what packages.txt says")
            folder.mkdir()
            found.rename(folder / found.name)
    (archive,) = folder.iterdir()
    return archive


def _download(package: Package, folder: Path) -> None:
    if package.source == "npm":
        argv = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        kind = "--no-binary" if package.source == "sdist" else "--only-binary"
        words = ["download", "--quiet", "--no-deps", kind, ":all:", f"{package.name}=={package.version}"]
        argv = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)} failed: {done.stderr.strip()[-500:]}")


def members(archive: Path) -> dict[str, Member]:
    """Its plain files by path, without the folder that holds them all. Nothing is written anywhere."""
    found = dict(_members(archive))
    tops = {path.partition("/")[0] for path in found}
    if len(tops) == 1 and all("/" in path for path in found):
        return {path.partition("/")[2]: member for path, member in found.items()}
    return found


def _members(archive: Path) -> Iterator[tuple[str, Member]]:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist()[:MAX_FILES]:
                if not entry.is_dir() and entry.file_size <= MAX_FILE:
                    yield entry.filename, Member(opened.read(entry), bool(entry.external_attr >> 16 & 0o100))
        return
    with tarfile.open(archive) as packed:
        for number, file in enumerate(packed):
            read = packed.extractfile(file) if file.isfile() and file.size <= MAX_FILE else None
            if read is not None and number < MAX_FILES:
                yield file.name, Member(read.read(), bool(file.mode & 0o100))
