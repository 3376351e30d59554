"""A failure of the port for standbys never ends the service that works, and is tried again."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster, instance

from builderd.adapters.previews.haproxy.options import Receiving
from builderd.bootstrap import receiving
from builderd.bootstrap.keys import make_keys
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.receiving import Receiver
from builderd.domain.errors import EngineUnavailable
from builderd.ports.engine import MemberAddresses
from builderd.settings import Settings


class FakePreviews:
    """``HaproxyPreviews``; ``taken`` is an address and port at which its proxy cannot listen."""

    def __init__(self) -> None:
        self.receiving: Receiving | None = None
        self.members: Collection[str] = ()
        self.taken: tuple[str, int] | None = None
        self.broken: Exception | None = None
        self.runs = False

    async def start(self, lost: object = None) -> None:
        self._listen(self.receiving)
        self.runs = True

    async def receive(self, receiving: Receiving, members: Collection[str]) -> None:
        if self.broken is not None:
            raise self.broken
        if self.runs:
            self._listen(receiving)
        self.receiving, self.members = receiving, members

    def receive_nothing(self) -> None:
        self.receiving = None

    def _listen(self, receiving: Receiving | None) -> None:
        if receiving is not None and (receiving.address, receiving.port) == self.taken:
            raise EngineUnavailable("the preview proxy cannot listen for standbys")


@pytest.fixture
def settings(tmp_path: Path, unused_tcp_port: int) -> Settings:
    return Settings(data_dir=tmp_path, members_port=unused_tcp_port)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(members=MemberAddresses("127.0.0.1", ["127.0.0.1", "127.0.0.2"]))


@pytest.fixture
def previews() -> FakePreviews:
    return FakePreviews()


@pytest.fixture
def receiver(settings: Settings, cluster: FakeCluster, previews: FakePreviews) -> Receiver:
    return Receiver(Membership(settings, instance(settings), cluster), cast("Any", previews))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, receiving.__name__):
        yield caplog


async def test_port_opens_once_the_cluster_answers_and_there_is_a_key(
    receiver: Receiver, settings: Settings, cluster: FakeCluster, previews: FakePreviews
) -> None:
    cluster.failing_lists = 1
    await receiver.start()
    assert previews.runs
    await receiver._look()
    assert previews.receiving is None, "there is no key"
    settings.vault_key_file.touch(0o600)
    await receiver._look()
    assert previews.receiving is None, "the key is empty"
    settings.vault_key_file.unlink()
    make_keys(settings).load()
    await receiver._look()
    assert previews.receiving is not None
    assert (previews.receiving.address, previews.receiving.port) == ("127.0.0.1", settings.members_port)
    assert list(previews.members) == ["127.0.0.1", "127.0.0.2"]
    cluster.members = MemberAddresses("127.0.0.3", ["127.0.0.3"])
    await receiver._look()
    assert (previews.receiving.address, list(previews.members)) == ("127.0.0.3", ["127.0.0.3"])


async def test_taken_port_keeps_standbys_out_and_previews_go_on(
    receiver: Receiver, settings: Settings, previews: FakePreviews, warnings: pytest.LogCaptureFixture
) -> None:
    make_keys(settings).load()
    with socket.create_server(("127.0.0.1", settings.members_port)):
        previews.taken = ("127.0.0.1", settings.members_port)
        await receiver.start()
        assert previews.runs
        for _ in range(3):
            await receiver._look()
        assert previews.receiving is None
    reasons = [one.getMessage() for one in warnings.records]
    assert len(reasons) == 2, reasons
    assert "cannot listen for standbys" in reasons[0]
    assert "Cannot listen on 127.0.0.1" in reasons[1]
    assert "Choose another with members_port" in reasons[1]
    previews.taken = None
    await receiver._look()
    assert previews.receiving is not None


async def test_previews_that_do_not_start_at_all_end_the_start(
    receiver: Receiver, previews: FakePreviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(lost: object) -> None:
        raise EngineUnavailable("the previews need HAProxy")

    monkeypatch.setattr(previews, "start", fail)
    with pytest.raises(EngineUnavailable, match="need HAProxy"):
        await receiver.start()


async def test_port_of_another_setting_is_named(
    tmp_path: Path, cluster: FakeCluster, previews: FakePreviews, warnings: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path, inside_port=8083)
    make_keys(settings).load()
    await Receiver(Membership(settings, instance(settings), cluster), cast("Any", previews)).start()
    assert previews.runs
    assert previews.receiving is None
    assert "8083 is the inside_port, too" in warnings.text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("x")])
async def test_no_failure_ends_the_watch(
    error: Exception, receiver: Receiver, settings: Settings, previews: FakePreviews
) -> None:
    make_keys(settings).load()
    previews.broken = error
    await receiver._look()
    previews.broken = None
    await receiver._look()
    assert previews.receiving is not None
