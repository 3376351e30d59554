"""Read a folder's files as a bundle, without caches, virtual environments and version control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from builderd.domain.bundles import MAX_FILES, Bundle, BundleFile, make_bundle

#: Folders that tools generate, and that are left out.
LEFT_OUT = frozenset(
    {".git", "node_modules", "__pycache__", ".venv", "venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
)
MAX_BYTES = 200_000_000


def read_folder(folder: Path) -> Bundle:
    """Return a folder's regular files; symbolic links are skipped, since they may lead out of the folder."""
    files: list[BundleFile] = []
    size = 0
    for path in _paths(folder):
        content = path.read_bytes()
        size += len(content)
        if len(files) >= 10 * MAX_FILES or size > MAX_BYTES:
            raise click.ClickException(
                f"{folder} holds more than {10 * MAX_FILES} files or {MAX_BYTES} bytes: name a smaller folder"
            )
        files.append(BundleFile(path.relative_to(folder).as_posix(), content, bool(path.stat().st_mode & 0o100)))
    return make_bundle(files)


def _paths(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name in LEFT_OUT:
            continue
        if path.is_dir():
            yield from _paths(path)
        elif path.is_file():
            yield path
