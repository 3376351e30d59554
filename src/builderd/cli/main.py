"""The command line's entry point: its commands, and the exit status of errors."""

from __future__ import annotations

import gc
import logging
import os
from importlib import import_module
from types import ModuleType
from typing import Any

import click

from builderd import __version__
from builderd.bootstrap.configuration import widen_search
from builderd.domain.database_lease import DatabaseOwned, LeaseLost
from builderd.domain.errors import BuilderdError, ValidationFailed

log = logging.getLogger(__name__)

#: Each command and its module in this folder, imported when the command runs: importing all takes a second.
COMMANDS = {
    "serve": "service",
    "token": "tokens",
    "vault": "vault",
    "review": "review",
    "backup": "state",
    "restore": "state",
    "down": "service",
    "doctor": "service",
    "base": "service",
    "install-service": "service_unit",
}


class OwnedByAnother(click.ClickException):
    """Another service owns the database. The unit of ``install-service`` is not restarted after this exit status."""

    exit_code = 4


class Commands(click.Group):
    """The group of all commands. Coded errors and ``OSError`` end a command with their message, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(_load(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationFailed as error:
            lines = [f"{field}: {reason}" for field, reasons in error.errors.items() for reason in reasons]
            raise click.ClickException("\n".join(lines)) from error
        except (DatabaseOwned, LeaseLost) as error:
            raise OwnedByAnother(error.message) from error
        except BuilderdError as error:
            raise click.ClickException(error.message) from error
        except BrokenPipeError:
            raise  # the reader of the output closed the pipe: click ends without a message
        except OSError as error:
            log.debug("command failed error=%s", error, exc_info=True)
            raise click.ClickException(_reason(error)) from error


def _load(name: str) -> ModuleType:
    """Import a command's module without garbage collection, and exempt its objects from later collections.

    Collections take a quarter of the import, and each full one would stop a service for 80 ms.
    """
    gc.disable()
    try:
        return import_module(f"builderd.cli.{name}")
    finally:
        gc.freeze()
        gc.enable()


def _reason(error: OSError) -> str:
    """Return a message with the file, the error, and a hint where root is needed."""
    file = f"{error.filename}: " if error.filename else ""
    hint = "; run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
    return f"{file}{error.strerror or error or type(error).__name__}{hint}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="builderd")
def main() -> None:
    """Turn code into running, isolated apps with a live URL, on this machine.

    Settings come from the command line, from BUILDERD_* variables, and from builderd.toml in the data directory.
    """
    # Folders of sandboxes must be readable for all inside, whatever the shell's umask; secret files set their mode.
    os.umask(0o022)
    widen_search()
