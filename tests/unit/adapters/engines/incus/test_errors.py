"""Words of Incus as errors of the service."""

from __future__ import annotations

import pytest

from builderd.adapters.engines.incus.client import (
    IncusConflict,
    IncusError,
    IncusNotFound,
    InstanceEnded,
    PoolFull,
    error_of,
)
from builderd.domain.errors import BuilderdError, EngineUnavailable, NoCapacity


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (404, "Instance not found", IncusNotFound),
        (500, "Invalid PID '\ufffd'", InstanceEnded),
        (409, "The network ACL already exists", IncusConflict),
        (500, "UNIQUE constraint failed: projects.name", IncusConflict),
        (500, "no space left on device", PoolFull),
        (500, "unable to create: Disk quota exceeded", NoCapacity),
        (503, "no available cowsql leader server found", EngineUnavailable),
        (500, "Failed to begin transaction: context deadline exceeded", EngineUnavailable),
        (400, 'Failed shutting down instance, status is "Running": context deadline exceeded', IncusError),
        (400, "Invalid config", IncusError),
    ],
)
def test_kind_of_each_answer(status: int, text: str, kind: type[BuilderdError]) -> None:
    error = error_of(status, text, "POST /instances")
    assert type(error) is kind
    assert text in error.message


def test_cluster_without_a_quorum_says_when_to_try_again() -> None:
    error = error_of(503, "no available cowsql leader server found", "GET /instances")
    assert error.retry_after
    assert "incus cluster list" in error.message


def test_full_pool_is_named_without_paths_of_its_member() -> None:
    error = error_of(500, "write /var/lib/incus/backup.yaml: no space left on device", "GET /operations/1/wait")
    assert "storage pool of Incus is full (no space left on device)" in error.message


@pytest.mark.parametrize("text", ["write: no space left on device", "unable to create: Disk quota exceeded"])
def test_full_pool_and_full_root_say_when_to_try_again(text: str) -> None:
    assert error_of(500, text, "POST /instances").retry_after
