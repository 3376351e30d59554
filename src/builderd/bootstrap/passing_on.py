"""Pass a standby's ports on to the service that works, and watch the way there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace

from builderd.adapters.previews.haproxy.forward_config import ForwardOptions
from builderd.adapters.previews.haproxy.forwarder import Forwarder, Target
from builderd.adapters.previews.haproxy.process import worker_user
from builderd.api.server.connections import Connections
from builderd.api.server.proxied import PassedOnProtocol
from builderd.api.server.servers import Servers, bind
from builderd.api.standby import Way, create_standby_app, create_standby_metrics
from builderd.bootstrap.direct_visits import DirectVisits
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.previews import proxy_options
from builderd.bootstrap.route_lists import Moment, RouteList, SeenLease
from builderd.bootstrap.standby_hops import StandbyHops
from builderd.bootstrap.worker_calls import NotReached, ask_readiness, target_of
from builderd.domain.cluster_services import CLAIM_AFTER, ClusterService
from builderd.domain.errors import EngineUnavailable, StoreUnavailable
from builderd.domain.route_list import PROXY_SECONDS
from builderd.settings import Settings

log = logging.getLogger(__name__)
#: Seconds between two looks at the way while nothing is passed on, and while all is well.
LOOK_INTERVAL, CALM_INTERVAL = 1.0, 3.0
#: Seconds for which connections still wait for a service that does not answer any more. Later they are refused at once.
HOLD_SECONDS = 8.0
#: Seconds that visits by the list have to end once it is used no more; then their way to other members goes.
VISIT_SECONDS = 5.0
#: The same of visits that were led directly: a service that is started again confirms the list within that time, and
#: another one gives no address before (``domain.route_list.FIRST_ADDRESS_AFTER``).
DIRECT_VISIT_SECONDS = 20.0
#: Returns the hosts of public previews that shall run, as the database has them now.
VisitedHosts = Callable[[], Awaitable[Collection[str]]]


class PassingOn:
    """The standby's proxy and its own answers. ``open`` and ``close`` may be called again."""

    def __init__(self, membership: Membership, visited_hosts: VisitedHosts, forwarder: Forwarder | None = None) -> None:
        self._membership = membership
        self._visited_hosts = visited_hosts
        self._settings = membership.settings
        self._forwarder = forwarder or make_forwarder(membership.settings)
        self._servers: Servers | None = None
        self._watch: asyncio.Task[None] | None = None
        self._owner: ClusterService | None = None
        #: Another service works than before.
        self._changed = asyncio.Event()
        #: Address and term of the service that was looked at last.
        self._seen: tuple[str | None, int] | None = None
        #: Where the ports lead.
        self._target: Target | None = None
        self.way = Way()
        self.list = RouteList()
        self._lease: SeenLease | None = None
        #: Visitors are served by the list, up to this time since 1970; 0: they are not.
        self._listed_until = 0
        #: When visitors were led by the list last, while no service worked.
        self._listed_at = time.monotonic()
        self._hops = StandbyHops(membership.provider)
        self.direct = DirectVisits(
            self._forwarder, self.list, self._hops, lambda: self._lease, lambda: membership.own_address
        )
        #: What kept the list from being used last.
        self._said = ""
        #: When the service that works answered last, and when its member took a connection.
        self._answered_at = self._reached_at = time.monotonic()

    async def open(self) -> None:
        """Open the ports; raise ``EngineUnavailable`` where one of them is taken."""
        if self._servers is not None:
            return
        # Left by a standby that was killed.
        await self._forwarder.retire(ends_visits=True)
        await self._hops.clear()
        self._check_ports()
        self._forwarder.prepare()
        servers = Servers()
        settings = self._settings
        app = create_standby_app(lambda: self.way, settings.metrics_token)
        await servers.add_behind_proxy(app, self._forwarder.own_socket, worker_user(), Connections(), PassedOnProtocol)
        self._servers = servers
        if settings.metrics_port:
            metrics = create_standby_metrics(lambda: self.way)
            await servers.add(metrics, settings.host, settings.metrics_port, "metrics_port")
        try:
            options = await self._options()
        except EngineUnavailable as error:
            # As without a key. The ports open once there is one.
            self._fail(error.message)
        else:
            self.direct.lacks_list |= await self._forwarder.run(options)
        self._watch = asyncio.create_task(self._keep_looking())

    def follow(self, owner: ClusterService | None, lease: SeenLease) -> None:
        """Lead to this service, which has, or had, the lease."""
        self._lease = lease
        if (owner.address if owner else None) != (self._owner.address if self._owner else None):
            self._changed.set()
        self._owner = owner

    async def close(self, successor: ClusterService | None = None) -> None:
        """Free the ports; what waits is passed on to ``successor``, which is this service itself. Idempotent.

        Without one, visits that the list led have some seconds to end, since the way to apps of other members does.
        """
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
            self._watch = None
            await self.direct.stop()
            if successor is None:
                await self.direct.drain()
        if successor is not None and (target := target_of(successor)):
            try:
                await self._forwarder.lead(target)
            except EngineUnavailable as error:
                log.warning("waiting connections not passed on error=%s", error.message)
        hops = self.list.hops(self._membership.own_address) if successor is not None and self._has_list() else {}
        if hops:
            await self._hops.put(hops)
        # The ports are closed from here on. Also those of a service that was killed.
        await self._forwarder.retire(ends_visits=successor is None)
        if self._hops.has_any and not hops:
            await self._hops.clear()
        self._listed_until = 0
        servers, self._servers = self._servers, None
        if servers is not None:
            await servers.__aexit__(None, None, None)

    async def _options(self) -> ForwardOptions:
        settings = self._settings
        secret = await asyncio.to_thread(self._membership.secret)
        return ForwardOptions(proxy_options(settings), settings.port, settings.ssh.port or None, secret)

    def _check_ports(self) -> None:
        """Raise ``EngineUnavailable`` that names the setting of a port that is taken."""
        settings = self._settings
        ports = {
            "--host and --port": settings.port,
            "--preview-port": settings.preview_port,
            "preview.tls_port": settings.preview.tls_port,
            "ssh.port": settings.ssh.port,
        }
        for setting, port in ports.items():
            if port:
                bind(settings.host, port, setting).close()

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self._look()
            except EngineUnavailable as error:
                self._fail(error.message)
            except Exception:
                log.exception("look at the way to the service that works failed, retrying delay=%g", LOOK_INTERVAL)
                self._fail("it could not be looked at: see the service's log")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL if self.way.fault else CALM_INTERVAL):
                    await self._changed.wait()
            self._changed.clear()

    async def _look(self) -> None:
        await self._remove_routes()
        # Also a proxy that died, and a key that was copied since.
        options = await self._options()
        self.direct.lacks_list |= await self._forwarder.run(options)
        owner = self._owner
        if owner is None:
            # As just after another one has taken the lease.
            self.way, self._membership.way = Way(), Way().fault
            await self.direct.stop()
            await self._use_list()
            await self._lead(self._target)
            return
        target = target_of(owner)
        if target is None:
            self._fail(
                f"the service on {owner.host_name} tells no address of its member: it is of an earlier version, or its "
                "machine is no member (incus cluster list)"
            )
            await self.direct.stop()
            await self._end_list()
            await self._lead(self._target)
            return
        seen = owner.address, self._lease.term if self._lease is not None else 0
        if self._seen != seen:
            # Connections wait anew, also for one that was started again.
            self._seen = seen
            self._answered_at = self._reached_at = time.monotonic()
        await self._lead(target)
        try:
            answer = await ask_readiness(target, options.secret)
        except NotReached as error:
            self._fail(error.message)
            await self.direct.stop(at_once=False)
            await self._use_list()
            await self._lead(target)
            return
        except EngineUnavailable as error:
            # Its previews go on without its API.
            self._reached_at = time.monotonic()
            self._fail(error.message)
            await self.direct.stop()
            await self._end_list()
            await self._lead(target)
            return
        self._answered_at = self._reached_at = time.monotonic()
        if self.way.fault:
            log.info("calls and visitors are passed on worker=%s address=%s", owner.host_name, owner.address)
        self.way, self._membership.way = Way(owner.host_name, "", answer), ""
        await self._forwarder.lead(target)
        await self._end_list()
        self.direct.start(target, options.secret)

    async def _lead(self, target: Target | None) -> None:
        """Lead the ports there while connections may wait for it, and visitors to the list where that is used."""
        if target is not None:
            self._target = target
            streams = _held(self._reached_at) or self._waits_for_list()
            led = replace(target, api=_held(self._answered_at), streams=streams, listed=self._listed_until > 0)
            await self._forwarder.lead(led)

    def _waits_for_list(self) -> bool:
        """Return True until the list may be used, should the service that works be gone: visitors wait for that."""
        is_over = self._lease is not None and self._lease.is_over
        return self._has_list() and not is_over and time.monotonic() - self._reached_at < HOLD_SECONDS + CLAIM_AFTER

    def _has_list(self) -> bool:
        return self._lease is not None and self.list.is_of(self._lease.term)

    def _is_new_fault(self, reason: str) -> bool:
        said, self._said = self._said, reason
        return bool(reason) and reason != said

    async def _use_list(self) -> None:
        """Serve visitors by the list for as long as it is sure that nobody works and that the list holds."""
        lease = self._lease
        until = self.list.until(lease) if lease is not None else 0
        # In another term at once. Else, while the proxy may use it, what became private leaves it.
        if not until and not (self._has_list() and self._is_listed()):
            await self._end_list()
            return
        try:
            hosts = frozenset(await self._visited_hosts())
        except StoreUnavailable as error:
            if self._is_new_fault(error.message):
                log.warning("list of routes not used, what is public is not known error=%s", error.message)
            return
        self.direct.lacks_list = True
        await self._forwarder.put_list(self.list.entries(hosts, lost=self._hops.lost))
        if not until or lease is None:
            return
        if not self._listed_until:
            log.warning("no service works, visits of running apps are served routes=%d", len(self.list.routes))
            await self._hops.put(self.list.hops(self._membership.own_address))
        # All this took time, in which another service may have the lease.
        if until := self.list.until(self._lease or lease):
            await self._forwarder.allow_list(until)
            self._listed_until, self._listed_at = until, time.monotonic()

    def _is_listed(self) -> bool:
        """Return True while the proxy may lead visitors by the list."""
        return Moment().wall < self._listed_until and time.monotonic() - self._listed_at < PROXY_SECONDS

    async def _end_list(self) -> None:
        """Lead no visitor by the list any more; ``_remove_routes`` does the rest."""
        if not self._listed_until:
            return
        log.info("visits are not served by the list of routes any more")
        self._listed_until, self._listed_at = 0, time.monotonic()
        await self._forwarder.allow_list(0)
        await self._forwarder.put_list(self.list.entries(lost=self._hops.lost))

    async def _remove_routes(self) -> None:
        """Remove the way to other members some seconds after the list's use, and end visits, which would hang."""
        if self._is_led():
            await self._hops.renew()
        elif self._hops.has_any and time.monotonic() - self._listed_at >= VISIT_SECONDS:
            self._listed_until = 0
            await self._forwarder.end_visits()
            await self._hops.clear(unless=self._is_led)

    def _is_led(self) -> bool:
        """Return True while visits are led by the list, or were directly some seconds ago."""
        return self._is_listed() or self.direct.was_confirmed(DIRECT_VISIT_SECONDS)

    def _fail(self, reason: str) -> None:
        worker = self._owner.host_name if self._owner else None
        if reason != self.way.fault:
            address = self._owner.address if self._owner else None
            log.warning("nothing is passed on to the service that works address=%s error=%s", address, reason)
        self.way, self._membership.way = Way(worker, reason), reason


def _held(since: float) -> bool:
    """Return True while connections may wait for a service that was seen then for the last time."""
    return time.monotonic() - since < HOLD_SECONDS


def make_forwarder(settings: Settings) -> Forwarder:
    return Forwarder(settings.data_dir / "standby")
