"""Reviews, as programs use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.service import MINIMAL
from tests.threaded_service import Running

from builderd.client.legacy import ApiError, Client
from builderd.domain.reviews import Severity
from builderd.schemas.v1.builders import NewBuilder

RISKY = NewBuilder.model_validate({**MINIMAL, "files": {"main.py": "take_risk()\n"}}, context={})


@pytest.fixture(autouse=True)
def risky(running: Running) -> Iterator[None]:
    running.service.scanner.dislikes = {"take_risk": "RSK-metadata"}
    yield
    running.service.scanner.dislikes = {}


def test_a_refused_builder_is_accepted_and_started(client: Client) -> None:
    with pytest.raises(ApiError, match="review_failed") as caught:
        client.create(RISKY)
    uuid = caught.value.data["uuid"]
    (finding,) = client.reviews.get(uuid).findings
    assert (finding.path, finding.line, finding.severity) == ("main.py", 1, Severity.HOLD)
    until = datetime.now(UTC) + timedelta(hours=1)
    assert client.reviews.accept(uuid, finding.fingerprint, "it is meant", expires=until).passed
    assert client.start(uuid).review_passed
    assert client.reviews.run(uuid).passed
    assert client.reviews.get(uuid, version=1).version == 1
    (run,) = json.loads(client.reviews.sarif(uuid))["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["RSK-metadata"]
