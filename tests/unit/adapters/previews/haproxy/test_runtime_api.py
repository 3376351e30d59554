"""Commands are written so that HAProxy takes each for one, and whatever it answers is understood or raised."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from builderd.adapters.previews.haproxy import runtime_api
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone

TABLE = Path("/a b/routes.map")
WORD = r"/a\ b/routes.map"


@asynccontextmanager
async def proxy(answer: Callable[[str], str]) -> AsyncIterator[tuple[Path, list[str]]]:
    """A stand-in that answers each command as told, and the commands that it got."""
    got: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = (await reader.read()).decode()
        got.append(command)
        writer.write(answer(command).encode())
        writer.close()

    with TemporaryDirectory(prefix="previews-") as directory:
        path = Path(directory) / "admin.sock"
        async with await asyncio.start_unix_server(serve, path):
            yield path, got


async def test_missing_key_is_added() -> None:
    answers = {"set": "entry not found.\n\n", "add": "\n"}
    async with proxy(lambda command: answers[command.split()[0]]) as (admin, got):
        await runtime_api.set_entry(admin, TABLE, "a.localhost", "v")
    assert got == [f"set map {WORD} a.localhost v\n", f"add map {WORD} a.localhost v\n"]


@pytest.mark.parametrize("answer", ["Unknown map identifier. Please use #<id> or <file>.\n", "Out of memory error.\n"])
async def test_a_refused_change_is_raised_in_its_own_words(answer: str) -> None:
    async with proxy(lambda command: answer) as (admin, _):
        for change in (
            runtime_api.set_entry(admin, TABLE, "a", "v"),
            runtime_api.delete_entry(admin, TABLE, "a"),
        ):
            with pytest.raises(CommandRefused, match=answer[:10]):
                await change


async def test_many_entries_are_changed_by_few_lines() -> None:
    have = "0x1 gone v\n0x2 same v\n0x3 changed old\n"
    wanted = {"same": "v", "changed": "new", **{f"{number}.localhost": "v" * 100 for number in range(300)}}
    async with proxy(lambda command: have if command.startswith("show") else "\n") as (admin, got):
        await runtime_api.sync_entries(admin, TABLE, wanted)
    got.remove(f"show map {WORD}\n")
    assert len(got) < 12
    assert all(len(line) <= 2 * runtime_api.LINE_BYTES for line in got)
    commands = [command for line in got for command in line.strip().split("; ")]
    assert commands[0] == f"del map {WORD} gone"
    assert commands[-1] == f"set map {WORD} changed new"
    assert len(commands) == 2 + 300


async def test_one_refused_command_among_many_is_raised() -> None:
    refusal = "Key not found.\n\nOut of memory error.\n\n"
    async with proxy(lambda command: "\n" if command.startswith("show") else refusal) as (admin, _):
        with pytest.raises(CommandRefused, match="Out of memory"):
            await runtime_api.sync_entries(admin, TABLE, {"a": "v", "b": "v"})


async def test_malformed_entries_raise() -> None:
    async with proxy(lambda command: "Unknown map identifier.\n") as (admin, _):
        with pytest.raises(CommandRefused, match="Unknown map"):
            await runtime_api.entries(admin, TABLE)


async def test_missing_proxy_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ProxyGone, match=r"admin\.sock"):
        await runtime_api.ask(tmp_path / "admin.sock", "show info")


async def test_closed_connection_means_no_proxy() -> None:
    async with proxy(lambda command: "") as (admin, _):
        with pytest.raises(ProxyGone, match="without an answer"):
            await runtime_api.ask(admin, "show info")


async def test_hanging_proxy_means_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_api, "ANSWER_TIMEOUT", 0.05)
    with TemporaryDirectory(prefix="previews-") as directory:
        path = Path(directory) / "admin.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            with pytest.raises(ProxyGone, match="no answer in time"):
                await runtime_api.ask(path, "show info")
