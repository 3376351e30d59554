"""The vault's keys: seal all stored secrets again after the key changed."""

from __future__ import annotations

from collections.abc import Iterator

from builderd.ports.outside import Vault
from builderd.services import backups, credentials, domains, webhooks
from builderd.store import UnitOfWork


def sealed(uow: UnitOfWork) -> Iterator[bytes]:
    """Yield every stored sealed secret."""
    yield from (one.sealed for one in uow.credentials.all())
    yield from (one.secret for one in uow.webhooks.all())
    yield from (one.sealed for one in uow.backup_keys.all())
    yield from (one.certificate for one in uow.domains.all() if one.certificate is not None)
    yield from (one.key for one in uow.acme_accounts.all())
    yield from (one.certificate for one in uow.wildcard_certificates.all() if one.certificate is not None)


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal secrets that an earlier key sealed with the present one; return their number."""
    return sum(one.reseal(uow, vault) for one in (credentials, webhooks, backups, domains))
