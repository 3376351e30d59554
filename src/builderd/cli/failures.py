"""Messages and exit statuses of the errors that end a command."""

from __future__ import annotations

import os

import click

from builderd.core.errors import BuilderdError, ValidationFailed
from builderd.core.members import DatabaseLost, DatabaseOwned, LeaseLost


class WrongDatabase(click.ClickException):
    """Another service owns the database, or it was emptied. systemd does not start the service's unit again."""

    exit_code = 4


def shown(error: Exception) -> click.ClickException | None:
    """Return what to print for an error; None for a fault of the program, which keeps its traceback."""
    match error:
        case click.ClickException():
            return error
        case ValidationFailed():
            lines = [f"{field}: {reason}" for field, reasons in error.errors.items() for reason in reasons]
            return click.ClickException("\n".join(lines))
        case DatabaseOwned() | DatabaseLost() | LeaseLost():
            return WrongDatabase(error.message)
        case BuilderdError():
            return click.ClickException(error.message)
        case OSError():
            file = f"{error.filename}: " if error.filename else ""
            hint = "; run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
            return click.ClickException(f"{file}{error.strerror or error or type(error).__name__}{hint}")
        case _:
            return None
