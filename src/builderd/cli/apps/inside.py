"""Commands that look into a builder: logs, commands, terminals, files."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from builderd.cli.apps.session import Columns, Session, command, pairs, shown
from builderd.cli.apps.upkeep import sparkline
from builderd.cli.group import TimeParam
from builderd.client.errors import NotFound

if TYPE_CHECKING:
    from builderd.client._sync.builder import Builder
    from builderd.client.models import LogDensity, SshGrant

COLOURS = {"stderr": "red", "build": "bright_black", "release": "bright_black"}


@command("logs [NAME]")
@click.option("--density", is_flag=True, help="Show where lines are over time, in place of them.")
@click.option("--search", metavar="TEXT", help="Lines with this text in them, in any case of letters.")
@click.option("-f", "--follow", is_flag=True, help="Go on with each new line.")
@click.option("-n", "tail", type=click.IntRange(0, 100_000), default=200, show_default=True, help="Last lines.")
@click.option("--since", type=TimeParam(), help="None from before this: 10m, 2h, or a time.")
@click.option("--stream", type=click.Choice(["stdout", "stderr", "build", "release"]))
@click.option("--process", help="Of one process of the app: web, worker, worker.2.")
@click.option("--timestamps", "-t", is_flag=True, help="Show the time of each line.")
def logs(session: Session, name: str | None, timestamps: bool, density: bool, **wanted: Any) -> None:
    """Show the log of a builder: of its app, and of the installation of its dependencies."""
    if density:
        filters = {key: wanted[key] for key in ("since", "stream", "search")}
        found = session.builder(name).log_density(**filters)
        session.result(found, _drawn(found))
        return
    version, builder = None, session.builder(name)
    own = next((one.name for one in builder.data.process_states), "")
    with builder.logs(**wanted) as lines:
        for line in lines:
            if version not in {None, line.version} and not session.as_json:
                click.secho(f"--- version {line.version} ---", dim=True)
            version = line.version
            time = f"{line.time:%Y-%m-%d %H:%M:%S} " if timestamps else ""
            text = click.style(line.text, fg=COLOURS[line.stream]) if line.stream in COLOURS else line.text
            process = click.style(f"{line.process or own} | ", fg="cyan") if own and line.stream != "build" else ""
            session.row(line, time + process + text)


def _drawn(found: LogDensity) -> str:
    """Return the lines over time as a row of bars, with the times of its ends and of versions."""
    if not found.buckets:
        return "There are no lines."
    bars = sparkline([one.lines for one in found.buckets])
    errors = sum(one.errors for one in found.buckets)
    begin, end = found.buckets[0].time, found.buckets[-1].time
    versions = [f"version {one.version} from {one.time:%Y-%m-%d %H:%M:%S}" for one in found.versions]
    span = f"{begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S}"
    return "\n".join([bars, f"{found.lines} lines, {errors} of them errors, {span}", *versions])


@command("exec [NAME]")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Send standard input to the command.")
@click.option("-t", "--tty", is_flag=True, help="Run it on a terminal; -it for what is typed too.")
@click.option("--cwd", help="Where it begins.  [default: /app]")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Add a variable.")
@click.option("--process", help="In the sandbox of a further process of the app: worker, worker.2.")
@click.option("--limit", type=click.IntRange(1, 600), default=60, show_default=True, help="Seconds until it is killed.")
def exec_(session: Session, name: str, words: Sequence[str], tty: bool, **options: Any) -> None:
    """Run a command beside the app, and exit with its code (124 when it is killed after --limit).

    One word is given to the shell as it is: exec app -- 'ls | wc -l'.
    """
    text = words[0] if len(words) == 1 else shlex.join(words)
    builder = session.builder(name)
    if tty:
        if options["process"]:
            raise click.UsageError("a terminal is opened in the app's own sandbox: leave -t or --process out")
        raise SystemExit(_on_terminal(builder, text))
    stdin = sys.stdin.read() if options["with_stdin"] else ""
    env = pairs(options["variables"], "--env")
    writers: dict[str, Any] = {"on_output": partial(_write, sys.stdout), "on_errors": partial(_write, sys.stderr)}
    shown_at_once = {} if session.as_json else writers
    where = {name: options[name] for name in ("cwd", "process")}
    done = builder.exec(text, timeout=options["limit"], stdin=stdin, env=env, **where, **shown_at_once)
    if session.as_json:
        session.result(done)
    elif done.truncated:
        session.say("\nThe output was longer: it was cut at the service's limit.")
    if done.hint:
        session.say(done.hint)
    if done.exit_code:
        raise SystemExit(done.exit_code)


def _write(out: TextIO, piece: str) -> None:
    out.write(shown(piece, out))
    out.flush()


@command("shell [NAME]")
def shell(session: Session, name: str | None) -> None:
    """Open a login shell in a builder's sandbox."""
    raise SystemExit(_on_terminal(session.builder(name), None))


def _on_terminal(builder: Builder, text: str | None) -> int:
    if not sys.stdin.isatty():
        raise click.UsageError("standard input is no terminal: leave -t out, and use -i to send it")
    from builderd.cli.apps.terminal import attach  # noqa: PLC0415 (termios is not everywhere)

    return attach(builder, text)


ssh = click.Group("ssh", help="Log in to a builder by SSH.")


