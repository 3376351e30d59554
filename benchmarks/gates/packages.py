"""Packages that others wrote: fetched as pinned in ``packages.txt``, and never installed or run here.

Those of Python come from the index itself: pip, asked to download the source of one, runs its build for its name.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import ssl
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LIST = Path(__file__).with_name("packages.txt")
#: Larger files are data, and larger archives are no app.
MAX_FILE, MAX_FILES = 5_000_000, 20_000
FETCH_SECONDS = 300
#: Of PEP 691.
INDEX_TYPE = "application/vnd.pypi.simple.v1+json"


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
    """Their archives. Raises where one is not what was pinned."""
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
    if package.source != "npm":
        _from_index(package, folder)
        return
    argv = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)} failed: {done.stderr.strip()[-500:]}")


def _from_index(package: Package, folder: Path) -> None:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    # The machine's own certificate authorities, as pip's are.
    client = httpx.Client(follow_redirects=True, timeout=FETCH_SECONDS, verify=ssl.create_default_context())
    with client:
        page = client.get(f"{index}/{package.name}/", headers={"Accept": INDEX_TYPE}).raise_for_status()
        files: list[dict[str, Any]] = page.json()["files"]
        file = next((one for one in files if one["hashes"].get("sha256") == package.sha256), None)
        if file is None:
            raise SystemExit(f"{index} has no file of {package.title} with the sha256 in packages.txt")
        content = client.get(page.url.join(file["url"])).raise_for_status().content
        (folder / Path(file["filename"]).name).write_bytes(content)


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
