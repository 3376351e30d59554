"""After a rotation, all that is stored is sealed with the new key alone."""

from __future__ import annotations

from pathlib import Path

from tests.contract.store.samples import NOW, TENANT
from tests.stores import memory_store

from builderd.bootstrap import keys
from builderd.credentials import service as credentials
from builderd.credentials.vault import Key, KeyFile, SodiumVault


async def test_everything_opens_with_the_new_key_alone(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "vault.key")
    safe = SodiumVault(file)
    async with memory_store() as store:
        await store.write(lambda uow: uow.tenants.add(TENANT))
        for name in ("a", "b"):
            await store.write(lambda uow, name=name: credentials.put(uow, safe, TENANT.id, name, {"A": name}, NOW))  # type: ignore[misc]

        file.save([Key.new(), *file.load()])
        assert await store.write(lambda uow: keys.reseal(uow, safe)) == 2
        assert await store.write(lambda uow: keys.reseal(uow, safe)) == 0
        file.save(file.load()[:1])

        opened = await store.read(lambda uow: credentials.open_all(uow, safe, TENANT.id, ["a", "b"]))
        assert opened == {"a": {"A": "a"}, "b": {"A": "b"}}
