"""One live service for all acceptance tests that do not need one of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.acceptance.host_traces", "tests.acceptance.live_service", "tests.acceptance.scenarios"
)

from tests.acceptance.live_service import LiveService, live_service  # noqa: E402

METRICS_TOKEN = "scrape"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    data_dir = tmp_path_factory.mktemp("service") / "data"
    with live_service(data_dir, BUILDERD_METRICS_TOKEN=METRICS_TOKEN) as running:
        yield running


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(scope="session")
def quick_to_give_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A second service on the same machine, which waits 25 seconds for an app to listen."""
    with live_service(tmp_path_factory.mktemp("quick") / "data", BUILDERD_LIMITS__START_TIMEOUT="25") as running:
        yield running
