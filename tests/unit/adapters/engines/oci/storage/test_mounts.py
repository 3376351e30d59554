"""Mounts of all processes are found, once for each namespace, also while processes end."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.engines.oci.storage import backing
from builderd.adapters.engines.oci.storage.backing import mounted_roots

LINE = "29 1 0:25 {root} /mnt rw,relatime shared:1 - btrfs /dev/loop0 rw\n"


def process(proc: Path, number: str, namespace: str, *roots: str) -> None:
    folder = proc / number
    (folder / "ns").mkdir(parents=True)
    (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
    (folder / "mountinfo").write_text("".join(LINE.format(root=root) for root in roots))


def test_the_mounts_of_every_namespace_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, "1", "10", "/", "/a")
    process(tmp_path, "2", "10", "/not-looked-at-again")
    process(tmp_path, "3", "11", "/b")
    process(tmp_path, "self", "12", "/no-process")
    (tmp_path / "4").mkdir()
    monkeypatch.setattr(backing, "PROC", tmp_path)
    assert mounted_roots() <= {"/", "/a", "/b", "/not-looked-at-again"}
    assert "/b" in mounted_roots()
    assert len(mounted_roots() & {"/a", "/not-looked-at-again"}) == 1


def test_our_own_root_is_among_them() -> None:
    assert "/" in mounted_roots()
