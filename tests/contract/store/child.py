"""Run as a process of its own: ``child.py URL migrate|write``. Waits for a line before it begins.

``write`` adds builders, each with a version and an event in one unit of work, until it is killed, and prints the name
of each that was committed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import count

from tests.contract.store.samples import make_builder, make_event, make_version

from builderd.database.unit_of_work import Store, UnitOfWork

TASKS = 6


async def main(url: str, task: str) -> None:
    store = Store(url)
    say("ready")
    sys.stdin.readline()
    if task == "migrate":
        await store.migrate()
        await store.close()
        return
    await asyncio.gather(*(write(store, number) for number in range(TASKS)))


async def write(store: Store, task: int) -> None:
    for number in count():
        name = f"task-{task}-{number}"
        await store.write(lambda uow, name=name: add(uow, name))  # type: ignore[misc]
        say(name)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def add(uow: UnitOfWork, name: str) -> None:
    builder = make_builder(name=name)
    uow.builders.add(builder)
    # So that the end comes in the middle of one.
    time.sleep(0.001)
    uow.versions.add(make_version(builder.id))
    uow.events.add(make_event(builder.id))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
