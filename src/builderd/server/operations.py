"""Operations of one service: calls in progress and their limits, in the memory of this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from builderd.application import Application
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.service import Caller, NewBuilder
from builderd.code import service as bundles
from builderd.code.model import Bundle
from builderd.code.space import SentCode
from builderd.core.errors import NotFound, RateLimited
from builderd.core.ids import BuilderId, TenantId
from builderd.core.loops import counted
from builderd.database.unit_of_work import UnitOfWork
from builderd.executions.service import MemoryQuota
from builderd.server.answers import Answer
from builderd.server.idempotency import Begun, Retries, Retry
from builderd.server.rates import LastUses, Rates, TokenCalls
from builderd.tokens.limits import PagedReads, TenantQueue
from builderd.versions.service import Deployed


def sent_by(caller: Caller, bundle: Bundle | None) -> SentCode | None:
    return SentCode(caller.tenant_id, bundle) if bundle is not None else None


#: Streams of one kind, blocking calls, or files being read, of one tenant at the same time.
MAX_AT_ONCE = 100
#: Open web pages of one tenant at the same time.
MAX_PAGES = 200
#: Archives that one tenant is sent at the same time.
MAX_ARCHIVES = 2


class Operations:
    """One for all interfaces of a service, so that a limit applies across all of them."""

    def __init__(self, application: Application, rates: Rates | None = None) -> None:
        self.application = application
        self.rates = rates or Rates()
        self.retries = Retries(application)
        self.blocking_calls = ConcurrencyLimit(
            MAX_AT_ONCE,
            "of your calls wait for an outcome already: wait until one of them is answered, or do not wait for this "
            "one: send it with the header Prefer: respond-async.",
        )
        self.event_streams = ConcurrencyLimit(MAX_AT_ONCE, "streams of events are open already: close one.")
        self.log_streams = ConcurrencyLimit(MAX_AT_ONCE, "streams of logs are open already: close one.")
        self.live_pages = ConcurrencyLimit(MAX_PAGES, "pages are open already: close one.")
        sent = "of yours are being sent already: ask again when one of them is complete."
        self.file_reads = ConcurrencyLimit(MAX_AT_ONCE, f"files {sent}")
        self.archives = ConcurrencyLimit(MAX_ARCHIVES, f"archives {sent}")
        self.log_reads = ConcurrencyLimit(MAX_AT_ONCE, f"answers with logs {sent}")
        #: Calls that cost much CPU or wait for the disk: a tenant's others wait in order.
        self.lists = TenantQueue(1, "lists")
        self.pages = TenantQueue(2, "pages")
        self.file_writes = TenantQueue(4, "files")
        self.paged_reads = PagedReads()
        #: Processes that parse a large body each.
        self.large_bodies = asyncio.Semaphore(1)
        self.token_calls = TokenCalls()
        self.last_uses = LastUses(application, self.token_calls)
        #: Memory that the calls of each tenant have reserved.
        self.memory = MemoryQuota()
        self._following: set[asyncio.Task[Any]] = set()

    def begin(self, tenant_id: TenantId, retry: Retry | None, *, blocks: bool) -> ExitStack:
        """Return a stack that releases the retry key when closed, and counts the call as blocking if it ``blocks``.

        Call it before anything is written. Raises ``RateLimited`` when the tenant has too many blocking calls: each
        reads the store whenever its builder changes, and continues when its caller has hung up.
        """
        with ExitStack() as in_progress:
            in_progress.callback(self.retries.release, retry)
            if blocks:
                in_progress.enter_context(self.blocking_calls.acquire(tenant_id))
            return in_progress.pop_all()

    async def create(self, caller: Caller, new: NewBuilder, bundle: Bundle, retry: Retry | None) -> Builder:
        """Create a builder whose code is ``bundle``. Raises as ``builders.create`` does."""
        now = self.application.clock.now()

        def record(uow: UnitOfWork) -> Builder:
            builder = builders.create(uow, self.application, caller, new, now)
            if retry is not None:
                self.retries.record(uow, retry, Deployed(builder, None), now)
            return builder

        return await bundles.keep(self.application, SentCode(caller.tenant_id, bundle), record)

    async def change(
        self,
        builder_id: str,
        change: Callable[[UnitOfWork], Deployed],
        retry: Retry | None,
        sent: SentCode | None = None,
    ) -> Deployed:
        """Make a change that may deploy a version, once no other version takes over; ``sent`` is its new code."""
        now = self.application.clock.now()

        def record(uow: UnitOfWork) -> Deployed:
            deployed = change(uow)
            if retry is not None:
                self.retries.record(uow, retry, deployed, now)
            return deployed

        async def commit() -> Deployed:
            if sent is None:
                return await self.application.commit(record)
            return await bundles.keep(self.application, sent._replace(replaces=BuilderId(builder_id)), record)

        return await outcomes.after_take_over(self.application, BuilderId(builder_id), commit)

    async def begun(self, first: Begun) -> Deployed:
        """Return what the first call with a retry's key has begun. Raises ``NotFound`` when its builder is gone."""
        builder = await self.application.store.read(lambda uow: uow.builders.get(first.builder_id))
        if builder is None:
            raise NotFound("The builder of the first call with this Idempotency-Key is gone.")
        return Deployed(builder, first.version)

    def follow(
        self, outcome: Coroutine[Any, Any, Answer], retry: Retry | None, in_progress: ExitStack
    ) -> asyncio.Task[Answer]:
        """Start a task that waits for a call's outcome and keeps it for retries, whether or not its caller stays.

        ``in_progress`` is released at its end.
        """
        task = asyncio.create_task(self._follow(outcome, retry, in_progress.pop_all()))
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return task

    async def _follow(
        self, outcome: Coroutine[Any, Any, Answer], retry: Retry | None, in_progress: ExitStack
    ) -> Answer:
        with in_progress:
            answer = await outcome
            if retry is not None:
                await self.retries.keep(retry, answer)
            return answer

    async def close(self) -> None:
        """Stop following all calls: what they began continues by itself."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, self.last_uses.close(), return_exceptions=True)


class ConcurrencyLimit:
    """Limit of ``maximum`` for each tenant, counted in the memory of this process.

    ``too_many`` follows the limit in the error message: what they are, and what to do.
    """

    def __init__(self, maximum: int, too_many: str) -> None:
        self.maximum = maximum
        self._too_many = too_many
        self._open: Counter[TenantId] = Counter()

    def admit(self, tenant_id: TenantId) -> None:
        """Raise ``RateLimited`` when the tenant has ``maximum`` of them already."""
        if self._open[tenant_id] >= self.maximum:
            raise RateLimited(f"{self.maximum} {self._too_many}", retry_after=10)

    def slot(self, tenant_id: TenantId) -> AbstractContextManager[None]:
        """Count one more of the tenant while the context is open."""
        return counted(self._open, tenant_id)

    @contextmanager
    def acquire(self, tenant_id: TenantId) -> Iterator[None]:
        """Count one more of the tenant while the context is open. Raises ``RateLimited`` for one too many."""
        self.admit(tenant_id)
        with self.slot(tenant_id):
            yield

    def total(self) -> int:
        """Return the number of them of all tenants."""
        return self._open.total()
