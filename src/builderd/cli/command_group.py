"""A group of commands whose message about an unknown one helps."""

from __future__ import annotations

from importlib import import_module

import click


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
