"""What is mounted anywhere on this host, in whatever namespace: what must not be taken away."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def mounted_roots() -> frozenset[str]:
    """The folders, as their file systems name them, that some process sees mounted somewhere."""
    roots: set[str] = set()
    namespaces: set[str] = set()
    for process in PROC.iterdir():
        if process.name.isdecimal():
            roots.update(_roots(process, namespaces))
    return frozenset(roots)


def _roots(process: Path, namespaces: set[str]) -> list[str]:
    """Those of a process, unless another one of the same namespace was looked at already. It may end meanwhile."""
    try:
        namespace = str((process / "ns/mnt").readlink())
        if namespace in namespaces:
            return []
        namespaces.add(namespace)
        return [line.split(" ")[3] for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
