"""``builderd credentials``, ``spending``, ``cap``, ``webhooks`` and ``tokens``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import click

from builderd.cli.apps.session import Columns, Session, command
from builderd.cli.group import Expiry, TimeParam, printable
from builderd.client.models import DaysSpending, Spending
from builderd.money.model import csv_text

credentials = click.Group("credentials", help="Store secrets, which builders get and nobody can read back.")


@command("list", credentials)
def credentials_list(session: Session) -> None:
    """List them: their names, what they set, and who uses them."""
    columns: Columns = {
        "NAME": "name",
        "VARIABLES": "variables",
        "CHANGED": "updated_at",
        "USED BY": lambda one: ",".join(use.name for use in one.used_by) or "-",
    }
    session.table(session.client.credentials.list(), columns, "There are no credentials.")


@command("show NAME", credentials)
def credentials_show(session: Session, name: str) -> None:
    """Show one, without its values."""
    found = session.client.credentials.get(name)
    users = ", ".join(f"{use.name}{' (needs a restart)' if use.needs_restart else ''}" for use in found.used_by)
    session.result(found, f"{found.name}: sets {', '.join(found.variables)}; used by {users or 'no builder'}")


@command("set NAME", credentials)
@click.argument("variables", nargs=-1, required=True, metavar="VARIABLE[=VALUE]...")
@click.option("--restart", is_flag=True, help="Restart the builders that run with the old values.")
def credentials_set(session: Session, name: str, variables: Sequence[str], restart: bool) -> None:
    """Store secrets under a name, in place of all that were there.

    A variable without a value is asked for without echo; VARIABLE=- reads it from standard input, so that it stands
    in no history of a shell.
    """
    values = {}
    for one in variables:
        variable, equals, value = one.partition("=")
        if not equals:
            value = session.ask(variable, f"builderd credentials set {name} {variable}=- <file", hidden=True)
        elif value == "-":
            value = sys.stdin.read().rstrip("\n")
        values[variable] = value
    stored = session.client.credentials.put(name, values, restart=restart)
    stale = [use.name for use in stored.used_by if use.needs_restart]
    note = f" Restart {', '.join(stale)} to use it." if stale and not restart else ""
    session.result(stored, f"The credential {name} is stored.{note}")


@command("rm NAME", credentials)
@click.option("--force", is_flag=True, help="Also while builders use it.")
def credentials_rm(session: Session, name: str, force: bool) -> None:
    """Delete one."""
    session.client.credentials.delete(name, force=force)
    session.result({"deleted": name}, f"The credential {name} is deleted.")


@command("spending")
@click.option("--since", type=TimeParam(), help="From this on: 30d, or a time.  [default: from the beginning]")
@click.option("--until", type=TimeParam(), help="Before this.")
@click.option("--by-day", is_flag=True, help="Show days (UTC), at most 366, instead of builders.  [this month's]")
@click.option("--csv", "as_csv", is_flag=True, help="Print a table for spreadsheets.")
def spending(session: Session, since: datetime | None, until: datetime | None, by_day: bool, as_csv: bool) -> None:
    """Show what your builders have cost, deleted ones included. Without prices of the operator: how long they ran."""
    found: Spending | DaysSpending
    rows: Sequence[Any]
    shows_money = session.as_json or as_csv or session.shows_money
    if by_day:
        # The first and the last day whole.
        first = since.astimezone(UTC).date() if since else None
        after = (until.astimezone(UTC) - timedelta.resolution).date() + timedelta(days=1) if until else None
        days = session.client.spending.days(since=first, until=after)
        found, rows, empty = days, days.days, "None of these days has begun."
        columns = {"DAY": "day", "HOURS": "{.runtime_hours:.2f}", "COST": "{.cost:.2f}"}
        sheet = {"day": "day", "hours": "runtime_hours", f"cost_{days.currency}": "cost"}
    else:
        month = session.client.spending.get(since=since, until=until)
        found, rows, empty = month, month.deployments, "No builder has cost anything."
        rate = {"PER HOUR": "{.hourly_rate:.4f}"} if shows_money else {}
        columns = {"NAME": "name", "HOURS": "{.runtime_hours:.2f}", **rate, "COST": "{.cost:.2f}"}
        sheet = {"uuid": "uuid", "name": "name", "hours": "runtime_hours", "per_hour": "hourly_rate"}
        sheet[f"cost_{month.currency}"] = "cost"
    if not shows_money:
        del columns["COST"]
    if session.as_json:
        session.result(found)
    elif as_csv:
        click.echo(csv_text([tuple(sheet), *map(attrgetter(*sheet.values()), rows)]), nl=False)
    else:
        session.table(rows, columns, empty)
        if shows_money:
            click.echo(f"total {found.total_cost:.2f} {found.currency}")
        else:
            session.say("No money is shown: the operator of this service has set no prices.")


@command("cap [NAME]")
@click.option("--set", "monthly", type=float, metavar="AMOUNT", help="The most that may be spent in a month.")
@click.option("--lift", is_flag=True, help="Remove the cap; the operator's stays.")
def cap(session: Session, name: str | None, monthly: float | None, lift: bool) -> None:
    """Show or set the monthly spending cap, of a builder or of all together. To set it needs the scope admin."""
    target: Any = session.client.spending if name is None else session.builder(name)
    found = target.set_cap(None if lift else monthly) if lift or monthly is not None else target.cap()
    limit = "no cap" if found.applies is None else f"of {found.applies:.2f}"
    session.result(
        found, f"{found.spent:.2f} {found.currency} spent this month, {limit}; it ends {found.resets_at:%Y-%m-%d}"
    )


webhooks = click.Group("webhooks", help="Have events sent to a URL.")


@command("list", webhooks)
def webhooks_list(session: Session) -> None:
    """List them."""
    columns: Columns = {
        "ID": "id",
        "STATUS": "status",
        "EVENTS": "events",
        "EXPIRES": lambda one: one.expires_at or "never",
        "URL": "url",
    }
    session.table(session.client.webhooks.list(), columns, "There are no webhooks.")


@command("create URL", webhooks)
@click.option("--event", "events", multiple=True, default=["*"], show_default=True, help="Such as builder.*")
def webhooks_create(session: Session, url: str, events: Sequence[str]) -> None:
    """Create one. Its secret is printed once, and is the last line."""
    made = session.client.webhooks.create(url, events=events)
    session.say(f"The webhook {made.id} is made. Its secret, which is not shown again:")
    session.result(made, made.secret)


@command("rm WEBHOOK", webhooks)
def webhooks_rm(session: Session, webhook: str) -> None:
    """Delete one."""
    session.client.webhooks.delete(webhook)
    session.result({"deleted": webhook}, f"The webhook {webhook} is deleted.")


@command("deliveries WEBHOOK", webhooks)
def deliveries(session: Session, webhook: str) -> None:
    """List what was sent to one, and what it answered."""
    columns: Columns = {
        "EVENT": "event",
        "TYPE": "type",
        "STATUS": "status",
        "ATTEMPTS": lambda one: len(one.attempts),
        "LAST ANSWER": lambda one: (one.attempts[-1].status or one.attempts[-1].note) if one.attempts else "-",
    }
    session.table(session.client.webhooks.deliveries(webhook), columns, "Nothing was sent.")


tokens = click.Group(
    "tokens",
    help="Make, list and revoke API tokens of your tenant, over the API. Needs the scope admin.\n\n"
    "`builderd token` does so on the service's own machine, for any tenant.",
)


@command("list", tokens)
def tokens_list(session: Session) -> None:
    """List them, revoked ones too."""
    columns: Columns = {
        "ID": "id",
        "NAME": lambda one: f"{one.name}{' *' if one.current else ''}",
        "SCOPES": "scopes",
        "EXPIRES": lambda one: one.expires_at or "never",
        "STATE": lambda one: "revoked" if one.revoked_at else "valid",
        "LAST USED": "last_used_at",
        "CALLS, 24 H": "calls_in_24_h",
    }
    session.table(session.client.tokens.list(), columns, "There are no tokens.")


@command("create NAME", tokens)
@click.option(
    "--scope", "scopes", multiple=True, default=["write"], show_default=True, help="read, write, skip-gates, admin"
)
@click.option("--expires", type=Expiry(), help="30d, 12h, or a time.  [default: as your own]")
def tokens_create(session: Session, name: str, scopes: Sequence[str], expires: datetime | None) -> None:
    """Make one, with no more scopes and no later expiry than your own. Its secret is the last line."""
    made = session.client.tokens.create(name, scopes=scopes, expires_at=expires)
    session.say(f"The token {made.id} is made. Its secret, which is not shown again:")
    session.result(made, made.secret)


@command("revoke TOKEN", tokens)
def revoke(session: Session, token: str) -> None:
    """Revoke one at once, by its id, with what it made: tokens, SSH tokens, preview links, webhooks and uploads."""
    revoked = session.client.tokens.revoke(token)
    rows = [f"\nended: {one.kind} {one.id} {printable(one.name)}".rstrip() for one in revoked.ended]
    session.result({"revoked": token, "ended": revoked.ended}, f"The token {token} is revoked.{''.join(rows)}")
