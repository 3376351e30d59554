"""The command line."""

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

#: Each command, and the file in this folder that has it: loaded when it is called for, since few need what the service
#: needs, and loading all of it takes a second.
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


class Owned(click.ClickException):
    """The database is another service's. The unit of ``install-service`` is not started again after this status."""

    exit_code = 4


class Commands(click.Group):
    """Coded errors, and those of files, end the command with their message, not with a traceback."""

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
            raise Owned(error.message) from error
        except BuilderdError as error:
            raise click.ClickException(error.message) from error
        except BrokenPipeError:
            raise  # whoever read the output has enough of it: click ends quietly
        except OSError as error:
            log.debug("%s", error, exc_info=True)
            raise click.ClickException(_reason(error)) from error


def _load(name: str) -> ModuleType:
    """What is loaded stays: to look for garbage in it takes a quarter of the loading, and would stop a service for
    80 ms at each full collection."""
    gc.disable()
    try:
        return import_module(f"builderd.cli.{name}")
    finally:
        gc.freeze()
        gc.enable()


def _reason(error: OSError) -> str:
    """What is wrong with which file, and what to do where that is plain."""
    file = f"{error.filename}: " if error.filename else ""
    hint = "; run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
    return f"{file}{error.strerror or error or type(error).__name__}{hint}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="builderd")
def main() -> None:
    """Turn code into running, isolated apps with a live URL, on this machine.

    Settings come from the command line, from BUILDERD_* variables, and from builderd.toml in the data directory.
    """
    # Whatever the shell's mask says, sandboxes are made of folders that all may read inside; secrets say their mode.
    os.umask(0o022)
    widen_search()
