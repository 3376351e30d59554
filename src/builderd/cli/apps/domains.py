"""``builderd domains``: host names of your own for a builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from builderd.cli.apps.session import Session, command, named
from builderd.cli.command_group import CommandGroup

if TYPE_CHECKING:
    from builderd.client.models import Domain


@click.group(cls=CommandGroup)
def domains() -> None:
    """Give a builder host names of your own, with certificates."""


@command(domains, "list")
@named
def domains_list(session: Session, name: str | None) -> None:
    """List the domains of a builder, with what is wrong with each."""
    columns: dict[str, Callable[[Any], Any]] = {
        "HOST": _host,
        "STATUS": lambda one: one.status,
        "CERTIFICATE UNTIL": lambda one: one.expires_at or "-",
        "NEXT LOOK": lambda one: one.next_try_at or "-",
        "REASON": lambda one: one.reason or "-",
    }
    session.table(session.builder(name).domains.list(), columns, "There are no domains.")


@command(domains)
@click.argument("host")
@click.option("--builder", "name", help="Name or uuid of the builder.  [default: that of this folder]")
def add(session: Session, host: str, name: str | None) -> None:
    """Add a domain; its records are checked, and its certificate is ordered, in the background."""
    _show(session, session.builder(name).domains.add(host))


@command(domains)
@click.argument("host")
@click.option("--builder", "name", help="Name or uuid of the builder.  [default: that of this folder]")
def check(session: Session, host: str, name: str | None) -> None:
    """Have a domain checked now, after its records were changed."""
    _show(session, session.builder(name).domains.check(host))


@command(domains)
@click.argument("host")
@click.option("--builder", "name", help="Name or uuid of the builder.  [default: that of this folder]")
def remove(session: Session, host: str, name: str | None) -> None:
    """Remove a domain: it leads nowhere from then on."""
    session.builder(name).domains.remove(host)
    session.result({"removed": host}, f"The domain {host} is removed.")


def _show(session: Session, found: Domain) -> None:
    reason = f": {found.reason}" if found.reason else ""
    session.result(found, f"{_host(found)} is {found.status}{reason}")


def _host(found: Domain) -> str:
    return found.host if found.name == found.host else f"{found.name} ({found.host})"
