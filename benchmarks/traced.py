"""``builderd`` with the CPU time of each step of its event loop and of each call of its threads, by place.

    python -m benchmarks.traced TRACE_FILE serve …

SIGUSR1 writes the totals so far to the file, as JSON: milliseconds and number of steps by name. A step is named after
the functions of this project that its task goes on in, a call after its function. A step counts the time until it waits
again, so what follows a wait counts under the name of the wait. Unlike samples, this is exact on a busy machine.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread as pools
import functools
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

#: ``[milliseconds, number]`` by name. Two threads rarely add to one name at once, and then lose one step at most.
totals: dict[str, list[float]] = {}
PACKAGE = "builderd."
#: Functions of the project that are named: the outermost, and the innermost ones.
SHOWN = 4


def trace(file: Path) -> None:
    """Count from now on; write to the file at SIGUSR1."""
    run_handle, run_item = asyncio.Handle._run, pools._WorkItem.run

    def handle(self: asyncio.Handle) -> None:
        name = name_of_handle(self)
        begun = time.thread_time_ns()
        run_handle(self)
        add(name, time.thread_time_ns() - begun)

    def item(self: Any) -> None:
        name = name_of_call(*called(self))
        begun = time.thread_time_ns()
        run_item(self)
        add(name, time.thread_time_ns() - begun)

    def write(_signal: int, _frame: FrameType | None) -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(totals))
        partial.replace(file)

    asyncio.Handle._run = handle  # type: ignore[method-assign]
    pools._WorkItem.run = item  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, write)


def add(name: str, nanoseconds: int) -> None:
    found = totals.setdefault(name, [0.0, 0])
    found[0] += nanoseconds / 1e6
    found[1] += 1


def called(item: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return function and arguments of a thread's call; Python 3.14 names them otherwise."""
    return (item.fn, item.args) if hasattr(item, "fn") else item.task[:2]


def name_of_handle(handle: asyncio.Handle) -> str:
    callback: Any = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return "step " + " > ".join(places(task.get_coro()))
    return "callback " + name_of(callback)


def places(coroutine: Any) -> list[str]:
    """Return the functions of this project in which a coroutine waits; its own if there are none."""
    found: list[str] = []
    first = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            name = frame.f_code.co_qualname
            first = first or name
            if str(frame.f_globals.get("__name__", "")).startswith(PACKAGE):
                found.append(name)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return [*found[:1], *found[1:][-SHOWN:]] or [first]


def name_of_call(function: Any, arguments: tuple[Any, ...]) -> str:
    """Return the name of a call, with that of the work for the store."""
    while True:
        if isinstance(function, functools.partial):
            function, arguments = function.func, (*function.args, *arguments)
        elif name_of(function) == "Context.run" and arguments:
            function, *rest = arguments
            arguments = tuple(rest)
        else:
            break
    works = [name_of(one) for one in arguments if callable(one)]
    closed = [name_of(cell.cell_contents) for work in arguments if callable(work) for cell in closure(work)]
    return "call " + " ".join([name_of(function), *works, *(name for name in closed if name)])


def closure(function: Callable[..., Any]) -> list[Any]:
    return [cell for cell in getattr(function, "__closure__", None) or () if callable(cell.cell_contents)]


def name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", "") or type(function).__qualname__)


if __name__ == "__main__":
    trace(Path(sys.argv[1]))
    del sys.argv[1]
    from builderd.cli.main import main

    main()
