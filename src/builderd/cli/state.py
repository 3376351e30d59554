"""``builderd backup`` and ``builderd restore``: the service's own state."""

from __future__ import annotations

from pathlib import Path

import click

from builderd.bootstrap import state
from builderd.bootstrap.configuration import load
from builderd.cli import options

passphrase_file = click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Holds the passphrase that seals the keys; asked for if not given.",
)
without_keys = click.option("--without-keys", is_flag=True, help="Leave the keys out: you keep them elsewhere.")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@options.data_dir
@options.config
@passphrase_file
@without_keys
def backup(
    folder: Path, data_dir: Path | None, config: Path | None, passphrase_file: Path | None, without_keys: bool
) -> None:
    """Keep the service's own state in FOLDER: the database, the files of versions, and the keys, sealed.

    Also while the service runs. What apps wrote is in their backups, not in here: keep those on another machine
    (backup.repository).
    """
    settings = load(config, data_dir=data_dir)
    passphrase = None if without_keys else _passphrase(passphrase_file, new=True)
    manifest = state.back_up(settings, folder, passphrase, click.echo)
    size = sum(count for _, count in manifest.files.values())
    click.echo(f"{folder} holds the state of {manifest.created_at}: {len(manifest.files)} files, {size:,} bytes.")
    if passphrase is None:
        click.echo("The keys are not in it: without the vault's key, what is sealed in it is lost.")
    if state.is_local(settings):
        click.echo("The apps' backups lie on this machine alone: see backup.repository in docs/settings.md.")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.data_dir
@options.config
@passphrase_file
@without_keys
def restore(
    folder: Path, data_dir: Path | None, config: Path | None, passphrase_file: Path | None, without_keys: bool
) -> None:
    """Bring back the state that FOLDER holds, into a data directory without a database.

    Never run the service that it was taken of and the one that it is brought back to at the same time.
    """
    settings = load(config, data_dir=data_dir)
    passphrase = None if without_keys else _passphrase(passphrase_file, new=False)
    manifest = state.restore(settings, folder, passphrase, click.echo)
    click.echo(f"The state of {manifest.created_at} is back. `builderd serve` goes on from it.")
    click.echo("Apps whose disks are gone get their newest backup when they start.")


def _passphrase(file: Path | None, *, new: bool) -> str:
    if file is not None:
        return file.read_text().strip()
    text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new)
    return text
