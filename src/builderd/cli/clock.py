"""``builderd clock``: mend times that a wrong clock left in the future, while the service is stopped."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import click

from builderd.bootstrap.clock import repair_clock
from builderd.bootstrap.configuration import load
from builderd.cli import options
from builderd.cli.command_group import CommandGroup


@click.group(cls=CommandGroup)
def clock() -> None:
    """Mend what a wrong clock of this machine left."""


@clock.command()
@options.data_dir
@options.config
@click.option("--yes", is_flag=True, help="Do not ask whether the machine's clock is right.")
def repair(data_dir: Path | None, config: Path | None, yes: bool) -> None:
    """Set times in the future to now, after the machine's clock was ahead. Stop the service first; apps go on.

    What is due later becomes due now, ends move with the beginning of their row, and what would be billed after now
    is not billed.
    """

    def confirm(now: datetime, later: int) -> None:
        click.echo(f"The machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC. Times after it: {later}.")
        if not yes:
            click.confirm("Is the clock right, and shall they be set to it?", abort=True)

    changed = asyncio.run(repair_clock(load(config, data_dir=data_dir), confirm))
    for column, count in sorted(changed.items()):
        click.echo(f"{count:>8}  {column}")
    click.echo("Start the service again.")
