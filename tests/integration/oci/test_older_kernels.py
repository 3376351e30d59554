"""Quotas of kernels before Linux 6.7, without simple quotas, keep the same promises to apps."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.oci.stores import open_store
from tests.integration.oci.test_disks import MB, ONE, TWO, fill, soon

from builderd.adapters.engines.oci.storage.disks import SCRATCH_BYTES, Disks
from builderd.adapters.engines.oci.storage.store import Store
from builderd.adapters.engines.oci.storage.subvolumes import create_subvolume
from builderd.domain.resources import GB

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr("builderd.adapters.engines.oci.storage.quotas._QUOTA_ENABLE_SIMPLE", 1)
    with open_store(tmp_path) as store:
        subprocess.run(["mount", "-o", "remount,commit=1", store.root], check=True)
        assert not store.quota.simple
        yield store


@pytest.fixture
def disks(store: Store) -> Disks:
    disks = Disks(store)
    disks.open()
    return disks


def test_a_disk_takes_no_more_than_its_limit(disks: Disks) -> None:
    disks.create(ONE, 20 * MB)
    assert 10 * MB < fill(disks.app(ONE) / "data", 40 * MB) <= 20 * MB
    assert 10 * MB < disks.usage(ONE) <= 20 * MB


def test_scratch_has_its_own_and_is_new_each_time(disks: Disks) -> None:
    disks.create(ONE, 20 * MB)
    assert fill(disks.scratch(ONE) / "upper/data", SCRATCH_BYTES + 20 * MB) <= SCRATCH_BYTES
    assert list((disks.scratch(ONE) / "upper").iterdir()) == []


def test_a_copy_has_a_limit_of_its_own(disks: Disks) -> None:
    disks.create(ONE, 100 * MB)
    fill(disks.app(ONE) / "data", 20 * MB)
    disks.clone(ONE, TWO, 40 * MB)
    assert (disks.app(TWO) / "data").stat().st_size == 20 * MB
    assert fill(disks.app(TWO) / "more", 60 * MB) <= 40 * MB


def test_a_full_disk_with_subvolumes_in_it_is_deleted_whole(disks: Disks, store: Store) -> None:
    disks.create(ONE, 20 * MB)
    create_subvolume(disks.app(ONE) / "nested")
    fill(disks.app(ONE) / "data", 40 * MB)
    disks.delete(ONE)
    assert list(store.disks.iterdir()) == []


def test_sweeping_leaves_the_limits_of_living_disks_alone(disks: Disks, store: Store) -> None:
    disks.create(ONE, 20 * MB)
    disks.create(TWO, GB)
    disks.delete(TWO)
    group = store.quota.group(store.disks / ONE)

    def swept() -> bool:
        store.quota.drop_unused()
        return len(list(store.quota._groups.glob("0_*"))) <= 2

    assert soon(swept)
    assert store.quota.limit_of(group) == 20 * MB
    assert fill(disks.app(ONE) / "data", 40 * MB) <= 20 * MB
