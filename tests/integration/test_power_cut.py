"""Power cuts of the machine: every change that a caller saw succeed is there afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.contract.store.samples import NOW, TENANT, add, make_token
from tests.small_disk import cut_power, restore_power, small_disk
from tests.stores import open_store

from builderd.core.ids import TokenId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.tokens.model import Token

pytestmark = pytest.mark.root

CUTS = 3
TOKENS = 50


async def test_three_power_cuts_lose_no_acknowledged_change(tmp_path: Path) -> None:
    """Each cut follows the last answer at once: of tokens that are made, and of one that is revoked."""
    with small_disk(tmp_path, 64 << 20) as disk:
        url = f"sqlite:///{disk}/data/builderd.db"
        async with open_store(url) as store:
            await add(store, TENANT)
        made: list[Token] = []
        revoked: set[TokenId] = set()
        for _ in range(CUTS):
            store = Store(url)
            for _ in range(TOKENS):
                made.append(make_token(secret_hash=new_id()))
                await store.write(partial(_add, token=made[-1]))
            made.append(make_token(secret_hash=new_id()))
            await store.write(partial(_add, token=made[-1]), durable=False)  # and what is durable comes after it
            await store.write(partial(_revoke, token=made[-1]))
            revoked.add(made[-1].id)
            cut_power(disk)
            await store.close()
            restore_power(disk)
            async with open_store(url) as store:
                found = await store.read(lambda uow: uow.tokens.list(TENANT.id))
            lost = {one.id for one in made} - {one.id for one in found}
            assert len(lost) == 0, f"{len(lost)} of {len(made)} tokens are lost"
            assert {one.id for one in found if one.revoked_at} == revoked


def _add(uow: UnitOfWork, token: Token) -> None:
    uow.tokens.add(token)


def _revoke(uow: UnitOfWork, token: Token) -> None:
    uow.tokens.revoke([token.id], NOW)
