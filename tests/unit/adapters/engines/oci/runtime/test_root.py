"""A root file system as a list of mounts."""

from __future__ import annotations

from pathlib import Path

from builderd.adapters.engines.oci.runtime.root import Root, make_mounts, mount_points, overlay_paths
from builderd.adapters.engines.oci.storage.builds import Bind
from builderd.linux.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY

BUNDLE, STORE = Path("/run/x"), Path("/store")
APP = Bind(Path("/store/disks/1/app"), "/app", read_only=False, owner=5000)
TOOL = Bind(Path("/usr/bin/tool"), "/tool", read_only=True, owner=None)
ROOT = Root((Path("/layer"), Path("/base")), (APP, TOOL), Path("/store/scratch/1"))


def test_layers_are_bound_read_only_and_shown_as_the_sandbox_s_own() -> None:
    mounts = make_mounts(ROOT, BUNDLE, STORE)
    for mount, source in zip(mounts, ("/layer", "/base"), strict=False):
        assert (mount["kind"], mount["source"], mount["owner"]) == ("bind", source, 0)
        assert mount["attributes"] == MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


def test_the_overlay_has_the_topmost_layer_first() -> None:
    overlay = make_mounts(ROOT, BUNDLE, STORE)[3]
    assert overlay["target"] == "/run/x/root"
    assert overlay["data"].startswith("lowerdir=lower0:lower1,upperdir=scratch/upper,workdir=scratch/work,")


def test_without_scratch_it_is_read_only() -> None:
    root = Root((Path("/layer"), Path("/base")))
    assert make_mounts(root, BUNDLE, STORE)[2]["data"] == "lowerdir=lower0:lower1"
    assert overlay_paths(root) == ()


def test_the_disk_is_bound_into_the_root_and_the_store_let_go_of_last() -> None:
    *_, app, tool, last = make_mounts(ROOT, BUNDLE, STORE)
    assert (app["target"], app["owner"]) == ("/run/x/root/app", 5000)
    assert app["attributes"] == MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    assert tool["owner"] is None
    assert last == {"kind": "detach", "target": "/store"}


def test_mount_points_that_must_exist_before() -> None:
    assert mount_points(ROOT, BUNDLE) == [BUNDLE / name for name in ("root", "lower0", "lower1", "scratch")]
