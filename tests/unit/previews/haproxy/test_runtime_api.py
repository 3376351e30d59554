"""Commands are written so that HAProxy takes each for one; its answers, table and map are understood or raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from builderd.core.ids import BuilderId, TenantId, new_id, secret_hash
from builderd.previews.haproxy import runtime_api
from builderd.previews.haproxy.counters import parse
from builderd.previews.haproxy.runtime_api import CommandRefused, ProxyGone, RouteMap, decode, encode
from builderd.previews.model import Address, PreviewActivity, Route, RouteState

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


ANSWER = """\
# table: activity, type: string, size:102400, used:2
0x7f0c4b77e428: key=app.localhost use=0 exp=604795000 shard=0 conn_cur=0 http_req_cnt=17 \
bytes_in_cnt=1142 bytes_out_cnt=2563 http_fail_cnt=1 gpc0=9 gpc1=2 gpc2=4 gpc3=1 gpc4=12 gpc14=3 gpc26=2 gpc47=1
0x7f0c4babd028: key=busy.localhost use=2 exp=604000000 shard=0 conn_cur=2 http_req_cnt=6 \
bytes_in_cnt=502 bytes_out_cnt=932 http_fail_cnt=0
"""

#: Two answers with a status of 4xx took less than 5 ms, one of 5xx more than 10 s.
TIMES = (0,) * 11 + (2,) + (0,) * 10 + (0,) * 10 + (1,)
ANSWERS: Any = {
    "class_times": TIMES,
    "answers_2xx": 9,
    "answers_3xx": 2,
    "answers_4xx": 4,
    "answers_5xx": 1,
    "within_5_ms": 12,
    "slower": 3,
}
APP = PreviewActivity(17, 1142, 2563, open_connections=0, failures=1, idle_seconds=5.0, **ANSWERS)
BUSY = PreviewActivity(6, 502, 932, open_connections=2, failures=0, idle_seconds=0.0)


def test_the_table_is_read() -> None:
    assert parse(ANSWER) == {"app.localhost": APP, "busy.localhost": BUSY}


OPEN = Route("a.localhost", RouteState.OPEN, Address("10.0.0.1", 8000))
PRIVATE = Route("b.localhost", RouteState.OPEN, Address("fd00::1", 1), token_hash=secret_hash("x"))
STOPPED = Route("c.localhost", RouteState.STOPPED, builder_id=BuilderId(new_id()), owner_hash=secret_hash("y"))
LONGEST = Route(
    ".".join(["x" * 63] * 3 + ["x" * 61]),
    RouteState.OPEN,
    Address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    token_hash="f" * 64,
    builder_id=BuilderId(new_id()),
    tenant_id=TenantId(new_id()),
)
ALL = (OPEN, PRIVATE, STOPPED, LONGEST)


@pytest.mark.parametrize(
    "route", [*ALL, *(replace(one, h2c=True) for one in (OPEN, PRIVATE, LONGEST))], ids=lambda route: route.host[:5]
)
def test_a_route_survives_being_written_down(route: Route) -> None:
    value = encode(route)
    assert decode(route.host, value) == route
    assert not set(value) & set(" ;\n\t#<\"'\\")


@pytest.mark.parametrize(
    "value",
    [
        *("open|h2c|10.0.0.1|80|-|-", "stopped|h2c|-|-|-|-|h2c"),
        *("stopped|public|-|-|-|-|-|x", "stopped|public|-|-|-|-|-|-", "stopped|public|-|-|-|-|-|x|x"),
        *("", "open", "open|public|10.0.0.1|8000|-", "open|public|10.0.0.1|8000|-|-|-", "shut|public|-|-|-|-"),
        *(
            "open|public|-|-|-|-",
            "stopped|public|10.0.0.1|80|-|-",
            "open|secret|10.0.0.1|80|-|-",
            "open|private|10.0.0.1|80|-|-",
        ),
        *(
            "open|public|10.0.0.1|http|-|-",
            "open|public|10.0.0.1|0|-|-",
            "open|public|host|80|-|-",
            "stopped|public|-|-|-|x",
        ),
    ],
)
def test_malformed_line_is_not_a_route(value: str) -> None:
    with pytest.raises(ValueError):
        decode("a.localhost", value)


def test_address_of_an_open_route_is_given_to_no_other_app() -> None:
    first, second = "10.0.0.1", "10.0.0.2"
    other = Route("other.localhost", RouteState.OPEN, Address(first, 1))
    routes = RouteMap({})
    assert not routes.is_reserved(first)
    routes.put(OPEN)
    routes.put(other)
    routes.put(replace(OPEN, destination=Address(second, 8000)))
    assert routes.is_reserved(first), "the other route leads there"
    routes.put(Route(other.host, RouteState.STOPPED))
    routes.remove(OPEN.host)
    assert (routes.is_reserved(first), routes.is_reserved(second)) == (False, False)
    routes.put(OPEN)
    assert RouteMap(routes.values()).is_reserved(first), "also of routes that an earlier service left"
