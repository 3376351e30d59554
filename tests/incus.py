"""A cluster of Incus on this machine for tests, made by ``script/incus-cluster``: each member in namespaces of its own.

A test that needs it works in the network of the first member, as the service does: what it connects to, and what it
starts, is there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.engines import settings_in

from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.linux.syscalls import CLONE_NEWNET, setns

SCRIPT = Path(__file__).parents[1] / "script/incus-cluster"
#: Of making a cluster, against hanging only.
UP_SECONDS = 120


@dataclass(frozen=True, slots=True)
class IncusCluster:
    """A running cluster: its name, and the folder that holds all of it."""

    name: str
    folder: Path
    env: dict[str, str]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``script/incus-cluster``."""
        return subprocess.run(
            [SCRIPT, *words], env=self.env, check=check, capture_output=True, text=True, timeout=UP_SECONDS
        )

    def socket(self, member: int = 1) -> Path:
        return self.folder / f"node{member}/unix.socket"

    def options(self, project: str = "contract") -> IncusOptions:
        return IncusOptions(socket=self.socket(), project=project)

    @contextmanager
    def network_of(self, member: int = 1) -> Iterator[None]:
        """Let this thread, and what it starts, work in the network of a member."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        other = os.open(f"/run/netns/{self.name}-{member}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(other, CLONE_NEWNET)
            yield
        finally:
            setns(own, CLONE_NEWNET)
            os.close(own)
            os.close(other)


@contextmanager
def running_cluster(members: int) -> Iterator[IncusCluster]:
    """A cluster of its own, removed at the end. Where Incus cannot run, the test fails and says why."""
    name = f"bd{os.getpid() % 100_000}{members}"
    folder = Path("/var/tmp") / name
    env = {**os.environ, "BUILDERD_INCUS_NAME": name, "BUILDERD_INCUS_DIR": str(folder)}
    cluster = IncusCluster(name, folder, env)
    try:
        made = cluster.run("up", str(members), check=False)
        if made.returncode:
            pytest.fail(f"Incus cannot run on this machine: {made.stderr.strip()}", pytrace=False)
        yield cluster
    finally:
        cluster.run("down")


@asynccontextmanager
async def prepared_incus(cluster: IncusCluster, data_dir: Path) -> AsyncIterator[IncusEngine]:
    """An engine on this cluster; at the end everything that runs in its project is removed, and it is closed."""
    engine = IncusEngine(settings_in(data_dir), cluster.options())
    with cluster.network_of():
        await engine.prepare(lambda line: None)
        try:
            yield engine
        finally:
            await engine.prepare(lambda line: None)
            for report in await engine.list_sandboxes():
                await engine.stop(report.id, 0)
                await engine.remove(report.id)
                if report.builder_id:
                    await engine.delete_logs(report.builder_id)
            await engine.close()
