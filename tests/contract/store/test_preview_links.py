"""Preview links as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, TENANT, add, make_builder

from builderd.domain.ids import TokenId, new_id
from builderd.domain.previews import Link
from builderd.store import Store

BUILDER = make_builder()
LINK = Link(new_id(), TENANT.id, BUILDER.id, "a" * 64, 3000, "token ci", NOW, NOW + SECOND, TokenId("t"))


async def test_valid_links_of_tokens_are_removed_at_once(store: Store) -> None:
    await add(store, BUILDER)
    foreign = replace(LINK, id=new_id(), secret_hash="b" * 64, token_id=TokenId("u"))
    unknown = replace(LINK, id=new_id(), secret_hash="c" * 64, token_id=None)
    over = replace(LINK, id=new_id(), secret_hash="d" * 64, expires_at=NOW)
    for one in (LINK, foreign, unknown, over):
        await store.write(lambda uow, one=one: uow.preview_links.add(one))  # type: ignore[misc]
    made_by = [TokenId("t"), TokenId("v")]
    assert await store.write(lambda uow: uow.preview_links.remove_of(made_by, NOW)) == [LINK]
    assert await store.write(lambda uow: uow.preview_links.remove_of(made_by, NOW)) == []
    left = await store.read(lambda uow: uow.preview_links.valid_of(BUILDER.id, NOW))
    assert {one.id for one in left} == {foreign.id, unknown.id}
