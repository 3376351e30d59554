"""The vault's keys: everything that is stored sealed, sealed anew after the key changed."""

from __future__ import annotations

from collections.abc import Iterator

from builderd.ports.store import UnitOfWork
from builderd.ports.vault import Vault
from builderd.services import backups, credentials, webhooks


def sealed(uow: UnitOfWork) -> Iterator[bytes]:
    """Every secret that is stored, as it is."""
    yield from (one.sealed for one in uow.credentials.all())
    yield from (one.secret for one in uow.webhooks.all())
    yield from (one.sealed for one in uow.backup_keys.all())


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal all that is sealed with an earlier key with the present one; how many those were."""
    return sum(one.reseal(uow, vault) for one in (credentials, webhooks, backups))
