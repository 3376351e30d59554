"""Count the traces of a service on its host, so that a test can assert that none were left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.acceptance.incus_service import incus_traces, is_on_incus
from tests.acceptance.live_service import LiveService
from tests.patience import patience

#: In seconds, against hanging only.
PATIENCE = patience(60)
#: So many looks must see the same, so many seconds apart. They are counted: a stalled machine passes time without any.
LOOKS, PAUSE = 8, 0.3


def traces(owner: Path | LiveService) -> dict[str, list[str]]:
    """Everything that bears the instance's id: mounts, links, cgroups, processes; and the store's disks.

    The owner is a data directory or, on any engine, a service.
    """
    if isinstance(owner, LiveService) and is_on_incus(owner):
        return incus_traces(owner)
    data_dir = owner.data_dir if isinstance(owner, LiveService) else owner
    instance = json.loads((data_dir / "instance.json").read_text())["id"]
    return {
        "mounts": sorted(_mounts(instance)),
        "links": sorted(_links(instance)),
        "cgroups": sorted(_cgroups(instance)),
        "processes": sorted(_processes(instance)),
        "disks": sorted(_names(Path(f"/run/builderd/{instance}/store/disks"))),
        "logs": sorted(_names(data_dir / "logs")),
        "bundles": sorted(_names(data_dir / "bundles")),
    }


def traces_at_rest(owner: Path | LiveService) -> dict[str, list[str]]:
    """Return the traces once no sandbox runs and nothing changes any more."""
    return settled_traces(owner, lambda seen: not seen["processes"])


def settled_traces(owner: Path | LiveService, holds: Callable[[dict[str, list[str]]], bool]) -> dict[str, list[str]]:
    """Return the traces once the condition holds and nothing changes any more.

    Removal is gradual; the link goes last.
    """
    deadline = time.monotonic() + PATIENCE
    seen, looks = traces(owner), 1
    while looks < LOOKS or not holds(seen):
        assert time.monotonic() < deadline, f"not at rest: {seen}"
        time.sleep(PAUSE)
        last, seen = seen, traces(owner)
        looks = looks + 1 if last == seen else 1
    return seen


def assert_traces(owner: Path | LiveService, expected: dict[str, list[str]]) -> None:
    """Assert these traces, allowing the kernel time: links and control groups disappear after their processes."""
    deadline = time.monotonic() + PATIENCE
    # What is asserted is what was compared: a second look could see a short-lived program of a cleanup.
    while (seen := traces(owner)) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert seen == expected


def _mounts(instance: str) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if instance in line:
            yield line.split()[4]


def _links(instance: str) -> Iterator[str]:
    for link in Path("/sys/class/net").iterdir():
        master = link / "master"
        if instance[:6] in link.name or (master.exists() and instance[:6] in master.resolve().name):
            yield link.name


def _cgroups(instance: str) -> Iterator[str]:
    for folder, _, _ in os.walk("/sys/fs/cgroup"):
        if instance in folder:
            yield folder


def _processes(instance: str) -> Iterator[str]:
    """Shims and what runs in sandboxes, by cgroup or command line; neither the service nor its proxy."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (process / "cgroup").read_text()
        except OSError:
            continue
        if (instance in words or instance in groups) and "haproxy" not in words and " builderd." not in words:
            yield words[:80]


def _names(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        yield from (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
