"""A version's build runs the tenant's code, with a network: it keeps what it writes, and reaches nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from tests.contract.engine import apps
from tests.engines import execute, make_spec, prepared, settings_until_down

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import InstallFailed
from builderd.core.ids import DiskId, TenantId, new_id
from builderd.core.resources import GB
from builderd.dependencies.model import LAYER, AppBuild, BuildOutcome, BuildStep, Cache, LayerPlan
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.storage import app_builds
from builderd.engine.port import EngineOptions, Progress

pytestmark = pytest.mark.root

BUNDLE = make_bundle([BundleFile("main.txt", b"mine\n"), BundleFile("package.json", b"{}")])
MB = 1 << 20
PACKAGES = (
    f"mkdir -p {LAYER}/node_modules/hello/lib {LAYER}/node_modules/.bin {LAYER}/venv; cd {LAYER}/node_modules; "
    "echo 'module.exports = 42' > hello/index.js; printf '#!/bin/sh\\necho tool' > .bin/tool; chmod +x .bin/tool"
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    with settings_until_down(tmp_path_factory.mktemp("builds")) as found:
        yield found


@pytest.fixture
async def engine(settings: EngineOptions) -> AsyncIterator[OciEngine]:
    async with prepared(settings) as engine:
        yield engine


async def packages(engine: OciEngine) -> str:
    key = hashlib.sha256(PACKAGES.encode()).hexdigest()
    step = BuildStep("packages", ("/bin/sh", "-ec", PACKAGES), network=False, cache=Cache.NONE)
    assert (await engine.layers.build_layer(LayerPlan(key, {}, (step,), False), lambda line: None)).ok
    return key


async def build(
    engine: OciEngine,
    command: str,
    *,
    below: str | None = None,
    seconds: int = 60,
    limit: int = 64 * MB,
    progress: Progress = lambda line: None,
) -> tuple[str, BuildOutcome]:
    key = hashlib.sha256(json.dumps([new_id(), command]).encode()).hexdigest()
    step = BuildStep("build", ("/bin/sh", "-c", command), network=True, cache=Cache.NONE, timeout_seconds=seconds)
    app = AppBuild(BUNDLE, below)
    plan = LayerPlan(key, {}, (step,), True, tenant=TenantId("mallory"), limit_bytes=limit, app=app)
    return key, await engine.layers.build_layer(plan, progress)


async def names(engine: OciEngine, disk: DiskId, path: str = "") -> list[str]:
    return [entry.name for entry in (await engine.files.list_files(disk, path, 0, 100)).entries]


async def placed(engine: OciEngine, key: str) -> DiskId:
    disk = DiskId(new_id())
    await engine.disks.create_disk(disk, GB)
    await engine.disks.put_bundle(disk, BUNDLE, None, key)
    return disk


async def test_build_writes_nowhere_but_into_its_own_files(engine: OciEngine) -> None:
    below = await packages(engine)
    places = "/node_modules/hello /venv /usr/bin / /etc /build /build/input /app/node_modules/hello /app"
    attack = (
        f"for place in {places}; do echo MARKED > $place/MARK 2>/dev/null && echo wrote $place; done; id -u; ls /app"
    )
    key, outcome = await build(engine, attack, below=below)
    assert outcome.ok, outcome.output
    wrote = [line for line in outcome.output if line.startswith("wrote")]
    assert wrote == ["wrote /app/node_modules/hello", "wrote /app"]
    disk = await placed(engine, key)
    assert await names(engine, disk) == ["MARK", "main.txt", "package.json"]
    _, after = await build(engine, "find / -name MARK 2>/dev/null", below=below)
    assert [line for line in after.output if "MARK" in line] == []


async def test_links_pipes_and_odd_files_of_a_build_lead_nowhere(engine: OciEngine) -> None:
    attack = (
        "ln -s /etc/shadow shadow; ln -s ../../../../.. up; mkfifo pipe; mkdir -p deep/er; echo x > deep/er/file; "
        "chmod 000 deep/er/file; rm main.txt; ln -s /etc/passwd main.txt; ln deep/er/file hard; "
        "chmod 4755 package.json; "
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'"
    )
    key, outcome = await build(engine, attack)
    assert outcome.ok, outcome.output
    disk = await placed(engine, key)
    found = {entry.name: entry for entry in (await engine.files.list_files(disk, "", 0, 100)).entries}
    assert set(found) == {"deep", "hard", "main.txt", "package.json", "shadow", "up"}
    assert found["main.txt"].target == "/etc/passwd"
    assert all(not entry.mode & 0o7000 for entry in found.values())
    # The next version removes the links, and writes through none.
    await engine.disks.put_bundle(disk, BUNDLE, BUNDLE)
    assert await names(engine, disk) == ["main.txt", "package.json"]
    assert (await engine.files.list_files(disk, "", 0, 100)).entries[0].target is None


async def test_build_ends_with_its_time_and_leaves_nothing(engine: OciEngine) -> None:
    key, outcome = await build(engine, "setsid sleep 1000 & echo begun; sleep 1000", seconds=1)
    assert outcome.timed_out
    assert outcome.output == ("begun",)
    assert not await engine.layers.has_layer(key)
    assert engine._here.runs.all() == []
    assert list(engine._here.store.builds.iterdir()) == []


@pytest.mark.parametrize("place", ["/app", "/app/node_modules"])
async def test_build_writes_no_more_bytes_than_its_tenant_may(engine: OciEngine, place: str) -> None:
    below = await packages(engine)
    size = f"ls -l {place}/big | awk '{{print $5}}'"
    command = f"dd if=/dev/urandom of={place}/big bs=1M count=200 2>/dev/null; {size}; exit 1"
    lines: list[str] = []
    with suppress(InstallFailed):  # says which limit, where it can be told
        _, outcome = await build(engine, command, below=below, limit=32 * MB, progress=lines.append)
        assert not outcome.ok
    assert 0 < int(lines[-1]) <= 40 * MB


async def test_build_with_too_many_files_or_too_deep_folders_is_refused(
    engine: OciEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_builds, "MAX_FILES", 100)
    _, many = await build(engine, "for n in $(seq 200); do : > file$n; done")
    assert many.output[-1:] == ("error: the build made more than 100 files",)
    _, deep = await build(engine, "mkdir -p $(seq -s / 300)")
    assert "deep" in deep.output[-1]
    _, odd = await build(engine, "touch $(printf 'a\\377b')")
    assert "Unicode" in odd.output[-1]


async def test_build_that_kills_itself_is_its_own_fault(engine: OciEngine) -> None:
    _, outcome = await build(engine, "kill -9 $$")
    assert not outcome.ok


async def test_app_finds_its_packages_in_its_own_folder(engine: OciEngine) -> None:
    below = await packages(engine)
    spec = await make_spec(engine, apps.SILENT, layer_key=below)
    await engine.disks.put_bundle(spec.disk, BUNDLE)
    await engine.sandboxes.start(spec)
    command = (
        "node -p 'require(\"/app/node_modules/hello\")'; sh -c /app/node_modules/.bin/tool; "
        "mkdir node_modules/.cache && "
        "echo cached > node_modules/.cache/file; echo broken > node_modules/hello/index.js; ls /node_modules/.cache"
    )
    result = await execute(engine, spec.id, command, 20, 10_000)
    assert result.output.splitlines()[:2] == ["42", "tool"]
    assert "file" in result.output
    await engine.sandboxes.stop(spec.id, 0)
    await engine.sandboxes.remove(spec.id)
    # The disk has an empty folder, so that backups and copies do not have the packages.
    assert await names(engine, spec.disk, "node_modules") == []
    again = await build(engine, "node -p 'require(\"hello\")'; tool 2>&1; /app/node_modules/.bin/tool", below=below)
    assert "42" in again[1].output


async def test_packages_are_not_mounted_over_a_link_of_the_app(engine: OciEngine) -> None:
    below = await packages(engine)
    spec = await make_spec(engine, apps.SILENT, layer_key=below)
    key, _ = await build(engine, "ln -s /etc node_modules")
    await engine.disks.put_bundle(spec.disk, BUNDLE, None, key)
    await engine.sandboxes.start(spec)
    result = await execute(engine, spec.id, "ls /etc/passwd; readlink node_modules; ls /etc/hello 2>&1", 20, 10_000)
    assert "/etc/passwd" in result.output
    await engine.sandboxes.stop(spec.id, 0)
    await engine.sandboxes.remove(spec.id)
