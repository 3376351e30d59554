"""A cluster of Incus on this machine for tests, made by ``script/incus-cluster``: each member in namespaces of its own.

A test that needs it works in the network of the first member, as the service does: what it connects to, and what it
starts, is there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import count
from pathlib import Path

import pytest
from tests.engines import settings_in

from builderd.engine.incus.client import IncusOptions
from builderd.engine.incus.engine import IncusEngine
from builderd.linux.syscalls import CLONE_NEWNET, setns

SCRIPT = Path(__file__).parents[1] / "script/incus-cluster"
#: Of making a cluster, against hanging only.
UP_SECONDS = 120
#: Folder of all clusters. Beside the folder of each lies a file that names the process that made it.
ROOT, OWNER = Path("/var/tmp"), ".owner"
#: Address that plays the internet on a cluster's switch, which is member 0.
INTERNET = "203.0.113.1"
_MADE = count()


@dataclass(frozen=True, slots=True)
class IncusCluster:
    """A running cluster: its name, and the folder of all of it."""

    name: str
    folder: Path
    env: dict[str, str]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``script/incus-cluster``."""
        return subprocess.run(
            [SCRIPT, *words], env=self.env, check=check, capture_output=True, text=True, timeout=UP_SECONDS
        )

    def inside(self, member: str) -> list[str]:
        """Return the command that runs the words after it inside a member."""
        names = [f"{name}={self.env[name]}" for name in ("BUILDERD_INCUS_NAME", "BUILDERD_INCUS_DIR")]
        return ["env", *names, str(SCRIPT), "exec", member.removeprefix("node")]

    def in_pool(self, member: str, names: Iterable[str]) -> list[str]:
        """Return the folders of volumes (``custom/PROJECT_NAME``) and instances (``containers/…``) inside a member."""
        return [f"{self.folder}/{member}/storage-pools/default/{name}" for name in names]

    def socket(self, member: int = 1) -> Path:
        return self.folder / f"node{member}/unix.socket"

    def options(self, project: str = "contract") -> IncusOptions:
        """Options of an engine beside a service: with a network of its own."""
        return IncusOptions(
            socket=self.socket(), project=project, network="contract", subnet=IPv4Network("10.97.0.0/16")
        )

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


def address_of(member: int) -> str:
    """Return the address of a member on the network of its cluster."""
    return f"10.98.0.{10 + member}"


def start_time(pid: int) -> str:
    """Return when a process was started, in ticks since the machine was (proc_pid_stat(5)); "" of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def sweep_clusters(root: Path = ROOT) -> list[str]:
    """Remove clusters whose test process was killed, and return their names."""
    gone = []
    for owner in root.glob(f"bd*{OWNER}"):
        # Another process may be sweeping, too.
        with suppress(FileNotFoundError):
            pid, started = owner.read_text().split()
            if start_time(int(pid)) != started:
                cluster = cluster_named(owner.name.removesuffix(OWNER), root)
                cluster.run("down")
                owner.unlink()
                gone.append(cluster.name)
    return gone


def cluster_named(name: str, root: Path = ROOT) -> IncusCluster:
    folder = root / name
    env = {**os.environ, "BUILDERD_INCUS_NAME": name, "BUILDERD_INCUS_DIR": str(folder)}
    return IncusCluster(name, folder, env)


def running_cluster(members: int, pool: str = "") -> AbstractContextManager[IncusCluster]:
    """A cluster of its own, removed at the end. Where Incus cannot run, the test fails and says why.

    ``pool`` is the size of each member's pool, where it is not the usual one.
    """
    return _powered_on("up", members, pool)


def blank_members(members: int) -> AbstractContextManager[IncusCluster]:
    """Servers on one network that nobody has made a cluster of, removed at the end."""
    return _powered_on("blank", members)


@contextmanager
def _powered_on(how: str, members: int, pool: str = "") -> Iterator[IncusCluster]:
    sweep_clusters()
    cluster = cluster_named(f"bd{os.getpid() % 100_000}{chr(97 + next(_MADE))}")
    if pool:
        cluster.env["BUILDERD_INCUS_POOL"] = pool
    owner = cluster.folder.with_name(f"{cluster.name}{OWNER}")
    owner.write_text(f"{os.getpid()} {start_time(os.getpid())}")
    try:
        made = cluster.run(how, str(members), check=False)
        if made.returncode:
            pytest.fail(f"Incus cannot run on this machine: {made.stderr.strip()}", pytrace=False)
        yield cluster
    finally:
        cluster.run("down")
        owner.unlink()


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
            for report in await engine.sandboxes.list_sandboxes():
                await engine.sandboxes.stop(report.id, 0)
                await engine.sandboxes.remove(report.id)
                if report.builder_id:
                    await engine.logs.delete_logs(report.builder_id)
            await engine.close()
