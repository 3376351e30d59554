"""Options of commands on the machine, and the rights that they need."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from builderd.bootstrap.configuration import load


class Folder(click.Path):
    """A path that must not be empty: an empty one would mean the working directory."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if value == "":
            self.fail("it is empty: name a folder", param, ctx)
        return super().convert(value, param, ctx)


data_dir = click.option(
    "--data-dir",
    type=Folder(file_okay=False, readable=False, path_type=Path),
    help="Where the service keeps everything.  [default: /var/lib/builderd]",
)
config = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file with settings.  [default: builderd.toml in the data directory]",
)


def with_settings(command: Callable[..., None], *, needs_root: bool = False) -> Callable[..., None]:
    """Add both options, and call the command with the settings that they lead to. Root is checked before any file."""

    @functools.wraps(command)
    def called(*args: Any, data_dir: Path | None, config: Path | None, **options: Any) -> None:
        if needs_root:
            require_root(click.get_current_context().command_path)
        command(*args, settings=load(config, data_dir=data_dir), **options)

    return data_dir(config(called))


as_root = functools.partial(with_settings, needs_root=True)

NEEDS_ROOT = (
    "builderd must run as root: it mounts file systems, makes network links and firewall rules, and starts "
    "sandboxes under user ids of their own, in which nothing is root of this machine. Try: sudo {command}"
)


def require_root(command: str) -> None:
    """Raise ``ClickException`` unless this process is root."""
    if os.geteuid() != 0:
        raise click.ClickException(NEEDS_ROOT.format(command=command))
