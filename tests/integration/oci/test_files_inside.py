"""Changes of files by callers beside a running app, as the app sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.files import UNCONDITIONAL
from builderd.domain.versions import Isolation

pytestmark = pytest.mark.root


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize("isolation", Isolation)
async def test_an_app_sees_files_that_are_put_and_deleted_beside_it(engine: OciEngine, isolation: Isolation) -> None:
    spec = await make_spec(engine, apps.SILENT, isolation=isolation)
    await engine.disks.put_bundle(spec.disk, make_bundle([BundleFile("old.txt", b"old")]))
    await engine.sandboxes.start(spec)

    async def inside(command: str) -> str:
        return (await execute(engine, spec.id, command, ENGINE_TIMEOUT, 1000)).output

    assert await inside("cat old.txt; ls deep new.txt 2>/dev/null") == "old", "what was looked for may be remembered"
    for path, content in (("new.txt", b"new"), ("deep/er/new.txt", b"deep"), ("old.txt", b"changed")):
        await engine.files.write_file(spec.disk, path, one(content), condition=UNCONDITIONAL)
    assert await inside("cat new.txt deep/er/new.txt old.txt") == "newdeepchanged"
    await engine.files.delete_file(spec.disk, "new.txt", UNCONDITIONAL)
    assert await inside("ls; echo own > own.txt") == "deep\nold.txt\n"
    async with engine.files.open_file(spec.disk, "own.txt") as file:
        assert b"".join([piece async for piece in file.read(0, 100)]) == b"own\n"
