"""Processes on one database: several that migrate at once, and one that is killed at its work."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from subprocess import PIPE

import pytest
from sqlalchemy import create_engine, text
from tests.contract.store.samples import TENANT, add, add_builder
from tests.stores import open_store


def start_child(url: str, task: str) -> subprocess.Popen[str]:
    """Ready to begin: it has loaded all it needs."""
    argv = [sys.executable, "-m", "tests.contract.store.child", url, task]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


async def test_concurrent_migrations_all_succeed(shared_url: str) -> None:
    children = [start_child(shared_url, "migrate") for _ in range(2)]
    outcomes = await asyncio.gather(*(asyncio.to_thread(child.communicate, "go\n", 60) for child in children))
    assert [(child.returncode, errors) for child, (_, errors) in zip(children, outcomes, strict=True)] == [(0, "")] * 2
    async with open_store(shared_url) as store:
        await add(store, TENANT)
        await add_builder(store)


@pytest.mark.parametrize("acknowledged", [20, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 75))])
async def test_killed_writer_leaves_only_complete_units_of_work(shared_url: str, acknowledged: int) -> None:
    async with open_store(shared_url) as store:
        await add(store, TENANT)
    child = start_child(shared_url, "write")
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    done = {child.stdout.readline().strip() for _ in range(acknowledged)}
    child.kill()
    rest, _ = child.communicate()
    done |= set(rest.split("\n")[:-1])

    async with open_store(shared_url) as store:
        builders = await store.read(lambda uow: uow.builders.of_tenant(TENANT.id, deleted=True))
        names = {builder.name for builder in builders}
        versions = await store.read(lambda uow: Counter(len(uow.versions.list(one.id)) for one in builders))
        events = await store.read(lambda uow: Counter(len(uow.events.of_builder(one.id)) for one in builders))
        assert versions == events == {1: len(builders)}
        assert done <= names, "what was acknowledged is there"
        await add_builder(store)
    _check_file(shared_url)


def _check_file(url: str) -> None:
    if not url.startswith("sqlite"):
        return
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
    engine.dispose()
