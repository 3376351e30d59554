"""Limits of growth on a store of 1,000 bytes, a tenth of which is 100: who may still write how much."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from builderd.engine.oci.storage.growth import Grower, limit_growth

ANA, BEN, ANAS, FAST, SLOW = range(5)
QUIET = Grower(100, 99, promised=10**6, disks={ANAS: Grower(100, 99)})
GROWN = Grower(700, 100, promised=10**6, disks={FAST: Grower(600, 1), SLOW: Grower(100, 99)})
KNOWN = Grower(700, 100, 702, 10**6, {FAST: Grower(600, 1, 602), SLOW: Grower(100, 99)})
SATED = Grower(100, 99, promised=10, disks={ANAS: Grower(100, 99)})
FREE = dict.fromkeys((ANAS, FAST, SLOW))


@pytest.mark.parametrize(
    ("ana", "ben", "writable", "expected"),
    [
        pytest.param(QUIET, GROWN, 500, {**FREE, ANA: 550, BEN: 1150}, id="with room all but a twentieth is anybody's"),
        pytest.param(SATED, GROWN, 500, {**FREE, ANA: None, BEN: 1150}, id="its own limits are enough"),
        pytest.param(QUIET, KNOWN, 130, {**FREE, ANA: 180, BEN: 780}, id="limits are lifted with room again"),
        pytest.param(QUIET, KNOWN, 110, {**FREE, ANA: 160, BEN: 702, FAST: 602}, id="and not before"),
        pytest.param(QUIET, GROWN, 80, {**FREE, ANA: 140, BEN: 708, FAST: 604}, id="the fastest get next to nothing"),
        pytest.param(QUIET, KNOWN, 80, {**FREE, ANA: 140, BEN: 702, FAST: 602}, id="limits are only lowered"),
        pytest.param(QUIET, QUIET, 80, {ANAS: None, ANA: 140, BEN: 140}, id="slow growth goes on"),
        pytest.param(QUIET, KNOWN, 0, {**FREE, ANA: 100, BEN: 700, FAST: 600, ANAS: 100, SLOW: 100}, id="nothing left"),
    ],
)
def test_the_largest_growers_are_limited_first(
    ana: Grower, ben: Grower, writable: int, expected: Mapping[int, int | None]
) -> None:
    assert limit_growth({ANA: ana, BEN: ben}, writable, 1000) == expected
