"""Deploys a folder by the SDK, stage by stage, and prints the URL; a builder of this name gets a new version.

BUILDERD_TOKEN=… .venv/bin/python examples/deploy.py examples/my-api --name my-api --entrypoint 'python3 main.py'
"""

from __future__ import annotations

from pathlib import Path

import click

from builderd import Builderd, BuilderdError, Stage


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True)
@click.option("--entrypoint", required=True, help="The command that starts the app, in its folder.")
@click.option("--port", type=int, default=8000, show_default=True, help="Where the app listens.")
@click.option("--env", "pairs", multiple=True, metavar="KEY=VALUE")
@click.option("--api", default="http://127.0.0.1:8080", show_default=True, help="Where builderd is.")
@click.option("--token", required=True, envvar="BUILDERD_TOKEN", help="Better given as BUILDERD_TOKEN.")
def deploy(folder: Path, name: str, entrypoint: str, port: int, pairs: tuple[str, ...], api: str, token: str) -> None:
    """Turn FOLDER into a running app."""
    env = dict(pair.split("=", 1) for pair in pairs)
    try:
        with Builderd(api, token) as client:
            builder = client.deploy(folder, name, entrypoint=entrypoint, port=port, env=env, on_stage=print_stage)
    except BuilderdError as error:
        raise click.ClickException(str(error)) from error
    click.echo(builder.url)


def print_stage(stage: Stage) -> None:
    click.echo(f"  {stage.stage:<8} {stage.seconds:8.3f} s", err=True)


if __name__ == "__main__":
    deploy()
