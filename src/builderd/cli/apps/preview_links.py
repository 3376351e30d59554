"""``builderd preview-links``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from builderd.cli.apps.session import Session, command, named
from builderd.cli.command_group import CommandGroup


@click.group(cls=CommandGroup, name="preview-links")
def preview_links() -> None:
    """Share a private preview, or one of its ports, for a time."""


@command(preview_links)
@named
@click.option("--minutes", type=click.IntRange(min=1), default=60, show_default=True, help="Until it expires.")
@click.option("--port", type=click.IntRange(1, 65535), help="A port of the sandbox.  [default: the builder's own]")
def create(session: Session, name: str | None, minutes: int, port: int | None) -> None:
    """Make a link and print it; it is shown once."""
    made = session.builder(name).preview_links.create(expires_minutes=minutes, port=port)
    session.result(made, made.url)


@command(preview_links, "list")
@named
def links_list(session: Session, name: str | None) -> None:
    """List the links that are valid."""
    columns: dict[str, Callable[[Any], Any]] = {
        "ID": lambda one: one.id,
        "PORT": lambda one: one.port,
        "BY": lambda one: one.created_by,
        "EXPIRES": lambda one: one.expires_at,
    }
    session.table(session.builder(name).preview_links.list(), columns, "There are no links.")


@command(preview_links)
@click.argument("name")
@click.argument("link")
def revoke(session: Session, name: str, link: str) -> None:
    """End a link at once."""
    session.builder(name).preview_links.revoke(link)
    session.result({"revoked": link}, f"{link} is revoked.")
