"""Build the vault from its keys, and rotate them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from builderd.backups import service as backups
from builderd.bootstrap.database import existing_store
from builderd.core.errors import InvalidState, ValidationFailed
from builderd.credentials import service as credentials
from builderd.credentials.vault import ConfiguredKeys, Key, KeyFile, SodiumVault, key_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.domains import service as domains
from builderd.settings import Settings
from builderd.tokens.port import Vault
from builderd.webhooks import service as webhooks

#: Seconds; longer than the time from sealing a secret to its commit.
SEAL_PAUSE = 2.0


def make_vault(settings: Settings) -> SodiumVault:
    """Build the vault. Raises ``ValidationFailed`` for a malformed key."""
    return SodiumVault(make_keys(settings))


def make_keys(settings: Settings) -> ConfiguredKeys | KeyFile:
    """Return the source of the vault's keys: settings or a file. Raises ``ValidationFailed`` for a malformed key."""
    if settings.vault.key is None:
        return KeyFile(settings.vault_key_file)
    texts = [settings.vault.key, *settings.vault.previous_keys]
    try:
        return ConfiguredKeys(tuple(Key.from_text(text.get_secret_value()) for text in texts))
    except ValueError as error:
        raise ValidationFailed({"vault.key": [str(error)]}) from None


def refuse_other_keys(sealed: Iterable[bytes], keys: Sequence[Key], proxy_options: str = "") -> None:
    """Raise ``InvalidState`` when a secret is sealed with none of these keys: they are not the service's.

    A shell lacks the variables and credentials of the service's systemd unit.
    """
    lacking = {name for one in sealed if (name := key_id(one))} - {key.id for key in keys}
    if lacking:
        raise InvalidState(
            f"Stored secrets are sealed with the key {min(lacking).hex()}, which these settings lack: set "
            f"BUILDERD_VAULT__KEY or BUILDERD_VAULT__KEY_FILE as the service has it{proxy_options}."
        )


async def rotate_vault(settings: Settings, say: Callable[[str], None]) -> int:
    """Seal all secrets with a new key, also while the service runs. Return how many there were.

    Previous keys are removed from the file last, once no secret is sealed with them. A service that read the file
    just before may still write a secret with one of them: hence the pause and the second pass. Raises
    ``InvalidState`` when these are not the service's keys, and when there is no key or no database; makes neither.
    """
    keys = make_keys(settings)
    file = keys if isinstance(keys, KeyFile) else None
    async with existing_store(settings) as opened:
        stored = await opened.read(lambda uow: list(sealed(uow)))
        refuse_other_keys(stored, keys.existing())
        if file is not None:
            if not file.existing():
                raise InvalidState("There is no key yet: the service makes it when it stores its first secret.")
            file.save([Key.new(), *file.existing()])
        sodium = SodiumVault(keys)
        say("Sealing …")
        count = await opened.write(lambda uow: reseal(uow, sodium))
        await asyncio.sleep(SEAL_PAUSE)
        count += await opened.write(lambda uow: reseal(uow, sodium))
    if file is not None:
        file.save(file.existing()[:1])
    return count


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
