"""``builderd review``: run the review gate on a local folder, as a deployment would."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import click

from builderd import __version__
from builderd.bootstrap.configuration import load
from builderd.bootstrap.review import review_code
from builderd.cli import options
from builderd.cli.apps.gates import review_lines
from builderd.cli.apps.session import shown as printed
from builderd.client.folders import read_folder
from builderd.code.model import MAX_FILES, BundleFile, make_bundle
from builderd.review.model import judge
from builderd.schemas.reviews import review_of, sarif_of

#: Limits of a folder that is reviewed.
MOST_FILES, MOST_BYTES = 10 * MAX_FILES, 200_000_000


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.data_dir
@options.config
@click.option("--entrypoint", default="", help="The command that starts the app; decides which files it reaches.")
@click.option("--format", "form", type=click.Choice(["text", "json", "sarif"]), default="text", show_default=True)
def review(path: Path, data_dir: Path | None, config: Path | None, entrypoint: str, form: str) -> None:
    """Review the code in a folder. Exits with 1 when something blocks or holds it.

    Nothing of the folder is run. It passes over what builderd deploy does not send, such as .git and node_modules.
    """
    settings = load(config, data_dir=data_dir, lenient=True)
    folder = read_folder(path)
    if len(folder.files) > MOST_FILES or folder.size > MOST_BYTES:
        raise click.ClickException(
            f"{path} has more than {MOST_FILES} files or {MOST_BYTES} bytes: name a smaller folder"
        )
    files = (BundleFile(one.path, (path / one.path).read_bytes(), one.executable) for one in folder.files)
    report = asyncio.run(review_code(settings, make_bundle(files), entrypoint))
    verdict = judge(report, (), report.reviewed_at)
    shown = review_of(report, verdict)
    match form:
        case "json":
            click.echo(json.dumps(shown.model_dump(mode="json"), indent=2))
        case "sarif":
            click.echo(json.dumps(sarif_of(shown, __version__), indent=2))
        case _:
            click.echo(printed("\n".join(review_lines(shown)), sys.stdout))
    if not verdict.passed:
        raise SystemExit(1)
