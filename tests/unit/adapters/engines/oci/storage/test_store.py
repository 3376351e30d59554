"""A store that takes no writes is called full only for want of space."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builderd.adapters.engines.oci.storage.store import Store, store_full
from builderd.domain.errors import EngineUnavailable, NoCapacity
from builderd.ports.engine import StoreOptions


def _failed_store(folder: Path, *, full: bool) -> Store:
    """Return a store that its watch calls failed, with no room to write."""
    store: Any = Store(folder, folder / "store", StoreOptions(), "0")
    store._watch = SimpleNamespace(failure_reason=lambda: "the reason", is_full=lambda: full)
    store._reservations = SimpleNamespace(writable=lambda: 0)
    store._quota = SimpleNamespace(total=0, limit_of=lambda _: 0, used=lambda _: 0)
    failed: Store = store
    return failed


@pytest.mark.parametrize(("full", "expected"), [(True, NoCapacity), (False, EngineUnavailable)])
def test_read_only_store_without_room_is_not_called_full(tmp_path: Path, full: bool, expected: type) -> None:
    store = _failed_store(tmp_path, full=full)
    readiness = store.failure()
    assert readiness is not None
    assert readiness.full is full
    assert type(store_full(store)) is expected
