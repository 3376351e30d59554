"""Commands that show and change builders."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builderd.cli.apps.session import Columns, Session, command, pairs
from builderd.versions.model import parse

if TYPE_CHECKING:
    from builderd.client._sync.builder import Builder
    from builderd.client.models import Stage, VersionDiff


@command("ps")
@click.option("--status", help="Only those in this status.")
@click.option("--quiet", "-q", is_flag=True, help="Print the names alone.")
def ps(session: Session, status: str | None, quiet: bool) -> None:
    """List your builders."""
    found = list(session.client.builders.list(status=status))
    if quiet and not session.as_json:
        for one in found:
            click.echo(one.name)
        return
    columns: Columns = {
        "NAME": "name",
        "KIND": "data.job_type",
        "STATUS": "status",
        "VERSION": "version",
        **({"PROCESSES": _processes} if any(one.data.process_states for one in found) else {}),
        "VISIBILITY": "data.visibility",
        "AUTO-STOP": lambda one: f"{one.data.auto_stop_interval} min" if one.data.auto_stop_interval else "never",
        **({"COST": "{0.data.cost.cost:.2f} {0.data.cost.currency}"} if session.shows_money else {}),
        "CREATED": "data.created_at",
        "DOMAINS": "data.domains",
        "URL": lambda one: served_at(one) or "-",
    }
    session.table(found, columns, "You have no builders: run builderd deploy in a folder of code.")


def _processes(builder: Builder) -> str:
    """Return the processes of an app in a word each: ``web worker*2 beat:failed``."""
    return " ".join(
        one.name + (f"*{one.scale}" if one.scale != 1 else "") + (f":{one.state}" if one.state != "running" else "")
        for one in builder.data.process_states
    )


@command("status [NAME]")
def status(session: Session, name: str | None) -> None:
    """Show a builder: its status with the reason, its address, version, resources and cost."""
    builder = session.builder(name)
    session.result(builder, _described(builder, shows_money=session.shows_money))


def served_at(builder: Builder) -> str:
    """Return the URL where it serves or wakes for visitors, "" for kinds without one and where nothing would answer."""
    has_url = builder.data.job_type not in ("worker", "one_time") and builder.status not in ("failed", "deleted")
    return builder.url if has_url else ""


def _described(builder: Builder, *, shows_money: bool) -> str:
    data = builder.data
    resources = data.resources
    judged = {True: "passed", False: "failed", None: "not judged yet"}
    lines = {
        "name": f"{data.name}  ({data.uuid})",
        "status": f"{data.status}{f': {data.status_reason}' if data.status_reason else ''}",
        "url": served_at(builder) or (data.preview_url and f"nothing is served at {data.preview_url}"),
        "kind": f"{data.job_type}, {data.visibility}, {_auto_stop(data.auto_stop_interval)}",
        "domains": ", ".join(data.domains),
        "version": str(data.version),
        "started by": data.entrypoint,
        "resources": f"{resources.cpu:g} vCPU, {resources.memory:g} GB memory, {resources.disk:g} GB disk",
        "gates": f"review {judged[data.review_passed]}, QA {judged[data.qa_passed]}",
    }
    if shows_money:
        lines["cost"] = f"{data.cost.cost:.2f} {data.cost.currency} ({data.cost.hourly_rate:.4f} an hour while it runs)"
    for one in data.process_states:
        restarts = f", restarts: {one.restarts}" if one.restarts else ""
        lines[one.name] = f"{one.state}, {one.running} of {one.scale}{restarts}: {one.command}"
    if data.exit_code is not None:
        lines["exit code"] = str(data.exit_code)
    if data.needs_restart:
        lines["restart"] = "needed: it runs with credentials that were changed since"
    return "\n".join(f"{label:<11} {value}" for label, value in lines.items() if value)


def _auto_stop(minutes: int) -> str:
    return f"stops after {minutes} minutes without use" if minutes else "never stops by itself"


@command("open [NAME]")
@click.option("--port", type=click.IntRange(1, 65535), help="Another port of its sandbox.")
def open_(session: Session, name: str | None, port: int | None) -> None:
    """Open a builder's address in the browser, and print it."""
    builder = session.builder(name)
    url = builder.url if port is None else builder.port_url(port)
    session.result({"url": url}, url)
    # Without a terminal there is nobody to show a browser to.
    if not session.as_json and sys.stdout.isatty():
        webbrowser.open(url)


