"""The setting ``engine`` selects an engine by its name, and with the database where bundles are stored."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.contract.store.samples import TENANT, add, make_builder, make_version
from tests.fakes.engine import FakeEngine
from tests.stores import open_store

from builderd.bootstrap import engines, state
from builderd.bootstrap.bundles import bundle_sizes, is_shared, open_bundles
from builderd.bootstrap.engines import engine_provider, make_engine
from builderd.bootstrap.machine import build_base, describe_space, run_preflight_checks
from builderd.bootstrap.serving import serve
from builderd.code.bundles.local import LocalBundles
from builderd.code.bundles.shared import SharedBundles
from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import ValidationFailed
from builderd.engine.inventory import EngineInventory, PreflightCheck
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import EngineOptions, Progress
from builderd.linux.clock import SystemClock
from builderd.settings import Settings
from builderd.settings.sections import IncusSettings

ENOUGH_MEMORY = PreflightCheck("memory", True, "enough", "sandboxes are slow", False)


class FakeProvider:
    options: EngineOptions | None = None

    def make(self, options: EngineOptions) -> FakeEngine:
        self.options = options
        return FakeEngine()

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        return [ENOUGH_MEMORY]

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        return None

    def build_base(self, progress: Progress, index: str | None) -> str:
        return "fake-base"

    def find_base(self) -> Path | None:
        return None

    def networks(self) -> Sequence[IPv4Network]:
        return []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    """A second engine, registered by one line."""
    provider = FakeProvider()
    monkeypatch.setattr(sys.modules[__name__], "FakeProvider", lambda: provider)
    monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, "fake": f"{__name__}.FakeProvider"})
    return provider


def test_oci_is_the_default(tmp_path: Path) -> None:
    assert isinstance(make_engine(Settings(data_dir=tmp_path), SystemClock()), OciEngine)


def test_a_registered_engine_is_made_with_the_settings(fake: FakeProvider, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine="fake", inside_port=9082)
    assert isinstance(make_engine(settings, SystemClock()), FakeEngine)
    assert fake.options is not None
    assert (fake.options.data_dir, fake.options.inside_port) == (tmp_path, 9082)


def test_a_registered_engine_answers_for_its_machine(fake: FakeProvider, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine="fake")
    assert ENOUGH_MEMORY in run_preflight_checks(settings)
    assert build_base(settings, print) == "fake-base"


def test_an_engine_with_settings_of_its_own_gets_its_section(tmp_path: Path) -> None:
    incus = IncusSettings(socket=tmp_path / "socket", project="mine", subnet=IPv4Network("10.7.0.0/20"))
    provider = engine_provider(Settings(data_dir=tmp_path, engine="incus", incus=incus))
    assert list(provider.networks()) == [IPv4Network("10.7.0.0/20")]


def test_incus_that_does_not_answer_is_named_with_what_to_do(tmp_path: Path) -> None:
    incus = IncusSettings(socket=tmp_path / "none")
    (check,) = [
        check
        for check in run_preflight_checks(Settings(data_dir=tmp_path, engine="incus", incus=incus))
        if check.name == "Incus"
    ]
    assert not check.found
    assert check.vital
    assert str(tmp_path / "none") in check.detail
    assert "incus.socket" in check.cost


def test_an_unknown_engine_is_refused_with_the_known_ones_before_anything_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "none", engine="xen")
    with pytest.raises(ValidationFailed) as refused:
        serve(settings)
    assert refused.value.errors == {"engine": ["there is no engine 'xen': set it to one of: incus, oci"]}
    assert not (tmp_path / "none").exists()


BUNDLE = make_bundle([BundleFile("main.py", b"print('hello')\n")])
POSTGRESQL = "postgresql://builderd@db.example/builderd"


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ({}, False),
        ({"database_url": POSTGRESQL}, False),
        ({"engine": "incus"}, False),
        ({"engine": "incus", "database_url": POSTGRESQL}, True),
    ],
)
def test_bundles_are_shared_where_disks_and_database_are(given: dict[str, Any], shared: bool, tmp_path: Path) -> None:
    assert is_shared(Settings(data_dir=tmp_path, **given)) is shared


async def test_doctor_tells_when_little_is_left_for_code(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    async with open_store(settings.database):
        in_use, room, line = await describe_space(settings)
        assert re.fullmatch(r"in use: a load of \S+ of \S+ vCPU, \S+ of \S+ GB of memory, .* of the store", in_use)
        assert re.fullmatch(r"room for about \d+ more apps of default size \(.* limits it\)", room)
        assert line.endswith("are free for more")
        full = settings.model_copy(update={"store": settings.store.model_copy(update={"floor": 1e9})})
        _, room, line = await describe_space(full)
        assert room == "room for about 0 more apps of default size (store.overcommit limits it)"
        assert "0 B are free for more: nearly full. Its operator can free space" in line


@pytest.mark.postgres
@pytest.mark.slow
async def test_a_backup_on_any_machine_has_the_bundles_of_the_database(
    postgres_url: str, postgres_server: Any, tmp_path: Path
) -> None:
    def on(name: str, url: str) -> Settings:
        (tmp_path / name).mkdir(exist_ok=True)
        return Settings(data_dir=tmp_path / name, database_url=url, engine="incus")

    one, two = on("one", postgres_url), on("two", postgres_url)
    async with open_store(postgres_url) as store:
        await store.write(lambda uow: uow.tenants.add(TENANT))
        builder = make_builder()
        await add(store, builder, make_version(builder.id, bundle_hash=BUNDLE.hash))
        await LocalBundles(one.data_dir / "bundles").put(BUNDLE)
        assert isinstance(await open_bundles(one, store), SharedBundles)
        assert (await bundle_sizes(two, store)).keys() == {BUNDLE.hash}
    await asyncio.to_thread(state.back_up, two, tmp_path / "kept", None, print)
    assert (tmp_path / "kept/bundles" / f"{BUNDLE.hash}.tar").exists()
    with postgres_server.database() as other:
        restored, beside = on("restored", other), on("beside", other)
        await asyncio.to_thread(state.restore, restored, tmp_path / "kept", None, print)
        async with open_store(other) as store:
            assert await bundle_sizes(beside, store) == {}
            await open_bundles(restored, store)
            assert await (await open_bundles(beside, store)).get(BUNDLE.hash) == BUNDLE
