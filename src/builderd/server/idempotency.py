"""Idempotency: a retry with the same key gets the first call's answer, also after the service was restarted.

The record is written in the transaction that creates the builder, so there is never one without the other. The
answer is added when it is known. A record without an answer is either being worked on in this process, or
was left by one that ended: then the retry waits for the same builder and answers as the first call would have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.core.errors import Conflict
from builderd.core.ids import BuilderId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.server.answers import Answer
from builderd.tokens.tenants import IdempotencyRecord
from builderd.versions.service import Deployed

RETENTION = timedelta(hours=24)
#: Header of an answer that the first call got.
REPLAYED = {"Idempotency-Replayed": "true"}


@dataclass(frozen=True, slots=True)
class Retry:
    """A key of a tenant, and the sha256 of the request that it came with."""

    tenant_id: TenantId
    key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A builder that the first call has begun, or a version of it."""

    builder_id: BuilderId
    version: int | None = None


class Retries:
    """Retry keys, and those whose first call this process has in progress."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._in_progress: set[tuple[TenantId, str]] = set()

    async def first(self, retry: Retry | None) -> Answer | Begun | None:
        """Return the first call's answer, or what it began if it got none; None for the first call, and without a key.

        Unless there is an answer, the key is in progress from here on until ``release``. Raises ``Conflict`` when it
        is in progress already, or was used for another request.
        """
        if retry is None:
            return None
        if (retry.tenant_id, retry.key) in self._in_progress:
            raise _in_flight()
        self._in_progress.add((retry.tenant_id, retry.key))
        try:
            first = await self._look(retry)
        except BaseException:
            self.release(retry)
            raise
        if isinstance(first, Answer):
            self.release(retry)
        return first

    async def _look(self, retry: Retry) -> Answer | Begun | None:
        record = await self._application.store.read(lambda uow: uow.idempotency.get(retry.tenant_id, retry.key))
        if record is None or record.created_at < self._application.clock.now() - RETENTION:
            return None
        if record.body_hash != retry.body_hash:
            raise Conflict("This Idempotency-Key was used for another request: choose a new one.")
        if record.status is None:
            return Begun(record.builder_id, record.version) if record.builder_id else None
        return Answer(record.status, record.body or {}, {**(record.headers or {}), **REPLAYED})

    def release(self, retry: Retry | None) -> None:
        """Release the key: this process no longer works on its answer."""
        if retry is not None:
            self._in_progress.discard((retry.tenant_id, retry.key))

    def record(self, uow: UnitOfWork, retry: Retry, deployed: Deployed, now: datetime) -> None:
        """Bind the key to the builder that is being created, or to a version of it.

        Raises ``Conflict`` when another call was faster.
        """
        uow.idempotency.expire(now - RETENTION)
        if uow.idempotency.get(retry.tenant_id, retry.key) is not None:
            raise _in_flight()
        uow.idempotency.add(
            IdempotencyRecord(
                tenant_id=retry.tenant_id,
                key=retry.key,
                body_hash=retry.body_hash,
                owner=self._application.instance,
                created_at=now,
                builder_id=deployed.builder.id,
                version=deployed.version,
            )
        )

    async def keep(self, retry: Retry, answer: Answer) -> None:
        """Keep the answer for retries, if it is final."""
        if not answer.is_final:
            return

        def save(uow: UnitOfWork) -> None:
            record = uow.idempotency.get(retry.tenant_id, retry.key)
            if record is not None:
                uow.idempotency.save(replace(record, status=answer.status, headers=answer.headers, body=answer.body))

        await self._application.store.write(save)


def _in_flight() -> Conflict:
    return Conflict("The first call with this Idempotency-Key is still going on: try again later.", retry_after=1)
