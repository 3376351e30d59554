"""Stores on file systems of their own, which leave no mount and no loop device behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builderd.core.resources import GB
from builderd.engine.oci.storage.backing import find_device
from builderd.engine.oci.storage.store import Store
from builderd.engine.port import StoreOptions

INSTANCE = "0123abcd"
OPTIONS = StoreOptions(size_bytes=6 * GB, floor_bytes=GB)


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def new_store(folder: Path, options: StoreOptions = OPTIONS, instance: str = INSTANCE) -> Store:
    return Store(folder / "data", folder / "run/store", options, instance)


@contextmanager
def opened(store: Store) -> Iterator[Store]:
    store.open(quiet)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def open_store(folder: Path, options: StoreOptions = OPTIONS) -> Iterator[Store]:
    with opened(new_store(folder, options)) as store:
        yield store
    image = folder / "data/store.img"
    assert not image.exists() or is_let_go(image), "the loop device is gone with the mount"


def is_let_go(image: Path) -> bool:
    """Return True when no loop device has it. An udevd may open it for some moments longer than the test does.

    A mount namespace that another test makes meanwhile has a copy of the mount until it ends.
    """
    deadline = time.monotonic() + 60
    while find_device(image) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return find_device(image) is None
