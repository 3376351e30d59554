"""``builderd vault``: rotate the key of stored secrets, also while the service runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from builderd.bootstrap.configuration import load
from builderd.bootstrap.keys import rotate_vault
from builderd.cli import options
from builderd.cli.command_group import CommandGroup


@click.group(cls=CommandGroup)
def vault() -> None:
    """Manage the key of stored secrets."""


@vault.command()
@options.data_dir
@options.config
def rotate(data_dir: Path | None, config: Path | None) -> None:
    """Generate a new key and seal all stored secrets with it.

    When the key is a setting (vault.key), first set the new key there and move the old one to
    vault.previous_keys: the command then seals everything with the new key.
    """
    count = asyncio.run(rotate_vault(load(config, data_dir=data_dir), click.echo))
    click.echo(f"{count} secrets are sealed with the new key. Keep a copy of it apart from your backups.")