def _show_status(session: Session, builder: Builder) -> None:
    session.result(builder, f"{builder.name} is {builder.status}.")


@command("start [NAME]")
def start(session: Session, name: str | None) -> None:
    """Start a builder and wait until it is up."""
    _show_status(session, session.builder(name).start())


@command("stop [NAME]")
def stop(session: Session, name: str | None) -> None:
    """Stop a builder; its files and settings are kept."""
    _show_status(session, session.builder(name).stop())


@command("restart [NAME]")
@click.option("--process", help="Only this process of its app, such as worker.")
def restart(session: Session, name: str | None, process: str | None) -> None:
    """Stop a builder if it runs, and start it."""
    builder = session.builder(name).restart(process)
    if process is None:
        _show_status(session, builder)
    else:
        session.result(builder, f"{process} of {builder.name} is being restarted.")


@command("delete [NAME]")
@click.option("--yes", is_flag=True, help="Do not ask for the name.")
@click.option("--purge", is_flag=True, help="Remove its backups too.")
def delete(session: Session, name: str | None, yes: bool, purge: bool) -> None:
    """Delete a builder with its files. On a terminal, its name is asked for; elsewhere --yes is needed."""
    builder = session.builder(name)
    if not yes:
        typed = session.ask(f"Type {builder.name} to delete it", f"builderd delete {builder.name} --yes")
        if typed != builder.name:
            raise click.UsageError(f"{typed!r} is not its name: nothing was deleted")
    builder.delete(purge=purge)
    session.result({"deleted": builder.name, "uuid": builder.uuid}, f"{builder.name} is deleted.")


@command("versions [NAME]")
def versions(session: Session, name: str | None) -> None:
    """List the versions of a builder."""
    columns: Columns = {
        "VERSION": lambda one: f"{one.version}{' *' if one.current else ''}",
        "STATUS": "status",
        "CREATED": "created_at",
        "BY": "created_by",
        "REASON": "status_reason",
    }
    session.table(session.builder(name).versions(), columns, "There are no versions.")


@command("diff [NAME]")
@click.argument("first", type=int, required=False, metavar="[OLD]")
@click.argument("second", type=int, required=False, metavar="[NEW]")
@click.option("--from", "old", type=int, metavar="VERSION", help="[default: the one before]")
@click.option("--to", "new", type=int, metavar="VERSION", help="[default: the current one]")
@click.option("--patch", "as_patch", is_flag=True, help="Print the files' difference as a patch for git apply.")
def diff(session: Session, name: str | None, as_patch: bool, **numbers: int | None) -> None:
    """Show how two versions differ: their files, as a unified diff, and their settings."""
    old, new = (_only(numbers[one], numbers[other]) for one, other in (("first", "old"), ("second", "new")))
    try:
        if as_patch:
            text = session.builder(name).patch(old, new)
            session.result({"patch": text}, text.rstrip("\n"))
            return
        found = session.builder(name).diff(old, new)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    session.result(found, "\n".join(_difference(found)) or "They are the same.")


#: Colours of a diff's lines, by how they begin.
DIFF_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def _difference(found: VersionDiff) -> Iterator[str]:
    for one in found.settings:
        yield f"{one.name}: {one.old} -> {one.new}"
    for file in found.files:
        yield click.style(f"--- {'/dev/null' if file.kind == 'added' else f'a/{file.path}'}", bold=True)
        yield click.style(f"+++ {'/dev/null' if file.kind == 'removed' else f'b/{file.path}'}", bold=True)
        if not file.compared:
            yield "Not compared line by line: binary, or too long."
        for line in file.lines:
            yield click.style(line, fg=DIFF_COLOURS[line[0]]) if line[0] in DIFF_COLOURS else line


def _only(argument: int | None, option: int | None) -> int | None:
    """Return the version that is given as an argument or as an option."""
    if argument is not None and option is not None:
        raise click.UsageError(f"{argument} and {option} are two versions for one: give one of them")
    return argument if option is None else option


@command("rollback [NAME]")
@click.argument("version", type=int, required=False, metavar="[VERSION]")
@click.option("--to", type=int, help="The version.  [default: the one before]")
def rollback(session: Session, name: str | None, version: int | None, to: int | None) -> None:
    """Deploy an old version again, as a new one. What the app wrote stays."""
    version, builder = _only(version, to), session.builder(name)
    try:
        builder.rollback(version, on_stage=lambda stage: show_stage(session, stage))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    session.result(builder, f"{builder.name} serves version {builder.version}.")


