"""Routes that the previews' proxy has lost, such as when it was taken down: found at the start of the service."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from builderd.domain.previews import Route, RoutedBuilder, closed_route
from builderd.store import Store, UnitOfWork

#: Builders that are read by one transaction.
PAGE = 2_000


async def read(store: Store, known: Collection[str]) -> Sequence[Route]:
    """Return a closed route for every live builder whose host is not among ``known``.

    Of all other builders only the host name is read.
    """
    hosts = await store.read(lambda uow: uow.builders.live_hosts())
    lost = [host for host in hosts if host not in known]
    routes: list[Route] = []
    for start in range(0, len(lost), PAGE):
        found = await store.read(partial(_routed, hosts=lost[start : start + PAGE]))
        routes += (closed_route(one) for one in found)
    return routes


def _routed(uow: UnitOfWork, hosts: Sequence[str]) -> Sequence[RoutedBuilder]:
    return uow.builders.routed(hosts)
