"""Preview links in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select

from builderd.domain.builders import Desired
from builderd.domain.ids import BuilderId, TokenId
from builderd.domain.previews import Link, PreviewLink
from builderd.store.tables import builders, preview_links
from builderd.store.types import row_of

_c = preview_links.c
_INSERT = insert(preview_links)
_VALID = (
    select(preview_links)
    .where(_c.builder_id == bindparam("builder"), _c.expires_at > bindparam("now"))
    .order_by(_c.created_at, _c.id)
)
_ROUTES = (
    select(_c.secret_hash, builders.c.host, _c.port, _c.expires_at)
    .join(builders, builders.c.id == _c.builder_id)
    .where(builders.c.desired != Desired.DELETED, _c.expires_at > bindparam("now"))
    .order_by(_c.secret_hash)
)
_REMOVE = delete(preview_links).where(_c.id == bindparam("link"))
_REMOVE_OF = (
    delete(preview_links)
    .where(_c.token_id.in_(bindparam("tokens", expanding=True)), _c.expires_at > bindparam("now"))
    .returning(preview_links)
)
_EXPIRE = delete(preview_links).where(_c.expires_at < bindparam("before"))


class PreviewLinks:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, link: Link) -> None:
        self._connection.execute(_INSERT, row_of(link))

    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Link]:
        """Return those that have not expired, oldest first."""
        rows = self._connection.execute(_VALID, {"builder": builder, "now": now}).mappings()
        return [Link(**row) for row in rows]

    def remove(self, link_id: str) -> None:
        self._connection.execute(_REMOVE, {"link": link_id})

    def remove_of(self, tokens: Collection[TokenId], now: datetime) -> Sequence[Link]:
        """Remove the valid ones that these API tokens made; return them."""
        rows = self._connection.execute(_REMOVE_OF, {"tokens": list(tokens), "now": now}).mappings()
        return [Link(**row) for row in rows]

    def routes(self, now: datetime) -> Sequence[PreviewLink]:
        """Return all valid links to builders that are not deleted, as the proxy needs them."""
        rows = self._connection.execute(_ROUTES, {"now": now})
        return [PreviewLink(digest, host, port, int(end.timestamp())) for digest, host, port, end in rows]

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
        return self._connection.execute(_EXPIRE, {"before": before}).rowcount
