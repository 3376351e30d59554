"""The group of all commands, the exit status of errors, and times as options."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import takewhile
from types import ModuleType
from typing import Any

import click

from builderd import __version__
from builderd.cli.commands import COMMANDS, help_text

SPAN = re.compile(r"(\d+)([smhdw])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class TimeParam(click.ParamType[datetime]):
    """A span before now (``10m``, ``2h``, ``1d``) or a time such as ``2026-01-31T12:00:00Z``; in UTC."""

    name = "time"
    direction = -1
    example = "10m"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value)
        span = SPAN.fullmatch(text)
        try:
            if span is not None:
                return datetime.now(UTC) + self.direction * timedelta(**{UNITS[span[2]]: int(span[1])})
            time = datetime.fromisoformat(text)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            what = f"neither a span such as {self.example} nor a time such as 2026-01-31T12:00:00Z"
            self.fail(f"{text!r} is {what}", param, ctx)


class Expiry(TimeParam):
    """A span from now (``30d``, ``12h``) or a time."""

    name = "expiry"
    direction = 1
    example = "30d"


#: Commands whose function has an underscore at its end, since Python has the name.
BUILTIN = frozenset({"open", "exec"})

#: Exit status after Ctrl-C.
INTERRUPTED = 130

log = logging.getLogger(__name__)

NEEDS_LINUX = "acts on the machine that runs the service, which is one with Linux"
NEEDS_SERVER = "needs the packages of the service ({missing} is not installed). Run: pip install 'builderd[server]'"


class Commands(click.Group):
    """The group of all commands. Coded errors and ``OSError`` end a command with their message, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_help(self, ctx: click.Context) -> str:
        return help_text().rstrip("\n")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            raise click.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)
        module, _ = COMMANDS[cmd_name]
        name = cmd_name.replace("-", "_")
        loaded = load(cmd_name, module)
        command: click.Command = getattr(loaded, f"{name}_" if name in BUILTIN else name)
        if not module.startswith("apps."):
            prepare_machine()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        # https://no-color.org. Commands inherit it.
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        as_json = "--json" in takewhile(lambda word: word != "--", [*ctx._protected_args, *ctx.args])
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, BrokenPipeError):
            raise  # BrokenPipeError: the reader of the output closed the pipe, click ends without a message
        except (click.Abort, KeyboardInterrupt):
            click.echo(err=True)  # after ^C or a question
            raise click.exceptions.Exit(INTERRUPTED) from None
        except Exception as error:
            # Imported here: a command that succeeds needs none of it.
            shown = import_module("builderd.cli.failures").shown(error)
            if shown is None:
                raise  # a fault of the program keeps its traceback
            if as_json:
                code = "usage" if isinstance(shown, click.UsageError) else "failed"
                click.echo(json.dumps({"status": "error", "code": code, "message": shown.format_message()}))
                raise click.exceptions.Exit(shown.exit_code) from error
            if shown is error:
                raise
            log.debug("command failed error=%s", error, exc_info=True)
            raise shown from error


def load(command: str, name: str) -> ModuleType:
    """Import a command's module, and exempt its objects from garbage collections, which would stop a service for 80 ms.

    Raises ``ClickException`` where a package of the extra ``server`` is missing, and for a command on the machine where
    that has no Linux.
    """
    if not name.startswith("apps.") and sys.platform != "linux":
        raise click.ClickException(f"`builderd {command}` {NEEDS_LINUX}")
    try:
        loaded = import_module(f"builderd.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "builderd":
            raise
        raise click.ClickException(f"`builderd {command}` {NEEDS_SERVER.format(missing=error.name)}") from error
    gc.freeze()
    return loaded


def printable(text: str) -> str:
    """Return text from elsewhere without what moves the cursor, sets a title or turns the direction of a line."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


def prepare_machine() -> None:
    """Give this process the mask and the search path that commands on the machine need."""
    # Folders of sandboxes must be readable for all inside, despite the shell's umask; secret files set their mode.
    os.umask(0o022)
    # By name: what speaks to a service imports nothing of it.
    import_module("builderd.bootstrap.configuration").widen_search()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="builderd")
def builderd() -> None:
    """Turn code into running, isolated apps with a live URL."""
