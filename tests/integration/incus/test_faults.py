"""Faults of Incus's parts while the service runs, what an earlier service left, and who sees variables."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec, settings_in, until_listening
from tests.incus import IncusCluster, running_cluster

from builderd.core.ids import DiskId, new_id
from builderd.core.resources import GB
from builderd.engine.incus import client as client_module
from builderd.engine.incus.client import IncusClient, IncusOptions
from builderd.engine.incus.disks import volume_of
from builderd.engine.incus.engine import IncusEngine
from builderd.engine.incus.instance import document
from builderd.engine.port import Tool
from builderd.executions.model import ProcessSpec, Window
from builderd.files.model import Condition
from builderd.sandboxes.model import SandboxState

pytestmark = [pytest.mark.root, pytest.mark.slow]


async def written_disk(engine: IncusEngine) -> DiskId:
    """A disk with a file, for which a helper has it attached."""
    disk = DiskId(new_id())
    await engine.disks.create_disk(disk, GB)

    async def content() -> AsyncIterator[bytes]:
        yield b"kept"

    await engine.files.write_file(disk, "note", content(), condition=Condition())
    return disk


async def names(engine: IncusEngine, disk: DiskId) -> list[str]:
    return [entry.name for entry in (await engine.files.list_files(disk, "", 0, 10)).entries]


async def test_helper_that_ended_is_started_or_made_again(engine: IncusEngine) -> None:
    disk, here = await written_disk(engine), engine._here
    helper = here.helper(here.cluster.own)
    await here.instances.kill(helper.name)
    assert await names(engine, disk) == ["note"]
    await here.instances.delete(helper.name)
    assert await asyncio.gather(*(names(engine, disk) for _ in range(4))) == [["note"]] * 4
    await engine.disks.delete_disk(disk)


async def test_volumes_that_another_service_left_attached_are_detached_at_start(
    engine: IncusEngine, cluster: IncusCluster, data_dir: Path
) -> None:
    disk, here = await written_disk(engine), engine._here
    limits = here.instances.template(cpu=1, memory_bytes=GB, processes=100)
    old = replace(limits, name="helper-of-an-earlier-release")
    body = document(old, here.client.project) | {"start": False}
    body["devices"]["v-1"] = {"type": "disk", "pool": old.pool, "source": volume_of(disk), "path": "/mnt/x"}
    await here.client.call("POST", "/instances", body)
    other = IncusEngine(settings_in(data_dir), cluster.options())
    await other.prepare(lambda line: None)
    try:
        await other.disks.delete_disk(disk)
        assert await other.disks.disk(disk) is None
    finally:
        await other.close()


async def test_start_that_fails_leaves_neither_instance_nor_address(
    engine: IncusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await make_spec(engine, apps.SILENT)
    before = engine._here.instances.index.addresses()
    monkeypatch.setattr(engine._here.instances, "image", "no-such-image")
    with pytest.raises(Exception, match="Image not provided"):
        await engine.sandboxes.start(spec)
    assert engine._here.instances.index.addresses() == before
    assert (await engine.sandboxes.report(spec.id)).state is SandboxState.ABSENT


async def test_member_that_joins_later_runs_apps(tmp_path: Path) -> None:
    with running_cluster(1) as cluster, cluster.network_of():
        engine = IncusEngine(settings_in(tmp_path), cluster.options())
        await engine.prepare(lambda line: None)
        try:
            await engine.disks.create_disk(DiskId(new_id()), GB)
            await asyncio.to_thread(cluster.run, "up", "2")
            # Placed where fewer disks are.
            spec = await make_spec(engine, apps.SERVER)
            assert await engine._here.disks.member(spec.disk) == "node2"
            report = await engine.sandboxes.start(spec)
            await until_listening(engine, spec.id)
            async with asyncio.timeout(30):
                while not await answers(report.ip or ""):
                    await asyncio.sleep(0.1)
            await engine.down()
        finally:
            await engine.close()


async def answers(ip: str) -> bool:
    """Return True once a connection from the service's machine is accepted."""
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(ip, apps.PORT)
    except OSError:
        return False
    writer.close()
    return True


