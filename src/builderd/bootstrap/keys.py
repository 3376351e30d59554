"""The vault, and a new key for all that it sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from builderd.adapters.vaults.keys import ConfiguredKeys, Key, KeyFile
from builderd.adapters.vaults.sodium import SodiumVault, key_id
from builderd.bootstrap.database import existing_store
from builderd.domain.errors import InvalidState, ValidationFailed
from builderd.services import vault
from builderd.settings import Settings

#: Longer than it takes from sealing a secret to its commit, in seconds.
SEAL_PAUSE = 2.0


def make_vault(settings: Settings) -> SodiumVault:
    """Raises ``ValidationFailed`` when a key that was given is none."""
    return SodiumVault(make_keys(settings))


def make_keys(settings: Settings) -> ConfiguredKeys | KeyFile:
    """Where the vault's keys come from. Raises ``ValidationFailed`` when a key that was given is none."""
    if settings.vault.key is None:
        return KeyFile(settings.vault_key_file)
    texts = [settings.vault.key, *settings.vault.previous_keys]
    try:
        return ConfiguredKeys(tuple(Key.from_text(text.get_secret_value()) for text in texts))
    except ValueError as error:
        raise ValidationFailed({"vault.key": [str(error)]}) from None


def refuse_other_keys(sealed: Iterable[bytes], keys: Sequence[Key], way_out: str = "") -> None:
    """Raises ``InvalidState`` when something is sealed with another key than these: they are not the service's.

    A shell does not see what a unit gives its service, such as a variable or a credential of systemd's.
    """
    lacking = {name for one in sealed if (name := key_id(one))} - {key.id for key in keys}
    if lacking:
        raise InvalidState(
            f"Stored secrets are sealed with the key {min(lacking).hex()}, which is not among those of these settings: "
            f"give the key as the service has it (BUILDERD_VAULT__KEY, BUILDERD_VAULT__KEY_FILE){way_out}."
        )


async def rotate_vault(settings: Settings, say: Callable[[str], None]) -> int:
    """Seal everything with a new key, also while the service runs; how many secrets those were.

    The keys before go from their file last, when nothing is sealed with them. A service that read the file a moment
    ago may still write a secret with one of them: hence the pause, and a second round. Raises ``InvalidState`` when
    these are not the keys that the service has, and where there is no key or no database yet: it makes neither.
    """
    keys = make_keys(settings)
    file = keys if isinstance(keys, KeyFile) else None
    async with existing_store(settings) as opened:
        sealed = await opened.read(lambda uow: list(vault.sealed(uow)))
        refuse_other_keys(sealed, keys.existing())
        if file is not None:
            if not file.existing():
                raise InvalidState("There is no key yet: it is made when the service stores its first secret.")
            file.save([Key.new(), *file.existing()])
        safe = SodiumVault(keys)
        say("Sealing …")
        count = await opened.write(lambda uow: vault.reseal(uow, safe))
        await asyncio.sleep(SEAL_PAUSE)
        count += await opened.write(lambda uow: vault.reseal(uow, safe))
    if file is not None:
        file.save(file.existing()[:1])
    return count
