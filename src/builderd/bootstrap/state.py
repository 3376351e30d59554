"""The service's own state, kept in a folder and brought back: the database, the bundles and the keys.

What the apps wrote is not in it: that is in their backups, and comes back from there when the disks are gone.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from builderd import __version__
from builderd.adapters.clocks.system import SystemClock
from builderd.adapters.states import folder
from builderd.adapters.states.folder import BUNDLES, DATABASE, KEYS, Manifest
from builderd.adapters.stores.sql import copies
from builderd.adapters.vaults import passphrases
from builderd.adapters.vaults.keys import Key, KeyFile
from builderd.bootstrap.backup_repository import make_place
from builderd.bootstrap.data_directory import IDENTITY_FILE, RESTORED, RESTORING, hold, make
from builderd.bootstrap.database import refuse_another_database
from builderd.bootstrap.instance import this_instance
from builderd.bootstrap.keys import make_keys, refuse_other_keys
from builderd.domain.errors import InvalidState, ValidationFailed
from builderd.linux import durable
from builderd.settings import FILE_NAME, Settings

#: Associated with the sealed keys, so that nothing else is taken for them.
PLACE = "builderd/state/keys"
#: Files of the data directory that are kept with the keys, since they hold secrets or may do so.
SECRET_FILES = ("ssh_host_key", FILE_NAME)
#: A bundle that is removed while its copy is made makes it begin again, so many times in all.
ROUNDS = 3
_SWITCHING = "switching"

Say = Callable[[str], None]


class Secrets(TypedDict):
    """What is sealed: the keys as ``Key.text`` writes them, and files of the data directory in base64."""

    vault_keys: list[str]
    files: dict[str, str]


# Keep


def back_up(settings: Settings, target: Path, passphrase: str | None, say: Say) -> Manifest:
    """Make the folder ``target``, also while the service runs. Without a passphrase the keys are left out.

    Raises ``InvalidState`` when the target is not empty, there is nothing to keep, or database or keys are not those
    of the service, ``ValidationFailed`` for a passphrase that is too short.
    """
    if passphrase is not None:
        passphrases.check_length(passphrase)
    refuse_another_database(settings)
    with folder.create(target) as unfinished:
        before = make_keys(settings).existing() if passphrase is not None else ()
        say("Copying the database and the bundles …")
        revision = _copy(settings, unfinished)
        if passphrase is not None:
            secrets = _secrets(settings, unfinished / DATABASE, before)
            durable.write(unfinished / KEYS, passphrases.seal(secrets, passphrase, PLACE))
        identity = _text(settings.data_dir / IDENTITY_FILE)
        now = SystemClock().now().isoformat()
        return folder.write_manifest(unfinished, now, __version__, revision, identity)


def _copy(settings: Settings, target: Path) -> str:
    """The bundles there are before and after the database is copied: all that it refers to are among them."""
    (target / BUNDLES).mkdir(mode=0o700)
    for _ in range(ROUNDS):
        _copy_bundles(settings, target / BUNDLES)
        (target / DATABASE).unlink(missing_ok=True)
        revision = copies.save(settings.database, target / DATABASE)
        _copy_bundles(settings, target / BUNDLES)
        lacking = copies.bundles_in(target / DATABASE) - {path.stem for path in (target / BUNDLES).iterdir()}
        if not lacking:
            return revision
    raise InvalidState(f"The files of {len(lacking)} versions are missing, such as bundle {min(lacking)}.")


def _copy_bundles(settings: Settings, target: Path) -> None:
    for path in (settings.data_dir / BUNDLES).glob("*.tar"):
        copy = target / path.name
        if copy.exists():
            continue
        try:
            durable.copy(path, copy)
        except FileNotFoundError:  # removed just now, since nothing refers to it any more
            copy.unlink(missing_ok=True)


def _secrets(settings: Settings, database: Path, before: Sequence[Key]) -> bytes:
    """Also with the keys from before the database was copied: a rotation may have ended meanwhile."""
    keys = dict.fromkeys([*make_keys(settings).existing(), *before])
    refuse_other_keys(copies.sealed_in(database), list(keys), ", or leave the keys out (--without-keys)")
    files = {name: settings.data_dir / name for name in SECRET_FILES}
    kept = {name: b64encode(path.read_bytes()).decode() for name, path in files.items() if path.is_file()}
    return json.dumps(Secrets(vault_keys=[key.text for key in keys], files=kept)).encode()


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


# Bring back


def restore(settings: Settings, source: Path, passphrase: str | None, say: Say) -> Manifest:
    """Make the data directory and the database what they were, all at once. No service may run on it.

    Never over what is there: raises ``InvalidState`` where there is a database, or the backup is damaged or of a
    newer program, ``ValidationFailed`` for a wrong passphrase or other keys than the settings give. What was begun
    and broken off leaves no database; the next try begins anew.
    """
    make(settings.data_dir)
    with hold(settings.data_dir):
        refuse_another_database(settings)
        staging = settings.data_dir / RESTORING
        if (staging / _SWITCHING).exists() and copies.holds_something(settings.database):
            say("An earlier restore had come to its end but for its traces.")
            manifest = folder.read(staging)
            shutil.rmtree(staging)
            return manifest
        return _restore(settings, source, staging, passphrase, say)


def _restore(settings: Settings, source: Path, staging: Path, passphrase: str | None, say: Say) -> Manifest:
    if copies.holds_something(settings.database):
        raise InvalidState(
            f"There is a database already ({_place(settings)}): restore into another data directory, or move it away."
        )
    say("Reading the backup …")
    manifest = folder.check(source)
    copies.revision(source / DATABASE)
    secrets = _open(source / KEYS, passphrase)
    _refuse_other_keys(settings, secrets)
    _refuse_other_places(settings, secrets)
    try:
        folder.copy_to(source, manifest, staging)
        say("Putting it in its place …")
        _put_keys(settings, secrets)
        _put_bundles(settings, staging / BUNDLES)
        if manifest.identity and not (settings.data_dir / IDENTITY_FILE).exists():
            durable.write(settings.data_dir / IDENTITY_FILE, manifest.identity.encode())
        durable.write(settings.data_dir / RESTORED, manifest.created_at.encode())
        durable.sync(settings.data_dir)
        durable.write(staging / _SWITCHING, b"")
        copies.bring_back(staging / DATABASE, settings.database, this_instance(settings))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _place(settings: Settings) -> str:
    file = copies.file_of(settings.database)
    return str(file) if file else "at database_url"


def _open(keys: Path, passphrase: str | None) -> Secrets:
    if passphrase is None:
        return {"vault_keys": [], "files": {}}
    if not keys.is_file():
        raise ValidationFailed({"passphrase": ["this backup was made without keys: bring back the vault's key first"]})
    found: Secrets = json.loads(passphrases.unseal(keys.read_bytes(), passphrase, PLACE))
    return found


def _refuse_other_keys(settings: Settings, secrets: Secrets) -> None:
    if settings.vault.key is None:
        return
    given = {key.text for key in make_keys(settings).existing()}
    if not given.issuperset(secrets["vault_keys"]):
        raise ValidationFailed(
            {"vault.key": ["is not the key of this backup: add the backup's to vault.previous_keys, or unset it"]}
        )


def _refuse_other_places(settings: Settings, secrets: Secrets) -> None:
    """The settings that come back would name another database, or file of keys, than the one that is filled."""
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


def _put_keys(settings: Settings, secrets: Secrets) -> None:
    """Beside the keys that are there already; files that are there stay as they are."""
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
            durable.write(target, b64decode(content))


def _put_bundles(settings: Settings, staged: Path) -> None:
    target = settings.data_dir / BUNDLES
    target.mkdir(mode=0o700, exist_ok=True)
    for path in staged.glob("*"):  # a service without builders has no bundles, and no folder of them
        path.rename(target / path.name)
    durable.sync(target)


def is_local(settings: Settings) -> bool:
    """Whether the apps' backups would be lost with this machine."""
    return make_place(settings).is_local
