"""The vault, and a new key for all that it sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from builderd.adapters.vaults.keys import GivenKeys, Key, KeyFile
from builderd.adapters.vaults.sodium import SodiumVault
from builderd.bootstrap.database import store
from builderd.domain.errors import ValidationFailed
from builderd.services import vault
from builderd.settings import Settings

#: Longer than it takes from sealing a secret to its commit, in seconds.
SEAL_PAUSE = 2.0


def make_vault(settings: Settings) -> SodiumVault:
    """Raises ``ValidationFailed`` when a key that was given is none."""
    if settings.vault.key is None:
        return SodiumVault(KeyFile(settings.vault_key_file))
    texts = [settings.vault.key, *settings.vault.previous_keys]
    try:
        return SodiumVault(GivenKeys(tuple(Key.from_text(text.get_secret_value()) for text in texts)))
    except ValueError as error:
        raise ValidationFailed({"vault.key": [str(error)]}) from None


async def rotate_vault(settings: Settings, say: Callable[[str], None]) -> int:
    """Seal everything with a new key, also while the service runs; how many secrets those were.

    The keys before go from their file last, when nothing is sealed with them. A service that read the file a moment
    ago may still write a secret with one of them: hence the pause, and a second round.
    """
    file = KeyFile(settings.vault_key_file) if settings.vault.key is None else None
    if file is not None:
        file.save([Key.new(), *file.load()])
    async with store(settings) as opened:
        safe = make_vault(settings)
        say("Sealing …")
        count = await opened.write(lambda uow: vault.reseal(uow, safe))
        await asyncio.sleep(SEAL_PAUSE)
        count += await opened.write(lambda uow: vault.reseal(uow, safe))
    if file is not None:
        file.save(file.load()[:1])
    return count
