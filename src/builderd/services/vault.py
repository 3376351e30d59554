"""The vault's keys: everything that is stored sealed, sealed anew after the key changed."""

from __future__ import annotations

from builderd.ports.store import UnitOfWork
from builderd.ports.vault import Vault
from builderd.services import backups, credentials, webhooks


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal all that is sealed with an earlier key with the present one; how many those were."""
    return sum(one.reseal(uow, vault) for one in (credentials, webhooks, backups))
