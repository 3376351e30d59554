"""``builderd backup`` and ``builderd restore``: back up and restore the service's own state."""

from __future__ import annotations

from pathlib import Path

import click

from builderd.bootstrap import state
from builderd.cli import options
from builderd.settings import Settings

passphrase_file = click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the passphrase that seals the keys; asked for if not given.",
)
without_keys = click.option("--without-keys", is_flag=True, help="Leave the keys out: you store them elsewhere.")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@options.with_settings
@passphrase_file
@without_keys
def backup(folder: Path, settings: Settings, passphrase_file: Path | None, without_keys: bool) -> None:
    """Back up the service's own state to FOLDER: the database, the files of versions, and the keys, sealed.

    Works while the service runs. The apps' disks are not in it: store their backups on another machine
    (backup.repository).
    """
    passphrase = None if without_keys else _passphrase(passphrase_file, new=True)
    manifest = state.back_up(settings, folder, passphrase, click.echo)
    size = sum(count for _, count in manifest.files.values())
    click.echo(f"{folder} holds the state of {manifest.created_at}: {len(manifest.files)} files, {size:,} bytes.")
    if passphrase is None:
        click.echo("The keys are not in it: without the vault's key, its stored secrets cannot be read.")
    if state.is_local(settings):
        click.echo("The apps' backups are on this machine only: see backup.repository in docs/settings.md.")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.with_settings
@passphrase_file
@without_keys
def restore(folder: Path, settings: Settings, passphrase_file: Path | None, without_keys: bool) -> None:
    """Restore the state in FOLDER into a data directory without a database.

    Never run the original service and the restored one at the same time.
    """
    passphrase = None if without_keys else _passphrase(passphrase_file, new=False)
    manifest = state.restore(settings, folder, passphrase, click.echo)
    click.echo(f"Restored the state of {manifest.created_at}. Start the service with `builderd serve`.")
    click.echo("Apps whose disks are missing get their newest backup when they start.")


def _passphrase(file: Path | None, *, new: bool) -> str:
    if file is not None:
        return file.read_text().strip()
    text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new)
    return text
