"""A live service on the engine incus, in the network of a cluster's first member, where its caller is meanwhile."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.live_service import LiveService
from tests.incus import IncusCluster


@contextmanager
def service_on(cluster: IncusCluster, data_dir: Path, **more: str) -> Iterator[LiveService]:
    settings = {
        "BUILDERD_ENGINE": "incus",
        "BUILDERD_INCUS__SOCKET": str(cluster.socket()),
        # More disks than a member's small pool has room for at once.
        "BUILDERD_STORE__OVERCOMMIT": "20",
        **more,
    }
    # Started cold: a process that forks services would stay in the network that it was started in.
    service = LiveService(data_dir, settings, cold=True)
    with cluster.network_of():
        try:
            service.start()
            yield service
        finally:
            if service.is_up:
                service.terminate()
            subprocess.run(service.command("down"), env=service.environment(), check=True)