@command("grant [NAME]", ssh)
@click.option("--minutes", type=click.IntRange(5, 7 * 24 * 60), default=60, show_default=True)
@click.option("--alone", is_flag=True, help="End all other tokens, and cut their sessions.")
def grant(session: Session, name: str | None, minutes: int, alone: bool) -> None:
    """Make a token, and print the command that logs in with it."""
    made = session.builder(name).ssh(expires_minutes=minutes, alone=alone)
    session.result(made, made.ssh_command)


@command("end [NAME]", ssh)
def end(session: Session, name: str | None) -> None:
    """End all SSH tokens of a builder, and cut their sessions."""
    builder = session.builder(name)
    builder.end_ssh()
    session.result({"ended": builder.uuid}, f"No SSH token of {builder.name} is valid any more.")


@command("connect [NAME]", ssh)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND...]")
def connect(session: Session, name: str, words: Sequence[str]) -> None:
    """Log in with this machine's ssh, with the gateway's key checked."""
    raise SystemExit(_run_ssh(session.builder(name).ssh(), [], words))


@command("port-forward [NAME]")
@click.argument("ports", metavar="[LOCAL:]PORT")
def port_forward(session: Session, name: str, ports: str) -> None:
    """Forward a local port to one of a builder's, through the SSH gateway, until Ctrl-C."""
    local, _, remote = ports.rpartition(":")
    if not remote.isdecimal() or not (local or remote).isdecimal():
        raise click.UsageError(f"{ports!r} is neither a port nor LOCAL:PORT")
    made = session.builder(name).ssh()
    session.say(f"http://127.0.0.1:{local or remote} leads to port {remote} of {name}. Ctrl-C ends it.")
    raise SystemExit(_run_ssh(made, ["-N", "-L", f"127.0.0.1:{local or remote}:localhost:{remote}"], []))


def _run_ssh(made: SshGrant, options: Sequence[str], words: Sequence[str]) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".known_hosts") as known:
        known.write(made.known_hosts + "\n")
        known.flush()
        checked = ["-o", f"UserKnownHostsFile={known.name}", "-o", "StrictHostKeyChecking=yes"]
        target = ["-p", str(made.port), f"{made.token}@{made.host}"]
        try:
            return subprocess.run(["ssh", *checked, *options, *target, *words], check=False).returncode
        except FileNotFoundError:
            raise click.ClickException(
                "ssh is not installed: install OpenSSH's client, or use builderd shell"
            ) from None


@command("cp SOURCE TARGET")
def cp(session: Session, source: str, target: str) -> None:
    """Copy a file or a folder from or to a builder: NAME:PATH names one there, .:PATH one of this folder's builder."""
    (source_name, source_path), (target_name, target_path) = _place(source), _place(target)
    if (source_name is None) == (target_name is None):
        raise click.UsageError(
            "name a builder on one side: builderd cp ./data app:data, or builderd cp app:data ./data"
        )
    if target_name is not None:
        path = target_path
        if not path or path.endswith("/"):
            path = f"{path}{Path(source_path).resolve().name}"
        count = session.builder(target_name).files.upload(source_path, path)
    else:
        local = Path(target_path)
        if local.is_dir():
            local = local / Path(source_path).name
        count = session.builder(source_name).files.download(source_path, local)
    session.result({"files": count}, f"Copied {count} file{'' if count == 1 else 's'}.")


def _place(text: str) -> tuple[str | None, str]:
    """Return the builder's name, None for a local path, and the path."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name:
        return None, text
    return name, _in_app(path)


def _in_app(path: str) -> str:
    """Return a path as the API takes it, relative to the app's folder ``/app``."""
    return path.removeprefix("/app").lstrip("/") if path == "/app" or path.startswith("/app/") else path.lstrip("/")


files = click.Group("files", help="List, show, fetch and delete the files of a builder.")


@command("list [NAME]", files)
@click.argument("path", default="")
def files_list(session: Session, name: str, path: str) -> None:
    """List a folder."""
    columns: Columns = {
        "MODE": "mode",
        "SIZE": "size",
        "CHANGED": "mtime",
        "NAME": lambda one: one.name + {"folder": "/", "link": f" -> {one.target}"}.get(one.type, ""),
    }
    session.table(session.builder(name).files.list(_in_app(path)), columns, "The folder is empty.")


@command("cat [NAME] PATH", files)
def cat(session: Session, name: str, path: str) -> None:
    """Print a file."""
    content = session.builder(name).files.read(_in_app(path))
    if session.as_json:
        session.result({"path": path, "content": content.decode(errors="replace")})
    elif sys.stdout.isatty():
        click.echo(shown(content.decode(errors="replace"), sys.stdout), nl=False)
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()


@command("rm [NAME] PATH", files)
@click.option("-r", "--recursive", is_flag=True, help="A folder with all that is in it.")
def files_rm(session: Session, name: str, path: str, recursive: bool) -> None:
    """Delete a file."""
    try:
        session.builder(name).files.delete(_in_app(path), recursive=recursive)
    except NotFound as error:
        raise click.ClickException(error.message) from error
    session.result({"deleted": path}, f"{path} is deleted.")


@command("archive [NAME]", files)
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
def archive(session: Session, name: str, file: Path) -> None:
    """Fetch all files as one tar.zst."""
    with file.open("wb") as out:
        count = session.builder(name).files.archive(out)
    session.result({"file": str(file), "bytes": count}, f"Wrote {file} ({count} bytes).")
