"""Resource limits of a confined process: applied to this one (setrlimit(2)), or as options of prlimit(1)."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass

#: Seconds between SIGXCPU, which names the reason, and SIGKILL, which does not.
_CPU_GRACE = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one process; None: as it is. It never leaves a core dump.

    ``memory`` is what it writes to, ``address_space`` also what is only reserved, as Node.js does with terabytes.
    ``processes`` counts all of its user.
    """

    cpu_seconds: int | None = None
    memory: int | None = None
    address_space: int | None = None
    file_bytes: int | None = None
    processes: int | None = None
    descriptors: int | None = None

    def apply(self) -> None:
        """Set them for this process and its children."""
        for kind, _, soft, hard in self._given():
            resource.setrlimit(kind, (soft, hard))

    def arguments(self) -> list[str]:
        """Return them as options of prlimit(1)."""
        return [f"--{name}={soft}:{hard}" for _, name, soft, hard in self._given()]

    def _given(self) -> Iterator[tuple[int, str, int, int]]:
        limits = (
            (resource.RLIMIT_CPU, "cpu", self.cpu_seconds),
            (resource.RLIMIT_DATA, "data", self.memory),
            (resource.RLIMIT_AS, "as", self.address_space),
            (resource.RLIMIT_FSIZE, "fsize", self.file_bytes),
            (resource.RLIMIT_NPROC, "nproc", self.processes),
            (resource.RLIMIT_NOFILE, "nofile", self.descriptors),
            (resource.RLIMIT_CORE, "core", 0),
        )
        for kind, name, limit in limits:
            if limit is not None:
                yield kind, name, limit, limit + _CPU_GRACE if name == "cpu" else limit
