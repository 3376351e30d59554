"""Concurrency limits: each tenant has its own, and gets room back."""

from __future__ import annotations

import pytest

from builderd.domain.errors import RateLimited
from builderd.domain.ids import TenantId
from builderd.operations.operations import ConcurrencyLimit

ACME, OTHER = TenantId("acme"), TenantId("other")


def test_a_tenant_has_so_many_at_a_time_and_leaves_the_rest_to_others() -> None:
    limit = ConcurrencyLimit(2, "archives of yours are being sent already.")
    with limit.acquire(ACME):
        with limit.acquire(ACME):
            with pytest.raises(RateLimited, match=r"2 archives of yours") as refused, limit.acquire(ACME):
                pass
            assert refused.value.retry_after == 10
            with limit.acquire(OTHER):
                assert limit.total() == 3
        with limit.acquire(ACME):
            assert limit.total() == 2
    assert limit.total() == 0


def test_failed_call_releases_its_slot() -> None:
    limit = ConcurrencyLimit(1, "files.")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), limit.acquire(ACME):
            raise ValueError("broken")
    assert limit.total() == 0
