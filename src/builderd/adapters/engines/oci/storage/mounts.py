"""Mounts in all mount namespaces of this host: mounted folders must not be removed."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def mounted_roots() -> frozenset[str]:
    """Return the roots, as paths within their file systems, of all mounts that any process has."""
    roots: set[str] = set()
    namespaces: set[str] = set()
    for process in PROC.iterdir():
        if process.name.isdecimal():
            roots.update(_roots(process, namespaces))
    return frozenset(roots)


def _roots(process: Path, namespaces: set[str]) -> list[str]:
    """Return a process's mounts; none when its namespace was read already, or it has ended."""
    try:
        namespace = str((process / "ns/mnt").readlink())
        if namespace in namespaces:
            return []
        namespaces.add(namespace)
        return [line.split(" ")[3] for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
