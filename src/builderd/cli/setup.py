"""``builderd setup``: install what the service needs on this machine besides its Python packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click

from builderd.bootstrap import machine
from builderd.cli import options
from builderd.settings import Settings

#: Names the Debian packages. ``script/setup`` of a checkout runs it, too.
PACKAGES = Path(__file__).parents[1] / "debian_packages.sh"


@click.command()
@click.option("--with-browser", is_flag=True, help="Install Chromium too, with which QA looks at pages.")
@options.as_root
def setup(with_browser: bool, settings: Settings) -> None:
    """Install Debian packages and the base root file system, which the service needs on this machine.

    Run it as often as you like, and after each upgrade: what is there is left as it is. Services that
    the packages bring are not started.
    """
    # bash by name: an installed wheel keeps no executable bits.
    done = subprocess.run(["bash", str(PACKAGES), *(["--with-browser"] if with_browser else [])], check=False)
    if done.returncode != 0:
        raise click.ClickException(
            "the Debian packages are not all installed: mend what is said above, and run it again"
        )
    click.echo(f"base root file system: {machine.build_base(settings, click.echo)}")
    click.echo("This machine is set up. Start the service: builderd install-service --now")