def show_stage(session: Session, stage: Stage) -> None:
    """Report a stage that has ended."""
    mark = click.style("ok", fg="green") if stage.ok else click.style("failed", fg="red")
    session.say(f"  {stage.stage:<8} {mark}  {stage.seconds:.1f} s")


@command("scale [NAME]")
@click.argument("numbers", nargs=-1, metavar="[PROCESS=NUMBER...]")
@click.option("--cpu", type=float, metavar="VCPU")
@click.option("--memory", type=float, metavar="GB")
@click.option("--disk", type=float, metavar="GB", help="It can only grow.")
def scale(session: Session, name: str | None, numbers: Sequence[str], **sizes: float | None) -> None:
    """Change the resources of a builder, or how many sandboxes its further processes have: worker=2."""
    if name is not None and "=" in name:
        numbers, name = (name, *numbers), None
    wanted: Any = {key: value for key, value in sizes.items() if value is not None}
    counts = {key: _number(value) for key, value in pairs(numbers).items()}
    if not wanted and not counts:
        raise click.UsageError("give PROCESS=NUMBER, or at least one of --cpu, --memory and --disk")
    changed: Any = {**({"resources": wanted} if wanted else {}), **({"scale": counts} if counts else {})}
    builder = session.builder(name).update(**changed, on_stage=lambda stage: show_stage(session, stage))
    now = builder.data.resources
    size = f"{now.cpu:g} vCPU, {now.memory:g} GB memory, {now.disk:g} GB disk"
    run = ", ".join(f"{name}={number}" for name, number in builder.data.scale.items())
    session.result(builder, f"{builder.name} has {size}{f'; further processes: {run}' if run else ''}.")


def _number(text: str) -> int:
    """Return the number of a scale. Raises ``UsageError``."""
    if not text.isdecimal():
        raise click.UsageError(f"a scale is a whole number, not {text!r}: worker=2")
    return int(text)


@command("auto-stop [NAME]")
@click.argument("minutes", type=int)
def auto_stop(session: Session, name: str, minutes: int) -> None:
    """Set after how many minutes without use a builder stops by itself; 0: never."""
    builder = session.builder(name).set_auto_stop(minutes)
    session.result(builder, f"{builder.name} {_auto_stop(minutes)}.")


env = click.Group("env", help="List and change the environment variables of a builder.")


@command("list [NAME]", env)
def env_list(session: Session, name: str | None) -> None:
    """List them, as NAME=VALUE."""
    found = session.builder(name).data.env
    session.result(found, "\n".join(f"{key}={value}" for key, value in sorted(found.items())) or None)


@command("set [NAME]", env)
@click.argument("variables", nargs=-1, required=True, metavar="NAME=VALUE...")
def env_set(session: Session, name: str, variables: Sequence[str]) -> None:
    """Set some, and keep the others."""
    found = pairs(variables)
    _change_env(session, name, lambda now: {**now, **found})


@command("unset [NAME]", env)
@click.argument("variables", nargs=-1, required=True)
def unset(session: Session, name: str, variables: Sequence[str]) -> None:
    """Remove some."""
    _change_env(session, name, lambda now: {key: value for key, value in now.items() if key not in variables})


@command("import [NAME]", env)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_(session: Session, name: str, file: Path) -> None:
    """Set those of a file with lines NAME=VALUE, as .env files have them."""
    found = parse(file.read_text())
    if found.errors:
        raise click.UsageError("\n".join(f"{file}, {error}" for error in found.errors))
    _change_env(session, name, lambda now: {**now, **found.values})


def _change_env(session: Session, name: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    builder = session.builder(name)
    builder.update(env=change(builder.data.env), on_stage=lambda stage: show_stage(session, stage))
    session.result(builder.data.env, f"{builder.name} runs with {len(builder.data.env)} variables.")


@command("clear-builds [NAME]")
def clear_builds(session: Session, name: str | None) -> None:
    """Remove the kept results of a builder's builds; rolling back builds again."""
    removed = session.builder(name).clear_build_cache()
    session.result(removed, f"{removed.results} results with {removed.bytes} bytes are removed.")


@command("service-token [NAME]")
def service_token(session: Session, name: str | None) -> None:
    """Replace the service token of a builder, and restart its app with the new one."""
    builder = session.builder(name).renew_service_token()
    session.result(builder, builder.data.service_token)
