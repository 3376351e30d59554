"""The vault's keys: everything that is stored sealed, sealed anew after the key changed."""

from __future__ import annotations

from builderd.ports.store import UnitOfWork
from builderd.ports.vault import Vault
from builderd.services import credentials, webhooks


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal all that is sealed with an earlier key with the present one; how many those were."""
    return credentials.reseal(uow, vault) + webhooks.reseal(uow, vault)
