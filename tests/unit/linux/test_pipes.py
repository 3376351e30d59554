"""Lines from pipes: whole, and without a trace on the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator

import pytest

from builderd.linux.pipes import read_line


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_CLOEXEC)
    yield read, write
    os.close(read)


async def test_the_first_line_is_whole_however_it_comes(pipe: tuple[int, int]) -> None:
    read, write = pipe
    reading = asyncio.create_task(read_line(read, 10))
    for piece in (b"on", b"e\ntw", b"o\n"):
        await asyncio.sleep(0)
        os.write(write, piece)
    assert await reading == b"one"
    os.close(write)


async def test_text_before_the_end_counts_as_a_line(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, b"half")
    os.close(write)
    assert await read_line(read, 10) == b"half"


async def test_missing_data_times_out(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with pytest.raises(TimeoutError):
        await read_line(read, 0.01)
    os.close(write)


async def test_the_descriptor_is_left_alone_afterwards(pipe: tuple[int, int]) -> None:
    """The descriptor's number may belong to a connection by then, which would go deaf."""
    read, write = pipe
    os.write(write, b"line\nmore\n")
    await read_line(read, 10)
    heard = asyncio.Event()
    asyncio.get_running_loop().add_reader(read, heard.set)
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().remove_reader(read)
    os.close(write)
