"""Parts of all commands: a group whose message about an unknown one helps, and times as options."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from importlib import import_module

import click

SPAN = re.compile(r"(\d+)([smhdw])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class CommandGroup(click.Group):
    """A group; the error for an unknown command names commands like it, or the version of a newer service."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] in known or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        # Imported here: a command that exists needs none of it.
        message = import_module("builderd.cli.apps.unknown_commands").message
        raise click.UsageError(message(args, known, ctx.command_path if ctx.parent else ""), ctx)


class Moment(click.ParamType[datetime]):
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
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            what = f"neither a span such as {self.example} nor a time such as 2026-01-31T12:00:00Z"
            self.fail(f"{text!r} is {what}", param, ctx)


class Expiry(Moment):
    """A span from now (``30d``, ``12h``) or a time."""

    name = "expiry"
    direction = 1
    example = "30d"
