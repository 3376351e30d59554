"""``builderd api``, ``doctor``, ``completion`` and ``man``."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from builderd import __version__
from builderd.cli.apps.session import Exit, NotSignedIn, Session, command, exit_code_of, pairs
from builderd.client.errors import BuilderdError


@command("api METHOD PATH")
@click.option("-d", "--data", help="The body, JSON; @FILE reads it from a file, @- from standard input.")
@click.option("-q", "--query", multiple=True, metavar="NAME=VALUE", help="A query parameter.")
@click.option("-H", "--header", multiple=True, metavar="'NAME: VALUE'", help="A header.")
def api(
    session: Session, method: str, path: str, data: str | None, query: Sequence[str], header: Sequence[str]
) -> None:
    """Send any call of the API, such as: builderd api GET /builders."""
    headers = {name.strip(): value.strip() for name, _, value in (one.partition(":") for one in header)}
    params = pairs(query, "--query")
    options: dict[str, Any] = {"headers": headers, "params": params, "waits": True}
    if data is not None:
        file = sys.stdin.buffer.read if data == "@-" else Path(data[1:]).read_bytes
        options["content"] = file() if data.startswith("@") else data.encode()
        headers.setdefault("Content-Type", "application/json")
    response = session.client.request(method.upper(), f"/{path.strip('/')}", **options)
    try:
        session.as_json = True
        session.result(response.json())
    except ValueError:
        sys.stdout.buffer.write(response.content)


@command("doctor")
@click.option("--client", "of_client", is_flag=True, help="Check this client and its connection, not the machine.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the service keeps everything.")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file with settings.")
def doctor(session: Session, of_client: bool, data_dir: Path | None, config: Path | None) -> None:
    """Run preflight checks, and show storage by tenant. Exits with 1 when the service cannot run on this machine.

    With --client: check this program, its settings, and whether the service can be reached with its token.
    """
    if of_client:
        _check_client(session)
        return
    # By name: it needs the packages of the service, which this command does not.
    from builderd.cli.group import load, prepare_machine  # noqa: PLC0415

    local = load("doctor", "machine").doctor
    prepare_machine()
    click.get_current_context().invoke(local, data_dir=data_dir, config=config)


def _check_client(session: Session) -> None:
    checks: list[dict[str, Any]] = []

    def note(name: str, good: bool, detail: str) -> None:
        checks.append({"check": name, "ok": good, "detail": detail})

    note("client", True, f"builderd {__version__}, Python {platform.python_version()}, {platform.system()}")
    proxies = ", ".join(name for name in ("HTTPS_PROXY", "HTTP_PROXY", "SSL_CERT_FILE") if os.environ.get(name))
    note("environment", True, f"uses {proxies}" if proxies else "no proxy, no certificates of its own")
    code = _check_service(session, note)
    text = "\n".join(f"{'ok  ' if one['ok'] else 'FAIL'}  {one['check']:<12} {one['detail']}" for one in checks)
    session.result(checks, text)
    if code:
        raise SystemExit(code)


def _check_service(session: Session, note: Any) -> int:
    try:
        url, _, _ = session.service()
        note("service", True, url)
    except NotSignedIn as error:
        note("service", False, f"{error}: run builderd login URL")
        return Exit.NOT_SIGNED_IN
    try:
        version = session.client.health().version
        other = f", this client {__version__}: commands that it does not know need its upgrade"
        note("version", True, f"the service has {version}{', as this client' if version == __version__ else other}")
        session.client.readiness()
        note("ready", True, "the service takes work")
        token = session.client.tokens.current()
        note("token", True, f"{token.name}: {', '.join(token.scopes)}")
    except BuilderdError as error:
        note("call", False, str(error))
        return exit_code_of(error)
    return 0


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell, for its start-up file."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    from builderd.cli.group import builderd  # noqa: PLC0415

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(builderd, {}, "builderd", "_BUILDERD_COMPLETE").source())


@click.command()
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
def man(words: Sequence[str]) -> None:
    """Print the manual page, of one command or of all: builderd man | man -l -"""
    from builderd.cli.group import builderd  # noqa: PLC0415

    contexts = [click.Context(builderd, info_name="builderd")]
    for word in words:
        inner = contexts[-1].command
        found = inner.get_command(contexts[-1], word) if isinstance(inner, click.Group) else None
        if found is None:
            raise click.UsageError(f"there is no command {' '.join(words)!r}")
        contexts = [click.Context(found, info_name=word, parent=contexts[-1])]
    if isinstance(group := contexts[0].command, click.Group):
        for name in group.list_commands(contexts[0]):
            # Not of the machine's commands without Linux or the packages of the service.
            with suppress(click.ClickException):
                if (found := group.get_command(contexts[0], name)) is not None:
                    contexts.append(click.Context(found, info_name=name, parent=contexts[0]))
    click.echo(f'.TH {contexts[0].command_path.replace(" ", "-").upper()} 1 "" "builderd {__version__}"')
    for context in contexts:
        text = context.get_help().replace("\\", "\\e").replace("-", "\\-")
        lines = "\n".join(f"\\&{line}" for line in text.splitlines())
        click.echo(f".SH {context.command_path}\n.nf\n{lines}\n.fi")
