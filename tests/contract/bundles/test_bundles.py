"""What every bundle store keeps."""

import asyncio

import pytest

from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.ports.bundles import Bundles

BUNDLE = make_bundle(
    [
        BundleFile("main.py", b"print('hello')\n"),
        BundleFile("bin/run.sh", b"#!/bin/sh\n", executable=True),
        BundleFile("data/Grüße\n.bin", bytes(range(256)) * 300),
        BundleFile("empty", b""),
    ]
)
MISSING = "0" * 64


async def test_what_was_put_comes_back(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


async def test_a_bundle_without_files_comes_back(bundles: Bundles) -> None:
    empty = make_bundle([])
    await bundles.put(empty)
    assert await bundles.get(empty.hash) == empty


async def test_there_is_none_that_was_not_put(bundles: Bundles) -> None:
    with pytest.raises(KeyError):
        await bundles.get(MISSING)


async def test_putting_it_again_changes_nothing(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


async def test_many_may_put_the_same_at_once(bundles: Bundles) -> None:
    await asyncio.gather(*(bundles.put(BUNDLE) for _ in range(8)))
    assert await bundles.get(BUNDLE.hash) == BUNDLE


async def test_a_deleted_one_is_gone_and_deleting_is_idempotent(bundles: Bundles) -> None:
    other = make_bundle([BundleFile("a", b"b")])
    await bundles.put(BUNDLE)
    await bundles.put(other)
    await bundles.delete(BUNDLE.hash)
    await bundles.delete(BUNDLE.hash)
    with pytest.raises(KeyError):
        await bundles.get(BUNDLE.hash)
    assert await bundles.get(other.hash) == other


async def test_all_that_are_stored_are_told(bundles: Bundles) -> None:
    assert set(await bundles.hashes()) == set()
    other = make_bundle([BundleFile("a", b"b")])
    await bundles.put(BUNDLE)
    await bundles.put(other)
    assert set(await bundles.hashes()) == {BUNDLE.hash, other.hash}
    await bundles.delete(other.hash)
    assert set(await bundles.hashes()) == {BUNDLE.hash}


async def test_a_deleted_one_can_be_put_again(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    await bundles.delete(BUNDLE.hash)
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A" * 64, "0" * 63, "0" * 65, "\0"])
async def test_what_is_no_hash_names_nothing(bundles: Bundles, name: str) -> None:
    with pytest.raises(KeyError):
        await bundles.get(name)
    await bundles.delete(name)


async def test_equal_contents_under_other_paths_are_other_bundles(bundles: Bundles) -> None:
    twins: list[Bundle] = [make_bundle([BundleFile(path, b"same")]) for path in ("a", "b")]
    for twin in twins:
        await bundles.put(twin)
    assert [await bundles.get(twin.hash) for twin in twins] == twins
