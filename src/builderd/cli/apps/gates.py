"""``builderd review`` and ``qa``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builderd.cli.apps.session import Session, command, shown
from builderd.client.errors import NotFound

if TYPE_CHECKING:
    from builderd.client.models import QaCheck, Review

COLOURS = {"block": "red", "hold": "yellow", "warn": "bright_black"}
OUTCOMES = {"passed": "green", "failed": "red", "warning": "yellow"}


@command("review")
@click.argument("target", default=".")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Of a folder's review: the service's data directory.")
@click.option("--config", type=click.Path(path_type=Path), help="Of a folder's review: a TOML file with settings.")
@click.option("--entrypoint", default="", help="Of a folder's review: what starts the app.")
@click.option("--format", "form", type=click.Choice(["text", "json", "sarif"]), default="text", show_default=True)
@click.option("--version", type=int, help="Of a builder: the version.  [default: the current one]")
@click.option("--again", is_flag=True, help="Of a builder: judge its code anew, by the policy of today.")
@click.option("--accept", metavar="FINGERPRINT", help="Of a builder: accept this finding; needs --reason.")
@click.option("--reason", help="Why the finding is right as it is.")
@click.option("--expires", type=click.DateTime(), help="Until when it is accepted; needed for one that blocks.")
def review(session: Session, target: str, form: str, **options: Any) -> None:
    """Review the code in a folder, or show the review of a builder. Exits with 1 when something blocks or holds it.

    TARGET is a folder if it has a / or is . or .. and otherwise a builder. A folder is reviewed on this machine, which
    needs the packages of the service; nothing of it is run.
    """
    if "/" in target or target in {".", ".."}:
        _review_folder(session, Path(target), form, options)
        return
    reviews = session.builder(target).review
    if form == "sarif":
        session.as_json = True
        session.result(reviews.sarif(options["version"]))
        return
    if options["accept"]:
        if not options["reason"]:
            raise click.UsageError("say with --reason why the finding is right as it is")
        expires: datetime | None = options["expires"]
        until = expires.astimezone() if expires else None
        found = reviews.accept(options["accept"], options["reason"], expires=until)
    else:
        found = reviews.run() if options["again"] else reviews.get(options["version"])
    session.as_json = session.as_json or form == "json"
    session.result(found, "\n".join(review_lines(found)))
    if not found.passed:
        raise SystemExit(1)


def _review_folder(session: Session, path: Path, form: str, options: dict[str, Any]) -> None:
    # By name: it needs the packages of the service, which this command does not.
    from builderd.cli.group import load, prepare_machine  # noqa: PLC0415

    local = load("review ./folder", "review").review
    prepare_machine()
    if not path.is_dir():
        raise click.UsageError(f"{path} is no folder")
    context = click.get_current_context()
    picked = {name: options[name] for name in ("data_dir", "config", "entrypoint")}
    context.invoke(local, path=path, form="json" if session.as_json else form, **picked)


def review_lines(found: Review) -> Iterator[str]:
    """Yield the findings of a review, and its verdict."""
    for one in found.findings:
        where = f"{one.path or 'the commands'}:{one.line}" if one.line else one.path or "(all files)"
        note = f" (accepted: {one.accepted.reason})" if one.accepted else ""
        note += " (only a warning here: nothing that runs reaches it)" if one.demoted else ""
        yield f"{click.style(f'{one.severity:<5}', fg=COLOURS.get(one.severity))}  {where}  {one.message}{note}"
        yield f"       {one.rule}, fingerprint {one.fingerprint}"
        if one.text:
            yield f"       {one.text}"
        if one.severity != "warn":
            yield f"       → {one.advice}"
    yield from (f"       … and {count} more of {rule}" for rule, count in found.left_out.items())
    version = f"version {found.version}: " if found.version else ""
    verdict = "passed" if found.passed else "not passed"
    yield f"{version}{verdict}, {found.files} files in {found.seconds:.2f} s, {len(found.findings)} findings"


@command("qa [NAME]")
@click.option("--version", type=int, help="The version.  [default: the current one]")
@click.option("--again", is_flag=True, help="Judge the running app anew; the report follows.")
@click.option("--screenshots", type=click.Path(file_okay=False, path_type=Path), help="Write them into this folder.")
@click.option("--format", "form", type=click.Choice(["text", "junit", "ctrf"]), default="text", show_default=True)
def qa(
    session: Session, name: str | None, version: int | None, again: bool, screenshots: Path | None, form: str
) -> None:
    """Show whether an app works: the verdict of the gate, and the report. Exits with 1 when it failed."""
    builder = session.builder(name)
    if form != "text":
        click.echo(shown(builder.qa.export(form, version).decode(), sys.stdout))
        return
    found = builder.qa.run() if again else builder.qa.get(version)
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
        for shot in found.screenshots:
            try:
                (screenshots / f"{shot.name}.png").write_bytes(builder.qa.screenshot(shot.name, version))
            except NotFound:
                continue
            session.say(f"Wrote {screenshots / shot.name}.png")
    passed = {True: "passed", False: "failed", None: "not judged"}[found.qa_passed]
    lines = [f"version {found.version}: {'skipped' if found.skipped else passed}", *map(_check, found.gate)]
    lines.append(f"report: {found.status}{f' ({found.note})' if found.note else ''}")
    session.result(found, "\n".join([*lines, *map(_check, found.checks)]))
    if found.qa_passed is False:
        raise SystemExit(1)


def _check(check: QaCheck) -> str:
    findings = "".join(f"\n      {one}" for one in check.findings)
    outcome = click.style(f"{check.outcome:<10}", fg=OUTCOMES.get(check.outcome))
    return f"  {outcome} {check.name}  {check.message}{findings}"
