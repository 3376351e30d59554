"""The command line."""

from __future__ import annotations

from typing import Any

import click

from builderd import __version__
from builderd.domain.errors import BuilderdError, ValidationFailed
from builderd.doors.cli import service
from builderd.doors.cli.review import review
from builderd.doors.cli.service_unit import install_service
from builderd.doors.cli.state import backup, restore
from builderd.doors.cli.tokens import token
from builderd.doors.cli.vault import vault


class CodedErrors(click.Group):
    """Coded errors end the command with their message, not with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationFailed as error:
            lines = [f"{field}: {reason}" for field, reasons in error.errors.items() for reason in reasons]
            raise click.ClickException("\n".join(lines)) from error
        except BuilderdError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=CodedErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="builderd")
def main() -> None:
    """Turn code into running, isolated apps with a live URL, on this machine.

    Settings come from the command line, from BUILDERD_* variables, and from builderd.toml in the data directory.
    """


for command in (
    *(service.serve, token, vault, review, backup, restore),
    *(service.down, service.doctor, service.base, install_service),
):
    main.add_command(command)
