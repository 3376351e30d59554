"""The base as it really is, and the inventory of a store."""

from __future__ import annotations

import asyncio
import pwd
import secrets
import stat
import subprocess

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec
from tests.integration.oci.stores import quiet

from builderd.dependencies.model import LAYER, BuildStep, Cache, LayerPlan
from builderd.engine.oci import provider
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.storage.base import APP_UID, MOUNT_FILES, MOUNT_FOLDERS, Base, ensure_base
from builderd.engine.port import EngineOptions

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def base() -> Base:
    """The host's own: making one takes half a minute."""
    return ensure_base(quiet)


def run(base: Base, *argv: str) -> str:
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", f"--root={base.root}", "--", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.parametrize("program", ["python3", "node", "npm", "npx", "git", "curl", "rsync", "ps", "tini"])
def test_the_programs_that_apps_expect_run(base: Base, program: str) -> None:
    assert run(base, program, "--version")


def test_files_can_be_transferred_over_ssh(base: Base) -> None:
    assert (base.root / "usr/lib/openssh/sftp-server").is_file()


def test_an_environment_can_be_made_in_it(base: Base) -> None:
    assert run(base, "python3", "-c", "import venv, ensurepip, ssl, sqlite3; print('all there')") == "all there"


def test_the_standard_library_is_compiled(base: Base) -> None:
    (library,) = base.root.glob("usr/lib/python3.*/json")
    assert list(library.glob("__pycache__/decoder.*.pyc"))


def test_the_app_has_a_user_of_its_own(base: Base) -> None:
    user = run(base, "getent", "passwd", "app").split(":")
    assert user[2:4] == [str(APP_UID), str(APP_UID)]
    assert user[5] == "/app"


def test_base_has_no_setuid_or_setgid_files(base: Base) -> None:
    files = (path.lstat() for path in base.root.rglob("*"))
    privileged = stat.S_ISUID | stat.S_ISGID
    assert not [file for file in files if stat.S_ISREG(file.st_mode) and file.st_mode & privileged]


def test_base_belongs_to_root_except_the_apps_folder(base: Base) -> None:
    owners = {path.lstat().st_uid for path in base.root.rglob("*") if path != base.root / "app"}
    assert APP_UID not in owners
    assert (base.root / "app").stat().st_uid == APP_UID


def test_base_has_its_mount_points(base: Base) -> None:
    assert all((base.root / path).is_dir() for path in MOUNT_FOLDERS)
    assert all((base.root / path).is_file() for path in MOUNT_FILES)


def test_base_contains_nothing_of_the_host(base: Base) -> None:
    for name in ("etc/hostname", "etc/resolv.conf", "etc/hosts"):
        assert (base.root / name).read_text() == ""
    names = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid >= 1000 and entry.pw_name != "nobody"}
    text = (base.root / "etc/passwd").read_text()
    assert not [name for name in names - {"app"} if f"\n{name}:" in text]


def test_base_contains_no_caches(base: Base) -> None:
    assert not list((base.root / "var/lib/apt/lists").glob("*_Packages*"))
    assert not list((base.root / "var/cache/apt/archives").glob("*.deb"))


async def test_layers_disks_and_bases_are_seen_with_their_sizes_and_uses(
    engine: OciEngine, settings: EngineOptions
) -> None:
    key = secrets.token_hex(32)
    script = f"mkdir -p {LAYER}/venv && head -c 3000000 /dev/urandom >{LAYER}/venv/bulk"
    step = BuildStep("Filling", ("/bin/sh", "-ec", script), network=False, cache=Cache.NONE)
    await engine.layers.build_layer(LayerPlan(key, {}, (step,), runs_foreign_code=False), lambda _: None)
    spec = await make_spec(engine, apps.SILENT, layer_key=key)
    await engine.sandboxes.start(spec)
    # The kernel counts what it has written out.
    await asyncio.to_thread(engine._here.store.deferred_sync.sync)
    found = provider.read_inventory(settings.data_dir)
    assert found is not None
    (layer,) = [one for one in found.layers if one.key == key]
    assert layer.seen
    assert layer.bytes >= 3_000_000
    (disk,) = [one for one in found.disks if one.id == spec.disk]
    assert 0 < disk.bytes < disk.limit_bytes
    assert [base.seen for base in found.bases if base.own] == [True]
    assert found.scratch >= 1
    await engine.sandboxes.stop(spec.id, 0)
    await engine.sandboxes.remove(spec.id)
    after = provider.read_inventory(settings.data_dir)
    assert after is not None
    assert [one.seen for one in after.layers if one.key == key] == [False]


def test_a_directory_that_no_service_ran_in_holds_nothing(settings: EngineOptions) -> None:
    assert provider.read_inventory(settings.data_dir / "elsewhere") is None
