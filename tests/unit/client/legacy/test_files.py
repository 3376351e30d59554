"""Files and uploads, as programs use them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import zstandard
from tests.service import MINIMAL
from tests.threaded_service import Running

from builderd.client.legacy import ApiError, Client, NoAnswer, files
from builderd.schemas.v1.builders import Builder, NewBuilder

NEW = NewBuilder.model_validate(MINIMAL, context={})


@pytest.fixture
def builder(client: Client) -> Builder:
    return client.create(NEW)


def packed(content: bytes = b"print('hello')") -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("top/main.py")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return out


def test_files_are_written_listed_read_and_deleted(client: Client, builder: Builder) -> None:
    content = bytes(range(256)) * 9000
    assert client.files.write(builder.uuid, "data/a b#?.bin", content, executable=True).mode == "0755"
    (entry,) = client.files.list_page(builder.uuid, "data").data
    assert (entry.name, entry.size) == ("a b#?.bin", len(content))
    assert client.files.read(builder.uuid, "data/a b#?.bin") == content
    client.files.delete(builder.uuid, "data", recursive=True)
    with pytest.raises(ApiError) as raised:
        client.files.read(builder.uuid, "data/a b#?.bin")
    assert raised.value.code == "not_found"


def test_large_files_go_through_in_pieces(client: Client, builder: Builder) -> None:
    content = bytes(range(256)) * 20_000
    source = io.BytesIO(b"skipped" + content)
    source.seek(7)
    assert client.files.write(builder.uuid, "big", source).size == len(content)
    out = io.BytesIO()
    assert client.files.download(builder.uuid, "big", out, start=1000) == len(content) - 1000
    assert out.getvalue() == content[1000:]
    with pytest.raises(ApiError, match="nothing at"):
        client.files.download(builder.uuid, "nothing", out)


def test_all_files_come_in_one_archive(client: Client, builder: Builder) -> None:
    out = io.BytesIO()
    assert client.files.archive(builder.uuid, out) == len(out.getvalue())
    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(out.getvalue())
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        assert tar.getnames() == ["./main.py"]


def test_an_upload_goes_on_where_its_connection_broke_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(files, "PIECE_BYTES", 10_000)
    archive = packed(b"#" * 500_000)
    transport = BreakingOff(300_000)
    with Client(running.url, running.service.write, transport=transport) as client:
        upload = client.files.upload(archive)
        assert transport.begun[0].startswith("bytes 0-")
        assert len(transport.begun) == 2
        assert 0 < int(transport.begun[1].removeprefix("bytes ").partition("-")[0]) <= 300_000
        stored = asyncio.run(running.service.application.uploads.open(upload))  # type: ignore[arg-type]
        assert hashlib.sha256(stored.read()).digest() == hashlib.sha256(archive.getvalue()).digest()
        made = client.create(
            NewBuilder.model_validate(
                {"name": "up", "entrypoint": "python3 main.py", "source": {"upload_id": upload}}, context={}
            )
        )
        assert client.files.read(made.uuid, "main.py") == b"#" * 500_000
        client.files.delete_upload(upload)


def test_an_upload_that_always_breaks_off_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.01)
    with Client(running.url, running.service.write, transport=BreakingOff(10, times=100)) as client:
        with pytest.raises(NoAnswer):
            client.files.upload(packed())


class BreakingOff(httpx2.HTTPTransport):
    """Breaks off the first bodies of PUT requests after so many bytes."""

    def __init__(self, after: int, times: int = 1) -> None:
        super().__init__()
        self._after, self._times = after, times
        self.begun: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PUT":
            self.begun.append(request.headers["content-range"])
            if len(self.begun) <= self._times:
                request.stream = _Cut(request.stream, self._after)
        return super().handle_request(request)


class _Cut(httpx2.SyncByteStream):
    def __init__(self, stream: Any, left: int) -> None:
        self._stream = stream
        self._left = left

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            yield piece[: self._left]
            self._left -= len(piece)
            if self._left <= 0:
                raise httpx2.WriteError("the connection broke off")
