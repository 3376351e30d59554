"""``builderd vault``, ``acme`` and ``clock``: the key of secrets, own certificates, times after a wrong clock."""

from __future__ import annotations

import asyncio
from datetime import datetime

import click

from builderd.bootstrap.clock import repair_clock
from builderd.bootstrap.domains import look_again, rotate_account
from builderd.bootstrap.keys import rotate_vault
from builderd.cli import options
from builderd.cli.command_group import CommandGroup
from builderd.settings import Settings


@click.group(cls=CommandGroup)
def vault() -> None:
    """Manage the key of stored secrets."""


@vault.command("rotate")
@options.with_settings
def rotate_key(settings: Settings) -> None:
    """Generate a new key and seal all stored secrets with it.

    When the key is a setting (vault.key), first set the new key there and move the old one to
    vault.previous_keys: the command then seals everything with the new key.
    """
    count = asyncio.run(rotate_vault(settings, click.echo))
    click.echo(f"{count} secrets are sealed with the new key. Keep a copy of it apart from your backups.")


@click.group(cls=CommandGroup)
def acme() -> None:
    """Manage the service's own certificates and its account at the certificate authority."""


@acme.command("rotate")
@options.with_settings
def rotate_account_key(settings: Settings) -> None:
    """Forget the account's key: the next order registers a new account with a new key.

    Certificates that were issued stay valid and are renewed by the new account, also while the service runs.
    An authority with external account binding may want new values of acme.eab_key_id and acme.eab_hmac_key.
    """
    if asyncio.run(rotate_account(settings)):
        click.echo(f"The account at {settings.acme.directory} is forgotten; the next order registers a new one.")
    else:
        click.echo(f"There is no account at {settings.acme.directory}: the first order registers one.")


@acme.command()
@options.with_settings
def check(settings: Settings) -> None:
    """Check the certificates of public_url and of the previews now, after records or the firewall were changed.

    The running service does it within 30 seconds: what is missing or could not be renewed is ordered. A time before
    which the authority wants no order is kept. The result is in builderd doctor, GET /readyz and the log.
    """
    for line in asyncio.run(look_again(settings)):
        click.echo(line)


@click.group(cls=CommandGroup)
def clock() -> None:
    """Mend what a wrong clock of this machine left."""


@clock.command()
@options.with_settings
@click.option("--yes", is_flag=True, help="Do not ask whether the machine's clock is right.")
def repair(settings: Settings, yes: bool) -> None:
    """Set times in the future to now, after the machine's clock was ahead. Stop the service first; apps go on.

    What is due later becomes due now, ends move with the beginning of their row, and what would be billed after now
    is not billed.
    """

    def confirm(now: datetime, later: int) -> None:
        click.echo(f"The machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC. Times after it: {later}.")
        if not yes:
            click.confirm("Is the clock right, and shall they be set to it?", abort=True)

    changed = asyncio.run(repair_clock(settings, confirm))
    for column, count in sorted(changed.items()):
        click.echo(f"{count:>8}  {column}")
    click.echo("Start the service again.")
