"""``builderd down``, ``doctor`` and ``base``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from builderd.bootstrap import machine, service
from builderd.bootstrap.configuration import load
from builderd.cli import options, usage
from builderd.cli.command_group import CommandGroup
from builderd.cli.privileges import require_root
from builderd.settings import Settings


@click.command()
@options.data_dir
@options.config
def down(data_dir: Path | None, config: Path | None) -> None:
    """Stop all sandboxes and previews and remove what they use on the host. Data is kept."""
    require_root("builderd down")
    settings = load(config, data_dir=data_dir)
    asyncio.run(service.take_down(settings, click.echo))


@click.command()
@options.data_dir
@options.config
def doctor(data_dir: Path | None, config: Path | None) -> None:
    """Run preflight checks, and show storage by tenant. Exits with 1 when the service cannot run on this machine."""
    settings = load(config, data_dir=data_dir)
    checks = machine.run_preflight_checks(settings)
    for check in checks:
        mark = "ok  " if check.found else ("MISS" if check.vital else "lack")
        click.echo(f"{mark}  {check.name:<24} {check.detail}")
        if not check.found:
            click.echo(f"      {'':<24} {check.cost}")
    packages = [check.cost for check in checks if not check.found and "apt-get install" in check.cost]
    if packages:
        browser = " --with-browser" if any("chromium" in cost for cost in packages) else ""
        click.echo(f"\nTo install all packages named above: builderd setup{browser}")
    _print_database(settings)
    _print_usage(settings)
    if any(check.vital and not check.found for check in checks):
        raise SystemExit(1)


def _print_database(settings: Settings) -> None:
    """Print the service that owns the database, and differences of its schema."""
    try:
        lines = asyncio.run(machine.describe_database(settings))
    except Exception as error:
        lines = [f"database: cannot be read: {error}"]
    for line in lines:
        click.echo(f"\n{line}")


def _print_usage(settings: Settings) -> None:
    """Print the storage of each tenant and builder; an error is printed too, so that the checks above are seen."""
    try:
        inventory, code = asyncio.run(machine.load_inventory(settings)), asyncio.run(machine.describe_code(settings))
    except Exception as error:
        click.echo(f"\nstorage: cannot be read: {error}")
        return
    if inventory is not None:
        click.echo("")
        for line in (*usage.lines(inventory), *code):
            click.echo(line)


@click.group(cls=CommandGroup)
def base() -> None:
    """The base root file system that all sandboxes of this machine share."""


@base.command()
@options.data_dir
@options.config
def build(data_dir: Path | None, config: Path | None) -> None:
    """Build it now, if it is missing, rather than at the first start of the service."""
    require_root("builderd base build")
    settings = load(config, data_dir=data_dir)
    click.echo(machine.build_base(settings, click.echo))
