"""``builderd domains`` and ``preview-links``: host names of your own, and links to a private preview."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from builderd.cli.apps.session import Session, command, group
from builderd.cli.apps.tables import Columns

if TYPE_CHECKING:
    from builderd.client.models import Domain


domains = group("domains", "Give a builder host names of your own, with certificates.")


@command("list [NAME]", domains)
def domains_list(session: Session, name: str | None) -> None:
    """List the domains of a builder, with what is wrong with each."""
    columns: Columns = {
        "HOST": _host,
        "STATUS": "status",
        "CERTIFICATE UNTIL": lambda one: one.expires_at or "-",
        "NEXT LOOK": lambda one: one.next_try_at or "-",
        "REASON": lambda one: one.reason or "-",
    }
    session.table(session.builder(name).domains.list(), columns, "There are no domains.")


@command("add HOST", domains)
@click.option("--builder", "name", help="Name or uuid of the builder.  [default: that of this folder]")
def add(session: Session, host: str, name: str | None) -> None:
    """Add a domain; its records are checked, and its certificate is ordered, in the background."""
    _show(session, session.builder(name).domains.add(host))


@command("check HOST", domains)
@click.option("--builder", "name", help="Name or uuid of the builder.  [default: that of this folder]")
def check(session: Session, host: str, name: str | None) -> None:
    """Have a domain checked now, after its records were changed."""
    _show(session, session.builder(name).domains.check(host))


@command("remove HOST", domains)
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


preview_links = group("preview-links", "Share a private preview, or one of its ports, for a time.")


@command("create [NAME]", preview_links)
@click.option("--minutes", type=click.IntRange(min=1), default=60, show_default=True, help="Until it expires.")
@click.option("--port", type=click.IntRange(1, 65535), help="A port of the sandbox.  [default: the builder's own]")
def create(session: Session, name: str | None, minutes: int, port: int | None) -> None:
    """Make a link and print it; it is shown once."""
    made = session.builder(name).preview_links.create(expires_minutes=minutes, port=port)
    session.result(made, made.url)


@command("list [NAME]", preview_links)
def links_list(session: Session, name: str | None) -> None:
    """List the links that are valid."""
    session.table(
        session.builder(name).preview_links.list(),
        {
            "ID": "id",
            "PORT": "port",
            "BY": "created_by",
            "EXPIRES": "expires_at",
        },
        "There are no links.",
    )


@command("revoke NAME LINK", preview_links)
def revoke(session: Session, name: str, link: str) -> None:
    """End a link at once."""
    session.builder(name).preview_links.revoke(link)
    session.result({"revoked": link}, f"{link} is revoked.")
