"""``builderd review``: run the review gate on a local folder, as a deployment would."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from builderd import __version__
from builderd.bootstrap.configuration import load
from builderd.bootstrap.review import review_code
from builderd.cli import options
from builderd.client.folders import read_folder
from builderd.domain.bundles import MAX_FILES, Bundle, BundleFile, make_bundle
from builderd.domain.qa import pluralize
from builderd.domain.reviews import Severity, Verdict, judge, location
from builderd.schemas.v1.reviews import Review, review_of, sarif_of

#: Limits of a folder that is reviewed.
MOST_FILES, MOST_BYTES = 10 * MAX_FILES, 200_000_000
COLOURS = {Severity.BLOCK: "red", Severity.HOLD: "yellow", Severity.WARN: "bright_black"}


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
    report = asyncio.run(review_code(settings, _bundle(path), entrypoint))
    verdict = judge(report, (), report.reviewed_at)
    shown = review_of(report, verdict)
    match form:
        case "json":
            click.echo(json.dumps(shown.model_dump(mode="json"), indent=2))
        case "sarif":
            click.echo(json.dumps(sarif_of(shown, __version__), indent=2))
        case _:
            _print_findings(shown, verdict)
    if not verdict.passed:
        raise SystemExit(1)


def _bundle(path: Path) -> Bundle:
    folder = read_folder(path)
    if len(folder.files) > MOST_FILES or folder.size > MOST_BYTES:
        raise click.ClickException(
            f"{path} has more than {MOST_FILES} files or {MOST_BYTES} bytes: name a smaller folder"
        )
    return make_bundle(BundleFile(one.path, (path / one.path).read_bytes(), one.executable) for one in folder.files)


def _print_findings(shown: Review, verdict: Verdict) -> None:
    for finding in shown.findings:
        word = click.style(f"{finding.severity.value:<5}", fg=COLOURS[finding.severity])
        where = f"{finding.path}:{finding.line}" if finding.line else finding.path or "(all files)"
        note = " (only a warning here: nothing that runs reaches it)" if finding.demoted else ""
        click.echo(f"{word}  {where}  {finding.message} [{finding.rule}]{note}")
        if finding.text:
            click.echo(f"         {finding.text}")
        if finding.severity is not Severity.WARN:
            click.echo(f"         → {finding.advice}.")
    for rule, count in shown.left_out.items():
        click.echo(f"       … and {count} more of {rule}")
    took = f"{pluralize(shown.files, 'file')} in {shown.seconds:.2f} s"
    if verdict.passed:
        click.echo(f"passed: {took}, {pluralize(len(shown.findings), 'warning')}")
    else:
        stopping = pluralize(len(verdict.open), "finding")
        click.echo(f"not passed: {took}, stopped by {stopping}, the first at {location(verdict.open[0])}")
