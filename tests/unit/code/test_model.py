"""Valid paths, and the hash of a bundle."""

from __future__ import annotations

import os
import posixpath
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builderd.code.model import BundleFile, bundle_hash, make_bundle, path_error, tree_errors

PLAIN = ["a", "main.py", "a/b/c.txt", ".env", "..a", "a..", "...", "a b", "Grüße.txt", "-rf", "a\\b", "a:b", "x" * 255]
HOSTILE = {
    "": "empty",
    "/": "relative",
    "/etc/passwd": "relative",
    "//etc": "relative",
    "..": r"\.\.",
    "../x": r"\.\.",
    "a/../../x": r"\.\.",
    "a/..": r"\.\.",
    ".": "segment",
    "./a": "segment",
    "a/./b": "segment",
    "a//b": "segment",
    "a/": "segment",
    "a\0b": "NUL",
    "\0": "NUL",
    "\ud800": "Unicode",
    "x" * 256: "255",
    "é" * 128: "255",
    "/".join(["x" * 200] * 6): "1024",
}
#: Short paths out of few letters, so that they meet.
paths = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
files = st.builds(BundleFile, st.text(max_size=5), st.binary(max_size=5), st.booleans())
bundles = st.lists(files, max_size=5, unique_by=lambda file: file.path)


@pytest.mark.parametrize("path", [*PLAIN, "/".join(["x" * 200] * 5)])
def test_a_plain_relative_path_is_taken(path: str) -> None:
    assert path_error(path) is None


@pytest.mark.parametrize(("path", "why"), HOSTILE.items(), ids=[ascii(path)[:20] for path in HOSTILE])
def test_invalid_path_is_rejected_with_a_reason(path: str, why: str) -> None:
    fault = path_error(path)
    assert fault is not None
    assert re.search(why, fault)


@given(st.text(st.sampled_from("ab./\\\0\n~"), max_size=12))
def test_an_accepted_path_stays_below_its_folder_and_is_the_only_name_of_its_file(path: str) -> None:
    if path_error(path) is None:
        assert posixpath.normpath(path) == path
        assert posixpath.normpath(posixpath.join("/app", path)).startswith("/app/")
        os.fsencode(path)


def test_no_path_is_a_file_and_a_folder() -> None:
    faults = tree_errors(["a", "a/b", "a/b/c", "ab", "a-b", "x/y"])
    assert faults == {"a": "is both a file and the folder of 'a/b'", "a/b": "is both a file and the folder of 'a/b/c'"}
    assert tree_errors([]) == {}
    assert tree_errors(["a", "a.b", "a0", "a b", "b/a"]) == {}


@given(st.lists(paths, max_size=8))
def test_tree_faults_are_exactly_the_paths_below_which_others_lie(tree: list[str]) -> None:
    assert set(tree_errors(tree)) == {path for path in tree if any(other.startswith(f"{path}/") for other in tree)}


def test_deep_hostile_trees_are_judged_in_reasonable_time() -> None:
    # 2,000 paths of 512 segments each: to write down every folder of each would take a gigabyte
    deep = ["/".join([f"{number:x}", *"a" * 500]) for number in range(2000)]
    assert tree_errors(deep) == {}


@given(bundles, bundles)
def test_two_bundles_have_one_hash_only_if_they_are_the_same(one: list[BundleFile], other: list[BundleFile]) -> None:
    same = {(f.path, f.content, f.executable) for f in one} == {(f.path, f.content, f.executable) for f in other}
    assert (bundle_hash(one) == bundle_hash(other)) is same


@given(bundles, st.randoms())
def test_the_order_of_the_files_does_not_matter(some: list[BundleFile], chance: random.Random) -> None:
    shuffled = list(some)
    chance.shuffle(shuffled)
    assert make_bundle(shuffled) == make_bundle(some)


@pytest.mark.parametrize(
    "twins",
    [
        ([BundleFile("ab", b"c")], [BundleFile("a", b"bc")]),
        ([BundleFile("a", b"")], []),
        ([BundleFile("a", b"")], [BundleFile("a", b"", executable=True)]),
        ([BundleFile("a", b"1"), BundleFile("b", b"2")], [BundleFile("a", b"2"), BundleFile("b", b"1")]),
        ([BundleFile("a", b"x-\0\0\0\1b")], [BundleFile("a", b"x"), BundleFile("b", b"")]),
    ],
)
def test_similar_bundles_have_different_hashes(twins: tuple[list[BundleFile], list[BundleFile]]) -> None:
    one, other = twins
    assert bundle_hash(one) != bundle_hash(other)


def test_the_hash_of_a_bundle_never_changes() -> None:
    # Stored bundles and disks are known by it.
    files = [BundleFile("main.py", b"print('hello')\n"), BundleFile("run", b"", executable=True)]
    assert bundle_hash(files) == "8790111e02ce3c23a1952f893fec9d4c283d555aab27d1835e411ea0dff3a533"


def test_a_bundle_knows_its_size_and_files() -> None:
    main, run = BundleFile("main.py", b"12345"), BundleFile("bin/run", b"123", executable=True)
    bundle = make_bundle([main, run])
    assert bundle.size == 8
    assert bundle.files == (run, main)
    assert bundle.file("bin/run") is run
    assert bundle.file("bin") is None
