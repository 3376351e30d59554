"""Lists from a program: as a whole, however many pages they have."""

from __future__ import annotations

import pytest
from tests.unit.client.legacy.test_client import new

from builderd.client.legacy import Client, pages


def test_a_list_is_whole(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_PER_PAGE", 1)
    uuid = client.create(new()).uuid
    for number in range(3):
        client.put_credential(f"c{number}", {"A": "x"})
        client.take_lease(uuid, 600)
    client.watch.create_webhook("https://example.com/")
    assert [one.name for one in client.credentials()] == ["c0", "c1", "c2"]
    assert len(client.leases(uuid)) == 3
    assert len(client.watch.webhooks()) == len(client.versions.list(uuid)) == 1
