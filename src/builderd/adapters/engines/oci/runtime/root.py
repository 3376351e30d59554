"""Root file system of a sandbox: stacked layers with folders of the disk bound into them. Pure.

The mounts are made in a mount namespace that only the shim and the sandbox share, and vanish with the last of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci.storage.builds import Bind
from builderd.linux.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_NODEV, MS_NOSUID

#: Owner of a layer's files on the host.
LAYER_OWNER = 0
_FLAGS = MS_NOSUID | MS_NODEV
#: Mount point of the scratch folder in a bundle.
SCRATCH = "scratch"
#: Hidden from gVisor, which otherwise takes any network namespace for the host's own and refuses it.
HIDE_NETWORK_PARAMETERS = {"kind": "tmpfs", "target": "/proc/sys/net"}


@dataclass(frozen=True, slots=True)
class Root:
    """Layers of a root. ``lowers``: topmost first. ``scratch`` holds ``upper`` and ``work``; None: read-only root.

    ``mirrors`` maps folders of the root, as the layers make it, to other places where they are seen too; the user may
    write beside the layers' files there, and in the folders ``writable``.
    """

    lowers: tuple[Path, ...]
    binds: tuple[Bind, ...] = ()
    scratch: Path | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict)
    writable: tuple[str, ...] = ()


def mount_points(root: Root, bundle: Path) -> list[Path]:
    """Return the bundle's folders that must exist before the mounts are made."""
    lowers = (_lower(bundle, index) for index in range(len(root.lowers)))
    return [bundle / "root", *lowers, *([bundle / SCRATCH] if root.scratch else ())]


def make_mounts(root: Root, bundle: Path, store: Path) -> list[dict[str, Any]]:
    """Return the launcher's mounts, in order; the root is then at ``<bundle>/root``.

    Paths of overlays are relative to the bundle, since the sandbox reads them in its ``/proc/self/mountinfo``.
    The store itself is unmounted inside, since an ending sandbox would keep the host from unmounting it.
    """
    below = [_bind(path, _lower(bundle, index), True, LAYER_OWNER) for index, path in enumerate(root.lowers)]
    if root.scratch:
        below.append(_bind(root.scratch, bundle / SCRATCH, False, None))
    inside = bundle / "root"
    binds = [make_bind(bind, _at(inside, bind.target)) for bind in root.binds]
    mirrors = [_bind(_at(inside, path), _at(inside, other), False, None) for path, other in root.mirrors.items()]
    return [*below, _overlay(root, bundle), *binds, *mirrors, {"kind": "detach", "target": str(store)}]


def _at(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _lower(bundle: Path, index: int) -> Path:
    return bundle / f"lower{index}"


def hide_source(bundle: Path, folder: str) -> dict[str, Any]:
    """Return the launcher's mount of a bundle's folder over itself: mountinfo inside names binds by paths in it.

    An overlay needs two layers: the second is the bundle's ``root``, which is empty until its own mount is made.
    """
    return {"kind": "overlay", "target": str(bundle / folder), "flags": _FLAGS, "data": f"lowerdir={folder}:root"}


def _overlay(root: Root, bundle: Path) -> dict[str, Any]:
    options = ["lowerdir=" + ":".join(_lower(bundle, index).name for index in range(len(root.lowers)))]
    if root.scratch:
        # Volatile: the overlay is discarded at the next start, so it need not be synced at the end of this one.
        options += [f"upperdir={SCRATCH}/upper", f"workdir={SCRATCH}/work", "volatile"]
    return {
        "kind": "overlay",
        "target": str(bundle / "root"),
        "flags": _FLAGS,
        "data": ",".join(options),
    }


def make_bind(bind: Bind, target: Path | str) -> dict[str, Any]:
    """Return the launcher's bind mount at this path."""
    return _bind(bind.source, target, bind.read_only, bind.owner)


def _bind(source: Path, target: Path | str, read_only: bool, owner: int | None) -> dict[str, Any]:
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0)
    return {"kind": "bind", "source": str(source), "target": str(target), "attributes": attributes, "owner": owner}


def overlay_paths(root: Root) -> Sequence[Path]:
    """Return the overlay folders that the sandbox's root owns on the host."""
    return (root.scratch / "upper", root.scratch / "work") if root.scratch else ()
