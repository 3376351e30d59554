"""Options shared by several commands."""

from __future__ import annotations

import os
from pathlib import Path

import click


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
