"""Stream of events over the network: a server that vanishes without a word is noticed, and no end is missed."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec
from tests.incus import IncusCluster

from builderd.adapters.engines.incus import client as client_module
from builderd.adapters.engines.incus.client import IncusClient, IncusOptions
from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.adapters.engines.incus.reports import Events

pytestmark = [pytest.mark.root, pytest.mark.slow]


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
        events = Events(client, here.sandboxes.unreported_ends)
        try:
            with events.subscribed() as ends:
                await events.open()
                cable.cut = True
                await here.instances.kill(f"s-{spec.id}")
                async with asyncio.timeout(20):
                    while await ends.get() != spec.id:
                        pass
        finally:
            await events.close()
            await client.close()
