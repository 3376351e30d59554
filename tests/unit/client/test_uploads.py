"""Uploads outlive the service that receives them: they go on, or begin again, at the next one."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from random import Random

import httpx2
import pytest
from tests.fakes.uploads import FakeUploads
from tests.threaded_service import Running

from builderd import Builderd
from builderd.client._sync import uploads
from builderd.client.errors import NoAnswer, Unavailable

ARCHIVE = Random(1).randbytes(500_000)


class TakingOver(httpx2.HTTPTransport):
    """Cuts the first part off; refuses the next calls, as a standby does; then calls ``over``, and all is answered."""

    def __init__(self, over: Callable[[], None], refused: int = 3) -> None:
        super().__init__()
        self._over, self._refused = over, refused
        self.parts: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PUT":
            self.parts.append(request.headers["content-range"])
            if len(self.parts) == 1:
                request.stream = _Cut(request.stream)
                return super().handle_request(request)
        if self.parts and self._refused:
            self._refused -= 1
            if not self._refused:
                self._over()
            body = {"message": "Another service takes over.", "code": "engine_unavailable", "errors": {}}
            return httpx2.Response(503, headers={"Retry-After": "1"}, json=body, request=request)
        return super().handle_request(request)


class _Cut(httpx2.SyncByteStream):
    def __init__(self, stream: object) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        for piece in self._stream:  # type: ignore[attr-defined]
            yield piece
            sent += len(piece)
            if sent >= 300_000:
                raise httpx2.WriteError("the service was killed")


@pytest.fixture(autouse=True)
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(uploads, "sleep", lambda _: None)


def stored(running: Running) -> FakeUploads:
    found = running.service.application.uploads
    assert isinstance(found, FakeUploads)
    return found


@pytest.mark.parametrize("kept", [True, False])
def test_upload_goes_on_or_begins_again_at_the_service_that_takes_over(running: Running, kept: bool) -> None:
    def over() -> None:
        # The request that was cut off has begun there, and ended.
        while stored(running)._writing or not any(stored(running).stored.values()):
            time.sleep(0.01)
        if not kept:
            stored(running).stored.clear()

    transport = TakingOver(over)
    with Builderd(running.url, running.service.write, transport=transport, max_retries=0) as client:
        upload = client.uploads.send(io.BytesIO(ARCHIVE))
    starts = [int(part.removeprefix("bytes ").partition("-")[0]) for part in transport.parts]
    assert starts[0] == 0
    assert (starts[-1] > 0) is kept
    (content,) = stored(running).stored.values()
    assert hashlib.sha256(content).digest() == hashlib.sha256(ARCHIVE).digest()
    assert upload in stored(running).stored


def test_upload_is_given_up_where_no_service_takes_over(running: Running) -> None:
    transport = TakingOver(lambda: None, refused=10_000)
    with Builderd(running.url, running.service.write, transport=transport, max_retries=0) as client:
        with pytest.raises((NoAnswer, Unavailable)):
            client.uploads.send(io.BytesIO(ARCHIVE))
    assert transport._refused >= 10_000 - uploads.ATTEMPTS
