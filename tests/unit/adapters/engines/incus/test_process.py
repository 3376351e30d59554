"""A command's report that it begins, and the output that may come in one piece with it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.image import ASKING, NO_FOLDER, READY
from builderd.adapters.engines.incus.process import ExecSession, IncusProcess
from builderd.domain.errors import BuilderdError, InvalidState, ValidationFailed
from builderd.domain.processes import ProcessSpec

REPORT = READY + b"17\n"
#: More than the wrapper itself ever writes.
LONG = b"x" * 65_000


class Session:
    """An exec session whose output comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.ended = self.closed = self.is_terminal = False

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def write(self, data: bytes) -> None: ...

    async def close_input(self) -> None: ...

    async def hang_up_terminal(self) -> None: ...

    async def wait(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True


def started(monkeypatch: pytest.MonkeyPatch, *pieces: bytes) -> tuple[IncusProcess, Session]:
    session = Session(list(pieces))

    async def answer(*_: Any) -> Session:
        return session

    monkeypatch.setattr(ExecSession, "open", answer)
    return IncusProcess(cast("IncusClient", None), "s-1", ProcessSpec(("true",))), session


@pytest.mark.parametrize(
    "pieces",
    [
        (ASKING, REPORT + LONG),
        (ASKING, REPORT[:2], REPORT[2:] + LONG),
        (ASKING + REPORT + LONG,),
        (ASKING, REPORT + b"it ends like no folder" + NO_FOLDER),
    ],
)
async def test_output_in_one_piece_with_the_report_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    process, _ = started(monkeypatch, *pieces)
    await process.begin()
    assert await process.read() == b"".join(pieces).partition(REPORT)[2]


@pytest.mark.parametrize(
    ("pieces", "refusal"),
    [
        ((ASKING, NO_FOLDER), ValidationFailed),
        ((ASKING, b"setpriv: failed"), InvalidState),
        ((ASKING,), InvalidState),
        ((), InvalidState),
        ((LONG, ASKING), InvalidState),
        ((ASKING, LONG, REPORT), InvalidState),
    ],
)
async def test_command_without_a_report_is_refused_and_closed(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...], refusal: type[BuilderdError]
) -> None:
    process, session = started(monkeypatch, *pieces)
    with pytest.raises(refusal):
        await process.begin()
    assert session.closed
