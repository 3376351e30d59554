"""``builderd mcp``: tools for agents over stdio."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from builderd.cli.apps.session import ActionRequired, Session, run
from builderd.cli.command_group import CommandGroup
from builderd.mcp.agent_configs import AGENTS, Agent, with_entry


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.option(
    "--context", "name", metavar="NAME", help="A service that you are signed in to, other than the one in use."
)
@click.pass_context
def mcp(context: click.Context, name: str | None) -> None:
    """Serve agents over stdio (Model Context Protocol), or add builderd to their configuration."""
    if context.invoked_subcommand is None:
        session = Session(context=name)
        run(session, lambda: _serve(session))


def _serve(session: Session) -> None:
    from builderd.mcp.stdio import serve  # noqa: PLC0415 (help and `install` need no HTTP)

    serve(*session.service())


@mcp.command()
@click.argument("agent", type=click.Choice(sorted(AGENTS)))
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--with-token", is_flag=True, help="Write BUILDERD_URL and BUILDERD_TOKEN into the file, too.")
def install(agent: str, yes: bool, with_token: bool) -> None:
    """Show the entry for an AGENT's configuration file, then write it."""
    run(Session(), lambda: _install(agent, yes, with_token))


def _install(agent: str, yes: bool, with_token: bool) -> None:
    path = _path(AGENTS[agent])
    try:
        before = path.read_text() if path.exists() else ""
        after = with_entry(AGENTS[agent], before, _command(), _environment(with_token))
    except ValueError as error:
        raise click.ClickException(f"{path} {error}") from error
    click.echo(f"{path} will be:\n\n{_hidden(after, with_token)}")
    if after == before:
        click.echo("It is so already.")
        return
    if not yes and not sys.stdin.isatty():
        raise ActionRequired("Write it?", f"builderd mcp install {agent} --yes")
    if not yes and not click.confirm("Write it?", err=True):
        raise click.ClickException("nothing was written")
    _write(path, after, private=with_token)
    click.echo(f"Written. Start {agent} anew.")


def _path(agent: Agent) -> Path:
    mac = agent.mac_path if sys.platform == "darwin" else ""
    return Path(mac or agent.path).expanduser()


def _command() -> list[str]:
    program = shutil.which("builderd")
    return [program, "mcp"] if program else [sys.executable, "-m", "builderd", "mcp"]


def _environment(with_token: bool) -> dict[str, str]:
    names = ("BUILDERD_URL", "BUILDERD_TOKEN") if with_token else ("BUILDERD_URL",)
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _hidden(text: str, with_token: bool) -> str:
    token = os.environ.get("BUILDERD_TOKEN", "")
    return text.replace(token, "bd_…") if with_token and token else text


def _write(path: Path, text: str, *, private: bool) -> None:
    """Replace the file at once, keeping its mode; with a token in it only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    temporary = path.with_name(f".{path.name}.new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.chmod(0o600 if private else mode)
    temporary.replace(path)
