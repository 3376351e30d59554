"""``builderd vault``: the key of what is stored sealed, also while the service runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from builderd.bootstrap.configuration import load
from builderd.bootstrap.keys import rotate_vault
from builderd.cli import options


@click.group()
def vault() -> None:
    """Look after the key of stored secrets."""


@vault.command()
@options.data_dir
@options.config
def rotate(data_dir: Path | None, config: Path | None) -> None:
    """Make a new key and seal all stored secrets with it.

    Where the key is a setting (vault.key), set the new one there first and move the one before to
    vault.previous_keys: this then seals everything with the new one.
    """
    count = asyncio.run(rotate_vault(load(config, data_dir=data_dir), click.echo))
    click.echo(f"{count} secrets are sealed with the new key. Keep a copy of it apart from your backups.")
