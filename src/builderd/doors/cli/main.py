"""The command line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from builderd import __version__
from builderd.domain.errors import BuilderdError, ValidationFailed

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


class Commands(click.Group):
    """Coded errors end the command with their message, not with a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f"builderd.doors.cli.{COMMANDS[cmd_name]}"), cmd_name.replace("-", "_")
        )
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationFailed as error:
            lines = [f"{field}: {reason}" for field, reasons in error.errors.items() for reason in reasons]
            raise click.ClickException("\n".join(lines)) from error
        except BuilderdError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="builderd")
def main() -> None:
    """Turn code into running, isolated apps with a live URL, on this machine.

    Settings come from the command line, from BUILDERD_* variables, and from builderd.toml in the data directory.
    """
