"""A bundle on the disk is whole or not there."""

import os
from pathlib import Path

import pytest

from builderd.adapters.bundles.local import LocalBundles
from builderd.domain.bundles import BundleFile, make_bundle

BUNDLE = make_bundle([BundleFile("main.py", b"print('hello')\n"), BundleFile("x.sh", b"true\n", executable=True)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
async def file(folder: Path) -> Path:
    await LocalBundles(folder).put(BUNDLE)
    return folder / f"{BUNDLE.hash}.tar"


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("offset", [0, 100, 512, 520, 1536])
async def test_a_flipped_bit_is_noticed_and_putting_it_again_mends_it(folder: Path, file: Path, offset: int) -> None:
    flip(file, offset)
    bundles = LocalBundles(folder)
    with pytest.raises(KeyError):
        await bundles.get(BUNDLE.hash)
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


@pytest.mark.parametrize("size", [0, 100, 600])
async def test_a_cut_off_file_is_noticed(folder: Path, file: Path, size: int) -> None:
    os.truncate(file, size)
    with pytest.raises(KeyError):
        await LocalBundles(folder).get(BUNDLE.hash)


async def test_a_bundle_under_the_name_of_another_is_not_taken_for_it(folder: Path, file: Path) -> None:
    file.rename(folder / f"{'1' * 64}.tar")
    with pytest.raises(KeyError):
        await LocalBundles(folder).get("1" * 64)


async def test_a_write_that_fails_half_way_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        await LocalBundles(folder).put(BUNDLE)
    assert list(folder.iterdir()) == []


async def test_only_the_service_reads_it(folder: Path, file: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0
    assert file.stat().st_mode & 0o077 == 0
