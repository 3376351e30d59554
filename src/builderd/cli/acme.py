"""``builderd acme``: certificates of the service's own, and the account at the authority, on its machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from builderd.bootstrap.configuration import load
from builderd.bootstrap.domains import look_again, rotate_account
from builderd.cli import options
from builderd.cli.command_group import CommandGroup


@click.group(cls=CommandGroup)
def acme() -> None:
    """Manage the service's own certificates and its account at the certificate authority."""


@acme.command()
@options.data_dir
@options.config
def rotate(data_dir: Path | None, config: Path | None) -> None:
    """Forget the account's key: the next order registers a new account with a new key.

    Certificates that were issued stay valid and are renewed by the new account, also while the service runs.
    An authority with external account binding may want new values of acme.eab_key_id and acme.eab_hmac_key.
    """
    settings = load(config, data_dir=data_dir)
    if asyncio.run(rotate_account(settings)):
        click.echo(f"The account at {settings.acme.directory} is forgotten; the next order registers a new one.")
    else:
        click.echo(f"There is no account at {settings.acme.directory}: the first order registers one.")


@acme.command()
@options.data_dir
@options.config
def check(data_dir: Path | None, config: Path | None) -> None:
    """Check the certificates of public_url and of the previews now, after records or the firewall were changed.

    The running service does it within 30 seconds: what is missing or could not be renewed is ordered. A time before
    which the authority wants no order is kept. The result is in builderd doctor, GET /readyz and the log.
    """
    for line in asyncio.run(look_again(load(config, data_dir=data_dir))):
        click.echo(line)
