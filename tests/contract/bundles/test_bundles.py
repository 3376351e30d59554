"""Contract of every bundle store."""

import asyncio

import pytest

from builderd.code import model as archives
from builderd.code.model import Alteration, ArchiveLimits, Bundle, BundleFile, make_bundle
from builderd.code.port import Bundles
from builderd.core.errors import TooLarge, ValidationFailed

BUNDLE = make_bundle(
    [
        BundleFile("main.py", b"print('hello')\n"),
        BundleFile("bin/run.sh", b"#!/bin/sh\n", executable=True),
        BundleFile("data/Grüße\n.bin", bytes(range(256)) * 300),
        BundleFile("empty", b""),
    ]
)
MISSING = "0" * 64


async def test_stored_bundle_is_returned(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


async def test_empty_bundle_is_returned(bundles: Bundles) -> None:
    empty = make_bundle([])
    await bundles.put(empty)
    assert await bundles.get(empty.hash) == empty


async def test_unknown_bundle_is_missing(bundles: Bundles) -> None:
    with pytest.raises(KeyError):
        await bundles.get(MISSING)


async def test_storing_a_bundle_twice_is_idempotent(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


async def test_concurrent_writes_of_one_bundle_succeed(bundles: Bundles) -> None:
    await asyncio.gather(*(bundles.put(BUNDLE) for _ in range(8)))
    assert await bundles.get(BUNDLE.hash) == BUNDLE


async def test_deleted_bundle_is_missing_and_delete_is_idempotent(bundles: Bundles) -> None:
    other = make_bundle([BundleFile("a", b"b")])
    await bundles.put(BUNDLE)
    await bundles.put(other)
    await bundles.delete(BUNDLE.hash)
    await bundles.delete(BUNDLE.hash)
    with pytest.raises(KeyError):
        await bundles.get(BUNDLE.hash)
    assert await bundles.get(other.hash) == other


async def test_pinned_bundle_is_not_deleted_until_the_last_pin_is_gone(bundles: Bundles) -> None:
    with bundles.pinned(BUNDLE.hash):
        with bundles.pinned(BUNDLE.hash):
            await bundles.put(BUNDLE)
        await bundles.delete(BUNDLE.hash)
        assert await bundles.get(BUNDLE.hash) == BUNDLE
    await bundles.delete(BUNDLE.hash)
    with pytest.raises(KeyError):
        await bundles.get(BUNDLE.hash)


async def test_hashes_of_all_bundles_are_listed(bundles: Bundles) -> None:
    assert set(await bundles.hashes()) == set()
    other = make_bundle([BundleFile("a", b"b")])
    await bundles.put(BUNDLE)
    await bundles.put(other)
    assert set(await bundles.hashes()) == {BUNDLE.hash, other.hash}
    await bundles.delete(other.hash)
    assert set(await bundles.hashes()) == {BUNDLE.hash}


async def test_deleted_bundle_can_be_stored_again(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    await bundles.delete(BUNDLE.hash)
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A" * 64, "0" * 63, "0" * 65, "\0"])
async def test_malformed_hash_is_missing(bundles: Bundles, name: str) -> None:
    with pytest.raises(KeyError):
        await bundles.get(name)
    await bundles.delete(name)


async def test_same_contents_under_other_paths_have_another_hash(bundles: Bundles) -> None:
    twins: list[Bundle] = [make_bundle([BundleFile(path, b"same")]) for path in ("a", "b")]
    for twin in twins:
        await bundles.put(twin)
    assert [await bundles.get(twin.hash) for twin in twins] == twins


LIMITS = ArchiveLimits()


async def test_stored_bundle_is_altered(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    first, *others = BUNDLE.files
    changed = BundleFile(first.path, b"changed", executable=True)
    wanted = make_bundle([changed, BundleFile("new/one", b"1"), *others[1:]])
    alteration = Alteration((changed, BundleFile("new/one", b"1")), (others[0].path,), wanted.hash)
    assert await bundles.alter(BUNDLE.hash, alteration, LIMITS) == wanted
    assert await bundles.get(wanted.hash) == wanted
    assert await bundles.get(BUNDLE.hash) == BUNDLE


@pytest.mark.parametrize(
    ("alteration", "field"),
    [
        (Alteration(removed=("none",)), "stored.remove"),
        (Alteration(removed=tuple(file.path for file in BUNDLE.files)), "stored.remove"),
        (Alteration(removed=(BUNDLE.files[0].path,) * 2), "stored.remove"),
        (Alteration((BundleFile(f"{BUNDLE.files[0].path}/below", b""),)), f"files.{BUNDLE.files[0].path}"),
        (Alteration((BundleFile("new", b""),), result="0" * 64), "stored.result"),
    ],
)
async def test_alteration_that_does_not_fit_stores_nothing(
    bundles: Bundles, alteration: Alteration, field: str
) -> None:
    await bundles.put(BUNDLE)
    with pytest.raises(ValidationFailed) as refused:
        await bundles.alter(BUNDLE.hash, alteration, LIMITS)
    assert list(refused.value.errors) == [field]
    assert set(await bundles.hashes()) == {BUNDLE.hash}


@pytest.mark.parametrize("limits", [ArchiveLimits(max_files=len(BUNDLE.files)), ArchiveLimits(max_bytes=BUNDLE.size)])
async def test_alterations_do_not_grow_code_beyond_its_limits(bundles: Bundles, limits: ArchiveLimits) -> None:
    await bundles.put(BUNDLE)
    with pytest.raises(TooLarge):
        await bundles.alter(BUNDLE.hash, Alteration((BundleFile("one/more", b"x"),)), limits)
    assert set(await bundles.hashes()) == {BUNDLE.hash}


async def test_a_file_may_be_renamed_to_another_case(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    renamed = await bundles.alter(BUNDLE.hash, Alteration((BundleFile("Main.py", b"x"),), ("main.py",)), LIMITS)
    assert renamed.file("Main.py") is not None


async def test_code_with_names_that_archives_refuse_can_still_be_altered(bundles: Bundles) -> None:
    deep = "/".join(["a"] * 70)
    code = make_bundle([BundleFile(path, b"") for path in ("README", "readme", deep, "main.py")])
    await bundles.put(code)
    changed = BundleFile("readme", b"changed")
    altered = await bundles.alter(code.hash, Alteration((changed, BundleFile("new", b""))), LIMITS)
    assert (altered.file("readme"), len(altered.files)) == (changed, 5)


async def test_names_do_not_grow_beyond_their_limit(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    # "ü" has two bytes.
    monkeypatch.setattr(archives, "MAX_NAMES_BYTES", sum(len(file.path.encode()) for file in BUNDLE.files) + 5)
    await bundles.put(BUNDLE)
    with pytest.raises(TooLarge):
        await bundles.alter(BUNDLE.hash, Alteration((BundleFile("üü12", b""),)), LIMITS)
    assert (await bundles.alter(BUNDLE.hash, Alteration((BundleFile("üü1", b""),)), LIMITS)).file("üü1")


async def test_altering_a_missing_bundle_is_a_key_error(bundles: Bundles) -> None:
    with pytest.raises(KeyError):
        await bundles.alter("0" * 64, Alteration((BundleFile("a", b""),)), LIMITS)


async def test_space_counts_what_is_stored_and_no_more_than_was_reserved_for_it(bundles: Bundles) -> None:
    others = [make_bundle([BundleFile("n" * 200 + str(number), bytes(number))]) for number in range(3)]
    before = await bundles.space()
    for bundle in (BUNDLE, *others, BUNDLE):
        await bundles.put(bundle)
    each = [await bundles.stored_bytes([bundle.hash]) for bundle in (BUNDLE, *others)]
    assert all(bundle.size < size <= bundle.packed_size for bundle, size in zip((BUNDLE, *others), each, strict=True))
    assert (await bundles.space()).used == before.used + sum(each)
    assert await bundles.stored_bytes([BUNDLE.hash, others[0].hash, MISSING]) == each[0] + each[1]
    await bundles.delete(BUNDLE.hash)
    await bundles.delete(BUNDLE.hash)
    assert (await bundles.space()).used == before.used + sum(each[1:])
    assert await bundles.stored_bytes([BUNDLE.hash]) == 0


async def test_altered_and_unpacked_code_is_counted_once_it_is_put(bundles: Bundles) -> None:
    await bundles.put(BUNDLE)
    before = (await bundles.space()).used
    changed = await bundles.alter(BUNDLE.hash, Alteration((BundleFile("more", b"x" * 5000),)), ArchiveLimits())
    await bundles.put(changed)
    assert (await bundles.space()).used == before + await bundles.stored_bytes([changed.hash])
