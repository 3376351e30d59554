"""This service as a member of a cluster: its announcement, and the cluster that keeps its disks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from builderd import __version__
from builderd.adapters.previews.haproxy import fence
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.bootstrap.bundles import is_shared
from builderd.bootstrap.data_directory import DATABASE_NOTE, proxy_files
from builderd.bootstrap.engines import engine_provider
from builderd.bootstrap.instance import this_instance
from builderd.bootstrap.keys import make_keys
from builderd.domain.database_lease import CLAIM_SECONDS, ClusterService, Instance, describe_owner
from builderd.domain.errors import EngineUnavailable, StoreUnavailable, ValidationFailed
from builderd.ports.engine import ClusterProvider
from builderd.settings import Settings
from builderd.ssh import host_key
from builderd.store import Store


@dataclass(slots=True)
class Membership:
    """One service in its cluster. ``provider`` is asked within ``CLAIM_SECONDS``, or counts as unavailable."""

    settings: Settings
    instance: Instance
    provider: ClusterProvider
    _disks: str = ""

    @property
    def proxy_files(self) -> ProxyFiles:
        return proxy_files(self.settings.data_dir)

    async def end_previews(self) -> None:
        """End previews of an earlier term of this service, and remove their routes. Idempotent.

        While another service works, an address of an app may become another tenant's.
        """
        await fence.take_down(self.proxy_files)

    async def describe(self, *, make_keys_first: bool = False) -> ClusterService:
        """Return this service's announcement.

        Raises ``EngineUnavailable`` until the cluster has said what it is, and while a key cannot be read.
        """
        if not self._disks:
            async with _in_time():
                self._disks = await self.provider.disks_id()
        vault_key, ssh_key = await asyncio.to_thread(self._fingerprints, make_keys_first=make_keys_first)
        return ClusterService(
            id=self.instance.member,
            host_name=self.instance.host_name,
            data_dir=self.instance.data_dir,
            version=__version__,
            disks=self._disks,
            vault_key=vault_key,
            vault_key_file="" if self.settings.vault.key else str(self.settings.vault_key_file),
            ssh_key=ssh_key,
            ssh_key_file=str(self._ssh_key_file),
        )

    async def claimant(self) -> str:
        """Return the service that claimed the work last. Raises ``EngineUnavailable``."""
        async with _in_time():
            return await self.provider.claimant()

    async def claim(self, service: str) -> None:
        """Claim the work for a service. Raises ``EngineUnavailable``."""
        async with _in_time():
            await self.provider.claim(service)

    @property
    def _ssh_key_file(self) -> Path:
        return self.settings.data_dir.absolute() / "ssh_host_key"

    def _fingerprints(self, *, make_keys_first: bool) -> tuple[str, str]:
        """Return those of the vault's first key and of the SSH host key, "" for one that does not exist.

        Raises ``EngineUnavailable`` for one that cannot be read.
        """
        keys, file = make_keys(self.settings), self._ssh_key_file
        with _readable_keys():
            found = keys.load() if make_keys_first else keys.existing()
            has_ssh_key = (make_keys_first and self.settings.ssh.port) or file.exists()
            ssh_key = host_key.load(file).get_fingerprint() if has_ssh_key else ""
        return (found[0].id.hex() if found else ""), ssh_key


@contextmanager
def _readable_keys() -> Iterator[None]:
    """Raise ``EngineUnavailable`` for a key that cannot be read: a copy of it may be under way."""
    try:
        yield
    except ValidationFailed as error:
        raise EngineUnavailable(f"A key of this service cannot be read: {error.message}", retry_after=5) from None
    except OSError as error:
        raise EngineUnavailable(f"A key of this service cannot be read: {error}", retry_after=5) from None


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(CLAIM_SECONDS):
            yield
    except TimeoutError:
        raise EngineUnavailable(f"The cluster did not answer within {CLAIM_SECONDS:g} s.", retry_after=5) from None


async def owner_elsewhere(settings: Settings) -> str | None:
    """Return in words the service that works on this service's cluster if it is, or may be, another one.

    The database tells, or else the claim on the cluster.
    """
    if not is_shared(settings):
        return None
    instance, store = this_instance(settings), Store(settings.database)
    try:
        lease = await store.read(lambda uow: uow.database_lease.get())
    except StoreUnavailable:
        return await _claimed_elsewhere(settings, instance)
    finally:
        await store.close()
    if lease is None or lease.instance.member == instance.member:
        return None
    return describe_owner(lease)


async def _claimed_elsewhere(settings: Settings, instance: Instance) -> str | None:
    membership = make_membership(settings, instance)
    assert membership is not None, "its disks are shared"
    try:
        claimant = await membership.claimant()
    except EngineUnavailable:
        return "a service that neither the database nor the cluster names now: run this again once one of both answers"
    if claimant == instance.member:
        return None
    if not claimant and (settings.data_dir / DATABASE_NOTE).is_file():
        # No service had a standby so far, and this one has worked.
        return None
    return "another service of the cluster, as far as the cluster tells while the database does not answer"


def make_membership(settings: Settings, instance: Instance) -> Membership | None:
    """Return this service's membership; None where the disks or the database are this machine's alone."""
    provider = engine_provider(settings)
    if not is_shared(settings) or not isinstance(provider, ClusterProvider):
        return None
    return Membership(settings, instance, provider)