@dataclass
class Cable:
    """A way to the server's port. Once ``cut``, the connections that are open pass nothing on, and stay open."""

    target: str
    port: int = 0
    cut: bool = False
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self.target, 8443)
        self.writers += [writer, far_writer]
        was_cut = self.cut

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while piece := await source.read(1 << 16):
                if self.cut and not was_cut:
                    continue
                target.write(piece)

        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer), return_exceptions=True)


@asynccontextmanager
async def cable_to(address: str) -> AsyncIterator[Cable]:
    cable = Cable(address)
    server = await asyncio.start_server(cable.connect, "127.0.0.1", 0)
    cable.port = server.sockets[0].getsockname()[1]
    try:
        yield cable
    finally:
        server.close()
        for writer in cable.writers:
            writer.transport.abort()


async def trusted(engine: IncusEngine, cluster: IncusCluster, folder: Path, port: int) -> IncusOptions:
    """Options of a client that the server trusts, by a certificate of its own."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request += ["-subj", "/CN=test", "-days", "1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True)
    text = "".join(line for line in certificate.read_text().splitlines() if not line.startswith("-"))
    assert base64.b64decode(text)
    body = {"type": "client", "name": "test", "certificate": text}
    await engine._here.client.call("POST", "/certificates", body)
    return replace(
        cluster.options(),
        url=f"https://127.0.0.1:{port}",
        certificate=certificate,
        key=key,
        server_certificate=cluster.folder / "node1/cluster.crt",
    )


async def test_end_during_a_silent_loss_of_the_connection_is_reported(
    engine: IncusEngine, cluster: IncusCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PROBE_SECONDS", 1.0)
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    here = engine._here
    async with cable_to("10.98.0.11") as cable:
        client = IncusClient(await trusted(engine, cluster, tmp_path, cable.port))
        monkeypatch.setattr(here.sandboxes, "_client", client)
        try:
            lost = asyncio.ensure_future(anext(here.sandboxes.exits()))
            async with asyncio.timeout(20):
                while not cable.writers:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(1)
                cable.cut = True
                await here.instances.kill(f"s-{spec.id}")
                with pytest.raises(StopAsyncIteration):
                    await lost
                # As the reconciler asks again.
                assert await anext(here.sandboxes.exits()) == spec.id
        finally:
            await client.close()


NEEDLE = "needle-in-a-variable"


def arguments() -> list[str]:
    """Return the arguments of all processes of this machine that have the needle."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if NEEDLE in text:
            found.append(text)
    return found


async def shown_by_incus(engine: IncusEngine) -> str:
    client = engine._here.client
    asked = (client.get("/operations", recursion="1"), client.get("/instances", recursion="2"))
    return json.dumps(await asyncio.gather(*asked))


@pytest.mark.parametrize("window", [None, Window()])
async def test_variables_of_an_app_and_its_commands_are_shown_to_nobody(
    engine: IncusEngine, window: Window | None
) -> None:
    spec = await make_spec(engine, apps.SILENT, env={"PORT": "8000", "OF_APP": NEEDLE})
    await engine.sandboxes.start(spec)
    command = ProcessSpec(
        ("/bin/sh", "-c", "echo $OF_APP $OF_COMMAND; read line"), env={"OF_COMMAND": NEEDLE}, window=window
    )
    async with engine.sandboxes.open_process(spec.id, command) as process:
        output = b""
        while output.count(b"needle") < 2:
            output += await process.read()
        assert arguments() == []
        assert NEEDLE not in await shown_by_incus(engine)
        await process.write(b"end\n")
        while await process.read():
            pass
        assert await process.wait() == 0
    assert output.decode().split() == [NEEDLE, NEEDLE]


async def test_variables_of_a_tool_are_shown_to_nobody(engine: IncusEngine) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    tool = Tool(("/bin/sh", "-c", "echo $PASSWORD; exec sleep 5"), {"PASSWORD": NEEDLE}, timeout_seconds=60)
    running = asyncio.create_task(engine.tools.run_tool(tool, begun.put_nowait))
    assert await begun.get() == NEEDLE
    assert arguments() == []
    assert NEEDLE not in await shown_by_incus(engine)
    assert (await running).exit_code == 0
