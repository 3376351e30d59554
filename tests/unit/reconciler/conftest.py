"""Fixtures of the reconciler's tests."""

from __future__ import annotations

from datetime import timedelta

import pytest

from builderd.reconciler import worker


@pytest.fixture
def claims_outlast_fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are renewed in real time; fake time lets one that is held for a tenth of a second expire, ever again."""
    monkeypatch.setattr(worker, "LEASE", timedelta(days=1))
