"""Back up and restore the service's own state: the database, the bundles and the keys, in a folder.

The apps' disks are not in it: they come back from their own backups when they are gone.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tomllib
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from builderd import __version__
from builderd.bootstrap.bundles import download_bundles, make_location
from builderd.bootstrap.data_directory import IDENTITY_FILE, RESTORED, RESTORING, lock, make
from builderd.bootstrap.database import refuse_another_database, this_instance
from builderd.bootstrap.keys import make_keys, refuse_other_keys
from builderd.core.errors import InvalidState, ValidationFailed
from builderd.credentials import vault as sodium
from builderd.credentials.vault import Key, KeyFile
from builderd.database import copies
from builderd.engine import states as folder
from builderd.engine.states import BUNDLES, DATABASE, KEYS, Manifest
from builderd.linux import atomic_files
from builderd.linux.clock import SystemClock
from builderd.settings import FILE_NAME, Settings

#: Associated data of the sealed keys: other sealed data cannot be passed off as them.
ASSOCIATED_DATA = "builderd/state/keys"
#: Files of the data directory that are sealed with the keys, since they may have secrets.
SECRET_FILES = ("ssh_host_key", FILE_NAME)
#: Tries of the copy in all; one starts again when a bundle was removed during it.
COPY_TRIES = 3
_SWITCHING = "switching"

Say = Callable[[str], None]


class Secrets(TypedDict):
    """The sealed part of a backup: the keys as ``Key.text`` writes them, and secret files in base64."""

    vault_keys: list[str]
    files: dict[str, str]


# Back up


def back_up(settings: Settings, target: Path, passphrase: str | None, say: Say) -> Manifest:
    """Write the state to the folder ``target``, also while the service runs; without a passphrase, without the keys.

    Raises ``InvalidState`` when the target is not empty, there is no state, or database or keys are not the service's,
    ``ValidationFailed`` for a passphrase that is too short.
    """
    if passphrase is not None:
        sodium.check_length(passphrase)
    refuse_another_database(settings)
    with folder.create(target) as unfinished:
        before = make_keys(settings).existing() if passphrase is not None else ()
        say("Copying the database and the bundles …")
        revision = _copy(settings, unfinished)
        if passphrase is not None:
            secrets = _secrets(settings, unfinished / DATABASE, before)
            atomic_files.write(unfinished / KEYS, sodium.seal(secrets, passphrase, ASSOCIATED_DATA))
        file = settings.data_dir / IDENTITY_FILE
        identity = file.read_text() if file.is_file() else ""
        now = SystemClock().now().isoformat()
        return folder.write_manifest(unfinished, now, __version__, revision, identity)


def _copy(settings: Settings, target: Path) -> str:
    """Copy the bundles before and after the database, so that the copy has all bundles the database refers to.

    Returns the database's schema revision.
    """
    (target / BUNDLES).mkdir(mode=0o700)
    for _ in range(COPY_TRIES):
        asyncio.run(download_bundles(settings))
        _copy_bundles(settings, target / BUNDLES)
        (target / DATABASE).unlink(missing_ok=True)
        revision = copies.save(settings.database, target / DATABASE)
        _copy_bundles(settings, target / BUNDLES)
        lacking = copies.bundles_in(target / DATABASE) - {path.stem for path in (target / BUNDLES).iterdir()}
        if not lacking:
            return revision
    raise InvalidState(
        f"The files of {len(lacking)} versions are missing in {settings.data_dir / BUNDLES}, such as bundle "
        f"{min(lacking)}: put them back, or delete the builders that have them."
    )


def _copy_bundles(settings: Settings, target: Path) -> None:
    for path in (settings.data_dir / BUNDLES).glob("*.tar"):
        copy = target / path.name
        if copy.exists():
            continue
        try:
            atomic_files.copy(path, copy)
        except FileNotFoundError:  # the service removed a bundle that nothing refers to any more
            copy.unlink(missing_ok=True)


def _secrets(settings: Settings, database: Path, before: Sequence[Key]) -> bytes:
    """Return the keys and secret files as JSON, with the keys from before the copy: they may have been rotated."""
    keys = dict.fromkeys([*make_keys(settings).existing(), *before])
    refuse_other_keys(copies.sealed_in(database), list(keys), ", or leave the keys out (--without-keys)")
    files = {name: settings.data_dir / name for name in SECRET_FILES}
    kept = {name: b64encode(path.read_bytes()).decode() for name, path in files.items() if path.is_file()}
    return json.dumps(Secrets(vault_keys=[key.text for key in keys], files=kept)).encode()


# Restore


def restore(settings: Settings, source: Path, passphrase: str | None, say: Say) -> Manifest:
    """Restore the data directory and the database, all or nothing. No service may run on the directory.

    Overwrites nothing: raises ``InvalidState`` when there is a database, or the backup is damaged or of a newer
    program, ``ValidationFailed`` for a wrong passphrase or for keys that differ from the settings'. An interrupted
    restore leaves no database; the next one starts from the beginning.
    """
    make(settings.data_dir)
    with lock(settings.data_dir):
        refuse_another_database(settings)
        staging = settings.data_dir / RESTORING
        if (staging / _SWITCHING).exists() and copies.has_content(settings.database):
            say("An earlier restore was complete but for its staging folder, which is removed now.")
            manifest = folder.read(staging)
            shutil.rmtree(staging)
            return manifest
        return _restore(settings, source, staging, passphrase, say)


def _restore(settings: Settings, source: Path, staging: Path, passphrase: str | None, say: Say) -> Manifest:
    if copies.has_content(settings.database):
        raise InvalidState(
            f"There is a database already ({copies.file_of(settings.database) or 'at database_url'}): restore into "
            "another data directory, or move it away."
        )
    say("Reading the backup …")
    manifest = folder.check(source)
    copies.revision(source / DATABASE)
    secrets = _open(source / KEYS, passphrase)
    _refuse_other_keys(settings, secrets)
    _refuse_other_locations(settings, secrets)
    try:
        folder.copy_to(source, manifest, staging)
        say("Restoring the files …")
        _restore_keys(settings, secrets)
        _restore_bundles(settings, staging / BUNDLES)
        if manifest.identity and not (settings.data_dir / IDENTITY_FILE).exists():
            atomic_files.write(settings.data_dir / IDENTITY_FILE, manifest.identity.encode())
        atomic_files.write(settings.data_dir / RESTORED, manifest.created_at.encode())
        atomic_files.sync(settings.data_dir)
        atomic_files.write(staging / _SWITCHING, b"")
        copies.restore_copy(staging / DATABASE, settings.database, this_instance(settings))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _open(keys: Path, passphrase: str | None) -> Secrets:
    if passphrase is None:
        return {"vault_keys": [], "files": {}}
    if not keys.is_file():
        raise ValidationFailed({"passphrase": ["this backup was made without keys: bring back the vault's key first"]})
    found: Secrets = json.loads(sodium.unseal(keys.read_bytes(), passphrase, ASSOCIATED_DATA))
    return found


def _refuse_other_keys(settings: Settings, secrets: Secrets) -> None:
    if settings.vault.key is None:
        return
    given = {key.text for key in make_keys(settings).existing()}
    if not given.issuperset(secrets["vault_keys"]):
        raise ValidationFailed(
            {"vault.key": ["is not the key of this backup: add the backup's to vault.previous_keys, or unset it"]}
        )


def _refuse_other_locations(settings: Settings, secrets: Secrets) -> None:
    """Raise ``ValidationFailed`` when the backed-up settings name another database or key file than is restored to."""
    kept = secrets["files"].get(FILE_NAME)
    if kept is None or (settings.data_dir / FILE_NAME).exists():
        return
    theirs, own = tomllib.loads(b64decode(kept).decode()), settings.vault
    if theirs.get("database_url") and settings.database_url is None:
        raise ValidationFailed(
            {"database_url": ["is set in the backup's builderd.toml: give it with BUILDERD_DATABASE_URL to restore it"]}
        )
    if theirs.get("vault", {}).get("key_file") and own.key_file is None and own.key is None:
        raise ValidationFailed(
            {"vault.key_file": ["is set in the backup's builderd.toml: give it with BUILDERD_VAULT__KEY_FILE as well"]}
        )


def _restore_keys(settings: Settings, secrets: Secrets) -> None:
    """Add the keys to those of the key file, and write secret files that do not exist yet."""
    kept = secrets["vault_keys"]
    if kept and settings.vault.key is None:
        path = settings.vault_key_file
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = [key.text for key in KeyFile(path).existing()]
        texts = dict.fromkeys([*kept, *present])
        KeyFile(path).save([Key.from_text(text) for text in texts])
    for name, content in secrets["files"].items():
        target = settings.data_dir / name
        if name in SECRET_FILES and not target.exists():
            atomic_files.write(target, b64decode(content))


def _restore_bundles(settings: Settings, staged: Path) -> None:
    target = settings.data_dir / BUNDLES
    target.mkdir(mode=0o700, exist_ok=True)
    for path in staged.glob("*"):  # a service without builders has no folder of bundles
        path.rename(target / path.name)
    atomic_files.sync(target)


def is_local(settings: Settings) -> bool:
    """Return True when the apps' backups are stored on this machine, and so would be lost with it."""
    return make_location(settings).is_local
