"""Entries of a list are byte for byte what the models of whole builders write, for random builders of every kind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import product
from random import Random
from typing import Any

import pytest
from tests.application import World, fake_world
from tests.contract.store.samples import make_builder, make_sandbox, make_version

from builderd.api.v1.listed_builders import encode_page
from builderd.api.v1.presenters import present_builder
from builderd.domain.backups import Backup, BackupKind, BackupStatus
from builderd.domain.builders import Builder, Desired, JobType, Status, Visibility
from builderd.domain.credentials import Credential
from builderd.domain.ids import BackupId, new_id
from builderd.domain.prices import Billing, Segment
from builderd.domain.resources import Resources
from builderd.domain.versions import Isolation, Protocol, VersionSettings
from builderd.ports.store import UnitOfWork
from builderd.ports.store.builder_lists import ListedDocuments
from builderd.ports.store.builders import BuilderQuery
from builderd.services import builder_lists, builders

SHOWN = [status for status in Status if status is not Status.DELETED]
KINDS = list(product(SHOWN, JobType, Visibility))
#: What JSON escapes, or has reasons to: quotes, controls, separators, half-width and astral characters, nothing.
TEXTS = ("", "plain", 'a"b\\c', "\x01\x1f\x7f\b\f\n\r\t", "\u2028\u2029</script>", "ä\u20ac\U0001f600", "%s %(x)s {0}")
HOURS = timedelta(hours=1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as made:
        yield made


def _time(draw: Random, now: datetime) -> datetime:
    return now - timedelta(microseconds=draw.randrange(10**13))


def _builder(draw: Random, world: World, kind: tuple[Status, JobType, Visibility]) -> Builder:
    now, (status, job_type, visibility) = world.clock.now(), kind
    return make_builder(
        tenant_id=world.caller.tenant_id,
        status=status,
        job_type=job_type,
        visibility=visibility,
        desired=draw.choice([Desired.RUNNING, Desired.STOPPED]),
        status_reason=draw.choice(TEXTS).replace("\0", ""),
        exit_code=draw.choice([None, 0, 1, 137, -9]),
        auto_stop_interval=draw.choice([0, 15, 2**40]),
        backup_interval_hours=draw.choice([0, 24]),
        location=draw.choice(["", "node-2"]),
        created_at=_time(draw, now),
        updated_at=_time(draw, now),
        last_active_at=draw.choice([None, _time(draw, now)]),
        disk_released_at=draw.choice([None, _time(draw, now)]),
    )


def _settings(draw: Random) -> VersionSettings:
    resources = Resources(draw.choice([0.25, 1, 1 / 3, 64]), draw.choice([0.125, 0.1 + 0.2, 7]), draw.choice([1, 1e-6]))
    return VersionSettings(
        entrypoint=draw.choice(TEXTS),
        port=draw.choice([1, 8080, 65_535]),
        env={text: draw.choice(TEXTS) for text in draw.sample(TEXTS, draw.randrange(3))},
        resources=resources,
        isolation=draw.choice(list(Isolation)),
        credentials=draw.choice([(), ("changed",), ("kept", "gone"), ("kept",)]),
        require_qa=draw.choice([True, False]),
        install_scripts=draw.choice([True, False]),
        build=draw.choice(TEXTS),
        release=draw.choice(TEXTS),
        start_timeout=draw.choice([0, 600]),
        protocol=draw.choice(list(Protocol)),
        root=draw.choice(TEXTS),
        env_file=draw.choice(TEXTS),
        env_file_values={text: draw.choice(TEXTS) for text in draw.sample(TEXTS, draw.randrange(3))},
    )


def _add_costs(draw: Random, uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    """Add segments over several months, and an open one that may begin later than now."""
    at = now - draw.randrange(1, 200) * 24 * HOURS
    for _ in range(draw.randrange(4)):
        end = at + timedelta(microseconds=draw.randrange(10**12))
        rate = Decimal(draw.randrange(10**18)).scaleb(-18)
        uow.ledger.open(Segment(builder.tenant_id, builder.id, draw.choice(list(Billing)), at, end, rate))
        at = end
    if draw.random() < 0.8:
        start = draw.choice([_time(draw, now), now, now + HOURS])
        rate = Decimal(draw.randrange(10**12)).scaleb(-12)
        uow.ledger.open(Segment(builder.tenant_id, builder.id, draw.choice(list(Billing)), start, None, rate))


def _add_backups(draw: Random, uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    for _ in range(draw.randrange(3)):
        made = (BackupId(new_id()), builder.tenant_id, builder.id, builder.name, 1, BackupKind.SCHEDULED)
        status = draw.choice(list(BackupStatus))
        uow.backups.add(Backup(*made, status, "system", "me", _time(draw, now), error=draw.choice(TEXTS)))


def _store(draw: Random, uow: UnitOfWork, world: World) -> None:
    now, tenant = world.clock.now(), world.caller.tenant_id
    for name, at in (("changed", now + HOURS), ("kept", now - 10**4 * HOURS)):
        uow.credentials.add(Credential(tenant, name, ("NAME",), b"sealed", at, at))
    for kind in KINDS:
        builder = _builder(draw, world, kind)
        uow.builders.add(builder)
        verdict = {"review_passed": draw.choice([None, True, False]), "qa_passed": draw.choice([None, True, False])}
        until = draw.choice([None, now - HOURS, now, now + HOURS])
        uow.versions.add(make_version(builder.id, settings=_settings(draw), review_until=until, **verdict))
        if draw.random() < 0.7:
            uow.sandboxes.add(make_sandbox(builder.id, created_at=now))
        _add_costs(draw, uow, builder, now)
        _add_backups(draw, uow, builder, now)


def _reference(view: builders.BuilderView, entry: str, *, with_token: bool) -> str:
    """Return the whole builder's own answer in the order of the entry, its documents escaped as they are stored."""
    shown = json.loads(present_builder(view, with_token=with_token).model_dump_json())
    ordered = {name: shown.pop(name) for name in json.loads(entry)}
    assert not shown
    documents = {name: ordered.pop(name) for name in ListedDocuments._fields}
    whole = json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
    return f"{whole[:-1]},{json.dumps(documents, separators=(',', ':'))[1:]}"


@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("seed", range(3))
async def test_entries_are_the_bytes_of_the_slow_form(world: World, seed: int, with_token: bool) -> None:
    await world.application.store.write(lambda uow: _store(Random(seed), uow, world))
    now, tenant, query = world.clock.now(), world.caller.tenant_id, BuilderQuery(per_page=100)

    def read(uow: UnitOfWork) -> Any:
        found, total = builder_lists.page(uow, world.application, tenant, query, now)
        whole, _ = uow.builders.list(tenant, query)
        return found, total, builders.views(uow, world.application, whole, now)

    found, total, views = await world.read(read)
    assert (len(found), total) == (len(KINDS), len(KINDS))
    texts = encode_page(found, with_token=with_token)
    for text, view in zip(texts, views, strict=True):
        assert text == _reference(view, text, with_token=with_token)
    assert {entry.needs_restart for entry in found} == {True, False}
