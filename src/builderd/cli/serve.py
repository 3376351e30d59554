"""``builderd serve``. Imports little, so that the service listens soon."""

from __future__ import annotations

from pathlib import Path

import click

from builderd.bootstrap import serving
from builderd.bootstrap.configuration import load
from builderd.cli import options
from builderd.cli.options import require_root


@click.command()
@options.data_dir
@options.config
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="The API's port.  [default: 8080]")
@click.option("--preview-port", type=click.IntRange(1, 65535), help="The port of the previews.  [default: 8081]")
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the database from another service that was stopped, or was not seen for 60 seconds.",
)
@click.option("--new-database", is_flag=True, help="Begin with an empty database: apps that run here are removed.")
def serve(
    data_dir: Path | None,
    config: Path | None,
    host: str | None,
    port: int | None,
    preview_port: int | None,
    take_over: bool,
    new_database: bool,
) -> None:
    """Run the service in the foreground. Apps and previews continue when it ends."""
    require_root("builderd serve")
    settings = load(config, data_dir=data_dir, host=host, port=port, preview_port=preview_port)
    serving.serve(settings, take_over=take_over, new_database=new_database)
