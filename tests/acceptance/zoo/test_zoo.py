"""The apps of the zoo, each deployed cold, cached and as a new version: up, rightly judged, its data kept."""

from __future__ import annotations

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.zoo.animals import ANIMALS
from tests.acceptance.zoo.app import ZooApp
from tests.acceptance.zoo.keeper import measure

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize("app", ANIMALS, ids=lambda app: app.name)
def test_app_is_up_and_keeps_its_data(service: LiveService, app: ZooApp) -> None:
    row = measure(service, app)
    assert row.verdict == "up"
    assert row.cached > 0
