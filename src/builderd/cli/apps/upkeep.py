"""``builderd backups``, ``leases``, ``events``, ``metrics``, ``domains`` and ``preview-links``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from builderd.cli.apps.session import Columns, Session, command
from builderd.cli.group import TimeParam
from builderd.core.resources import size_text

if TYPE_CHECKING:
    from builderd.client.models import Domain, Metrics

CLASSES = {"ok": "2xx", "redirected": "3xx", "refused": "4xx", "failed": "5xx"}
BARS = "▁▂▃▄▅▆▇█"


backups = click.Group("backups", help="List, take, restore and remove backups.")


@command("list [NAME]", backups)
@click.option("--all", "of_all", is_flag=True, help="Of all builders, deleted ones too.")
def backups_list(session: Session, name: str | None, of_all: bool) -> None:
    """List the backups of a builder, or of all."""
    found = session.client.backups.list() if of_all else session.builder(name).backups.list()
    columns: Columns = {
        "ID": "id",
        "BUILDER": "builder_name",
        "TAKEN": "created_at",
        "KIND": "kind",
        "STATUS": "status",
        "SIZE": lambda one: size_text(one.size_bytes),
        "VERIFIED": "last_verified_at",
    }
    session.table(found, columns, "There are no backups.")


@command("take [NAME]", backups)
def take(session: Session, name: str | None) -> None:
    """Take a backup now and wait for it."""
    taken = session.builder(name).backups.take()
    session.result(taken, taken.id)


@command("restore BACKUP", backups)
@click.option("--builder", "name", help="Replace the files of this builder, after a backup of the present ones.")
@click.option("--as", "new", metavar="NAME", help="Make a new builder of it.")
def restore(session: Session, backup: str, name: str | None, new: str | None) -> None:
    """Bring a backup back, into its builder or as a new one."""
    if (name is None) == (new is None):
        raise click.UsageError("give either --builder or --as")
    if new is not None:
        session.result(
            made := session.client.backups.restore(backup, new), f"{made.name} is {made.status} at {made.url}"
        )
        return
    builder = session.builder(name)
    session.result(builder.backups.restore(backup), f"{builder.name} has the files of the backup.")


@command("rm BACKUP", backups)
@click.option("--builder", "name", help="Its builder.  [default: any, deleted ones too]")
def backups_rm(session: Session, backup: str, name: str | None) -> None:
    """Remove a backup."""
    if name is None:
        session.client.backups.remove(backup)
    else:
        session.builder(name).backups.remove(backup)
    session.result({"removed": backup}, f"The backup {backup} is removed.")


leases = click.Group("leases", help="Keep a builder busy: neither frozen nor stopped for idleness.")


@command("list [NAME]", leases)
def leases_list(session: Session, name: str | None) -> None:
    """List the leases that last."""
    session.table(
        session.builder(name).leases.list(),
        {"ID": "id", "UNTIL": "expires_at", "BY": "created_by", "REASON": "reason"},
        "There are no leases.",
    )


SECONDS = click.option("--seconds", type=click.IntRange(1, 3600), default=600, show_default=True)


@command("take [NAME]", leases)
@SECONDS
@click.option("--reason", default="", help="What it is busy with.")
def leases_take(session: Session, name: str | None, seconds: int, reason: str) -> None:
    """Take a lease; its id is printed."""
    lease = session.builder(name).leases.take(seconds, reason)
    session.result(lease, lease.id)


@command("renew [NAME] LEASE", leases)
@SECONDS
def renew(session: Session, name: str, lease: str, seconds: int) -> None:
    """Renew a lease, from now on."""
    renewed = session.builder(name).leases.renew(lease, seconds)
    session.result(renewed, f"It lasts until {renewed.expires_at:%H:%M:%S} UTC.")


@command("end [NAME] LEASE", leases)
def end(session: Session, name: str, lease: str) -> None:
    """End a lease early."""
    session.builder(name).leases.end(lease)
    session.result({"ended": lease}, f"The lease {lease} has ended.")


@command("events [NAME]")
@click.option("-f", "--follow", is_flag=True, help="Go on with each as it happens.")
@click.option("--type", "types", multiple=True, help="Such as builder.status or stage.*; may be given more than once.")
@click.option("--since", type=TimeParam(), help="None from before this: 10m, 2h, or a time.")
@click.option("--after", type=int, metavar="ID", help="With --follow: from the one after this.")
@click.option(
    "-n", "most", type=click.IntRange(1), default=50, show_default=True, help="Without --follow: the last ones."
)
def events(session: Session, name: str | None, types: Sequence[str], most: int, **wanted: Any) -> None:
    """Show what happened to a builder, or without NAME to all of yours; oldest first."""
    source: Any = session.client if name is None else session.builder(name)
    with source.events(types=",".join(types) or None, **wanted) as found:
        shown = found if wanted["follow"] else reversed([one for one, _ in zip(found, range(most), strict=False)])
        for one in shown:
            reason = f"  {one.reason}" if one.reason else ""
            session.row(
                one, f"{one.time:%Y-%m-%d %H:%M:%S}  {one.type:<20} {(one.builder or '-')[:8]}  {one.actor}{reason}"
            )


@command("metrics [NAME]")
@click.option("--hours", type=click.IntRange(1, 24), default=24, show_default=True)
@click.option("--step", type=click.Choice(["5m", "15m", "1h"]), default="15m", show_default=True)
def metrics(session: Session, name: str | None, hours: int, step: str) -> None:
    """Show the use of a builder: now, and over the last hours."""
    found = session.builder(name).metrics(hours=hours, step=step)
    session.result(found, "\n".join(_metrics(found, session.width)))


def _metrics(found: Metrics, width: int | None) -> list[str]:
    lines = []
    if found.now is not None:
        now = found.now
        lines.append(f"now       {now.cpu or 0:.2f} of {now.cpu_limit:g} vCPU, {now.processes} processes")
        lines.append(f"          memory {size_text(now.memory_bytes)} of {size_text(now.memory_limit_bytes)}")
        lines.append(f"          disk {size_text(now.disk_bytes)} of {size_text(now.disk_limit_bytes)}")
    rows: dict[str, list[float]] = {
        "cpu": [one.cpu or 0 for one in found.steps],
        "memory": [float(one.memory_most_bytes or 0) for one in found.steps],
        "requests": [float(one.requests) for one in found.steps],
        "p95 in s": [one.response_seconds.p95 if one.response_seconds else 0 for one in found.steps],
    }
    for cls in ("ok", "redirected", "refused", "failed"):
        times = [getattr(one.response_seconds_by_class, cls, None) for one in found.steps]
        if any(times):
            rows[f"p95 {CLASSES[cls]}"] = [one.p95 if one else 0 for one in times]
    for label, values in rows.items():
        if values:
            most = size_text(max(values)) if label == "memory" else f"{max(values):g}"
            end = f"  at most {most}"
            lines.append(f"{label:<9} {sparkline(values, width and width - 10 - len(end))}{end}")
    return lines or ["Nothing was measured yet."]


def sparkline(values: Sequence[float], width: int | None = None) -> str:
    """Return a line of bars: one a value, or at most ``width``, each for the highest of equally many values."""
    if width is not None and len(values) > width:
        step = -(-len(values) // max(1, width))
        values = [max(values[at : at + step]) for at in range(0, len(values), step)]
    most = max(values, default=0)
    if most <= 0:
        return BARS[0] * len(values)
    return "".join(BARS[min(len(BARS) - 1, int(value / most * (len(BARS) - 1) + 0.5))] for value in values)


of_builder = click.option("--builder", "name", help="Name or uuid of the builder.  [default: that of this folder]")
domains = click.Group("domains", help="Give a builder host names of your own, with certificates.")


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
@of_builder
def add(session: Session, host: str, name: str | None) -> None:
    """Add a domain; its records are checked, and its certificate is ordered, in the background."""
    _show(session, session.builder(name).domains.add(host))


@command("check HOST", domains)
@of_builder
def check(session: Session, host: str, name: str | None) -> None:
    """Have a domain checked now, after its records were changed."""
    _show(session, session.builder(name).domains.check(host))


@command("remove HOST", domains)
@of_builder
def remove(session: Session, host: str, name: str | None) -> None:
    """Remove a domain: it leads nowhere from then on."""
    session.builder(name).domains.remove(host)
    session.result({"removed": host}, f"The domain {host} is removed.")


def _show(session: Session, found: Domain) -> None:
    reason = f": {found.reason}" if found.reason else ""
    session.result(found, f"{_host(found)} is {found.status}{reason}")


def _host(found: Domain) -> str:
    return found.host if found.name == found.host else f"{found.name} ({found.host})"


preview_links = click.Group("preview-links", help="Share a private preview, or one of its ports, for a time.")


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
        {"ID": "id", "PORT": "port", "BY": "created_by", "EXPIRES": "expires_at"},
        "There are no links.",
    )


@command("revoke [NAME] LINK", preview_links)
def revoke(session: Session, name: str, link: str) -> None:
    """End a link at once."""
    session.builder(name).preview_links.revoke(link)
    session.result({"revoked": link}, f"{link} is revoked.")
