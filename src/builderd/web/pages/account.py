"""Pages of a tenant as a whole: activity, credentials, webhooks, API tokens, spending; and the operator's machine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

from starlette.responses import Response

from builderd import __version__
from builderd.builders.model import Desired
from builderd.core.errors import ValidationFailed
from builderd.core.ids import TokenId
from builderd.core.resources import room_of
from builderd.credentials import service as credentials
from builderd.credentials.model import name_error
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Delivery, Webhook, is_pattern
from builderd.events.store import EventQuery
from builderd.money import caps
from builderd.money import service as spending
from builderd.money.model import WARNING_SHARE, Billing, Spent, csv_text, month_of, next_month
from builderd.schemas.account import NewCredential, NewToken, NewWebhook
from builderd.server.health import readiness, vital_parts
from builderd.sessions import revocations
from builderd.tokens import service as tokens
from builderd.tokens.model import EndedKind, Scope
from builderd.web.pages import deploying
from builderd.web.pages.settings import amount
from builderd.web.shown import bars, share
from builderd.web.visits import Visit, number_in, page, see_other
from builderd.webhooks import service as webhooks

EVENTS_PER_PAGE = 50
KINDS_OF_EVENTS: Sequence[tuple[str, str]] = (
    ("", "All"),
    ("builder.*", "Builders"),
    ("version.*", "Versions"),
    ("review.*", "Reviews"),
    ("backup.*", "Backups"),
    ("spending.*", "Money"),
)
SHOWN_DELIVERIES = 10
#: What a new token may do, with what each scope means. `operator` is granted on the machine alone.
SCOPES = (
    (Scope.READ, "see everything but service tokens"),
    (Scope.WRITE, "read, create and change builders"),
    (Scope.SKIP_GATES, "leave the review or QA out"),
    (Scope.ADMIN, "all of these, tokens and caps"),
)
#: Lifetimes of a new token in days; "" is as long as the token of the session.
LIFETIMES = ("7", "30", "90", "365", "")
#: What ended with a token, in words.
KINDS = {
    EndedKind.TOKEN: "the token",
    EndedKind.SSH: "an SSH token of",
    EndedKind.PREVIEW_LINK: "a link to",
    EndedKind.WEBHOOK: "the webhook to",
    EndedKind.UPLOAD: "an upload",
}
_LINE = re.compile(r"\s*(?:export\s+)?([^=\s#]+)\s*=(.*)")


@page("/activity")
async def show_activity(visit: Visit) -> Response:
    """Show a page of events of all builders, the newest first, by day, filtered by builder and type."""
    query = visit.request.query_params
    kind, name = query.get("type", ""), query.get("builder", "").strip()
    types = (kind,) if kind and is_pattern(kind) else ()
    number = max(1, number_in(query.get("page"), 1))

    def look(uow: UnitOfWork) -> dict[str, Any]:
        tenant = visit.token.tenant_id
        builder = uow.builders.by_name(tenant, name) if name else None
        if name and builder is None:
            return {"days": [], "total": 0, "names": {}, "is_unknown": True}
        asked = EventQuery(builder.id if builder else None, types=types)
        events, total = uow.events.page(tenant, asked, page=number, per_page=EVENTS_PER_PAGE)
        found = {one.builder_id for one in events if one.builder_id}
        names = {id_: one.name for id_ in found if (one := uow.builders.get(id_)) and one.desired != "deleted"}
        days = [(day, list(group)) for day, group in groupby(events, key=lambda one: one.time.date())]
        return {"days": days, "total": total, "names": names, "is_unknown": False}

    found = await visit.read(look)
    filters: dict[str, Any] = {"kinds": KINDS_OF_EVENTS, "kind": kind, "name": name}
    return await visit.page("activity.html", **found, **filters, page=number, per_page=EVENTS_PER_PAGE)


# Credentials: their values go in, and never come out


@page("/credentials")
async def show_credentials(visit: Visit) -> Response:
    """List the credentials, without their values."""
    return await _credentials(visit)


async def _credentials(
    visit: Visit, status: int = 200, *, errors: Mapping[str, Sequence[str]] | None = None, name: str = ""
) -> Response:
    found = await visit.read(lambda uow: credentials.list_all(uow, visit.token.tenant_id))
    return await visit.page("credentials.html", status, credentials=found, errors=errors or {}, name=name)


@page("/credentials", post=True, scope=Scope.WRITE)
async def change_credentials(visit: Visit) -> Response:
    """Store a credential, or delete one."""
    form, tenant, vault = await visit.form(), visit.token.tenant_id, visit.application.vault
    name = form.get("name", "").strip()
    if form.get("action") == "delete":
        await visit.write(lambda uow: credentials.delete(uow, tenant, name, force=False))
        return see_other("/credentials", done="credential-deleted")
    try:
        _check_name(name)
        new = deploying.shape_of(visit.application, NewCredential, {"values": _variables(form.get("values", ""))})
        values = {variable: secret.get_secret_value() for variable, secret in new.values.items()}
        await visit.write(lambda uow: credentials.put(uow, vault, tenant, name, values, visit.now))
    except ValidationFailed as error:
        return await _credentials(visit, 422, errors=error.errors, name=name)
    return see_other("/credentials", done="credential-saved")


def _check_name(name: str) -> None:
    if why := name_error(name):
        raise ValidationFailed({"name": [why]})


def _variables(text: str) -> dict[str, str]:
    """Return the variables of lines ``NAME=value``. Raises ``ValidationFailed`` without naming a value."""
    values = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValidationFailed({"values": [f"line {number} must be NAME=value"]})
        values[match[1]] = match[2].strip()
    return values


# Webhooks


@page("/webhooks")
async def show_webhooks(visit: Visit) -> Response:
    """List the webhooks and their last deliveries."""
    return await _webhooks(visit)


async def _webhooks(visit: Visit, status: int = 200, **values: Any) -> Response:
    def look(uow: UnitOfWork) -> Sequence[tuple[Webhook, Sequence[Delivery], int]]:
        tenant = visit.token.tenant_id
        return [
            (one, *webhooks.deliveries(uow, tenant, one.id, page=1, per_page=SHOWN_DELIVERIES))
            for one in uow.webhooks.list(tenant)
        ]

    found = await visit.read(look)
    return await visit.page(
        "webhooks.html", status, webhooks=found, **{"errors": {}, "secret": "", "url": "", **values}
    )


@page("/webhooks", post=True, scope=Scope.WRITE)
async def change_webhooks(visit: Visit) -> Response:
    """Create a webhook, or delete one."""
    form = await visit.form()
    if form.get("action") == "delete":
        await visit.write(lambda uow: webhooks.delete(uow, visit.caller, form.get("webhook", ""), visit.now))
        return see_other("/webhooks", done="webhook-deleted")
    url = form.get("url", "").strip()
    patterns = form.get("events", "*").replace(",", " ").split()
    try:
        asked = deploying.shape_of(visit.application, NewWebhook, {"url": url, "events": patterns or ["*"]})
        _, secret = await visit.write(
            lambda uow: webhooks.create(uow, visit.application, visit.caller, asked.url, asked.events, None, visit.now)
        )
    except ValidationFailed as error:
        return await _webhooks(visit, 422, errors=error.errors, url=url)
    return await _webhooks(visit, 201, secret=secret)


# API tokens


@page("/tokens")
async def show_tokens(visit: Visit) -> Response:
    """List the tokens that are valid, without their secrets."""
    return await _tokens(visit)


async def _tokens(visit: Visit, status: int = 200, **values: Any) -> Response:
    found = await visit.read(lambda uow: tokens.list_of(uow, visit.tenant))
    valid = sorted((one for one in found if one.is_valid(visit.now)), key=lambda one: one.created_at)[::-1]
    pending = visit.operations.token_calls.pending
    context = {
        "tokens": valid,
        "calls": {one.id: one.calls.add_all(pending(one.id)).of_day(visit.now) for one in valid},
        "is_admin": visit.allows(Scope.ADMIN),
        "scopes": SCOPES,
        "lifetimes": LIFETIMES,
        "kinds": KINDS,
        "errors": {},
        "asked": {"name": "", "scopes": [Scope.WRITE], "days": "30"},
        "secret": "",
        "revocation": None,
    }
    return await visit.page("tokens.html", status, **{**context, **values})


@page("/tokens", post=True, scope=Scope.ADMIN)
async def create_token(visit: Visit) -> Response:
    """Create a token with no more scopes and no later end than the session's token; show its secret this once."""
    form, now = await visit.form(), visit.now
    name, scopes, days = form.get("name", "").strip(), form.getlist("scope"), form.get("days", "")
    try:
        new = deploying.shape_of(visit.application, NewToken, {"name": name, "scopes": scopes})
        ends = _end(visit, days)
        token, secret = await visit.write(
            lambda uow: tokens.derive(uow, visit.token, new.name, now, scopes=new.scopes, expires_at=ends)
        )
    except ValidationFailed as error:
        # The field of `scopes.0` is `scopes`.
        errors = {field.partition(".")[0]: why for field, why in error.errors.items()}
        return await _tokens(visit, 422, errors=errors, asked={"name": name, "scopes": scopes, "days": days})
    return await _tokens(visit, 201, secret=secret, made=token.name)


def _end(visit: Visit, days: str) -> datetime | None:
    """Return when a token of this lifetime ends; None: with the session's token. Raises ``ValidationFailed``."""
    if days not in LIFETIMES:
        raise ValidationFailed({"days": ["must be one of the list"]})
    if not days:
        return None
    end, own = visit.now + timedelta(days=int(days)), visit.token.expires_at
    # "At most 30 days" is what is meant where the session's own token ends before.
    return end if own is None else min(end, own)


@page("/tokens/revoke", post=True, scope=Scope.ADMIN)
async def revoke_token(visit: Visit) -> Response:
    """Revoke a token, and so end its sessions and what it made, which is shown."""
    form, caller = await visit.form(), visit.caller
    done = await revocations.end(visit.application, caller.tenant_id, TokenId(form.get("token", "")), caller.actor)
    return await _tokens(visit, revocation=done)


#: Tenants that are listed, the first made first.
SHOWN_TENANTS = 200


@page("/machine", scope=Scope.OPERATOR)
async def show_machine(visit: Visit) -> Response:
    """Show health, capacity and tenants."""
    application = visit.application
    state = await readiness(application)

    def look(uow: UnitOfWork) -> dict[str, Any]:
        tenants = uow.tenants.all()
        return {
            "counts": sorted(uow.builders.count_by_status().items()),
            "allocated": uow.builders.allocated(),
            "tenants": [
                {"tenant": one, "allocation": uow.builders.allocated(one.id)} for one in tenants[:SHOWN_TENANTS]
            ],
            "total": len(tenants),
        }

    found = await visit.read(look)
    allocated, gauges, room = found.pop("allocated"), list[dict[str, Any]](), None
    if state.engine.ready:
        used = await application.engine.use()
        room = room_of(limit := application.tenant_limits.of_machine(used.capacity), used, allocated)
        sizes = (
            ("CPU", "vCPU", used.cpu, used.capacity.cpu, allocated.cpu, limit.cpu),
            ("Memory", "GB", used.memory, used.capacity.memory, allocated.memory, limit.memory),
            ("Disk", "GB", used.disk, used.disk_total, allocated.disk, limit.disk),
        )
        names = ("name", "unit", "used", "total", "promised", "limit")
        gauges = [{**dict(zip(names, one, strict=True)), "share": share(one[2], one[3])} for one in sizes]
    return await visit.page(
        "machine.html", **found, parts=vital_parts(state), gauges=gauges, room=room, version=__version__
    )


MONTH = re.compile(r"(20\d\d)-(0[1-9]|1[0-2])", re.ASCII)
#: Builders that are listed, the dearest first.
SHOWN = 200
#: Rows of the table for spreadsheets.
MOST_ROWS = 10_000


def _chosen(visit: Visit) -> datetime:
    match = MONTH.fullmatch(visit.request.query_params.get("month", ""))
    month = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC) if match else month_of(visit.now)
    return min(month, month_of(visit.now))


@page("/spending")
async def show_spending(visit: Visit) -> Response:
    """Show what each builder cost in a month."""
    return await _shown(visit, {})


async def _shown(visit: Visit, errors: dict[str, Sequence[str]], status: int = 200) -> Response:
    month = _chosen(visit)
    found = await visit.read(lambda uow: _month(uow, visit, month))
    return await visit.page(
        "spending.html",
        status,
        month=found,
        chart=bars([float(one.cost) for one in found["days"]], (next_month(month) - month).days),
        dearest_day=max(found["days"], key=lambda one: one.cost, default=None),
        warning=WARNING_SHARE,
        begin=month,
        before=month_of(month - timedelta(days=1)),
        after=next_month(month) if month < month_of(visit.now) else None,
        is_now=month == month_of(visit.now),
        errors=errors,
        is_admin=visit.allows(Scope.ADMIN),
    )


@page("/spending/csv")
async def download_spending(visit: Visit) -> Response:
    """Return a month's costs of the dearest builders as a table for spreadsheets."""
    month = _chosen(visit)
    tenant, application = visit.token.tenant_id, visit.application
    async with visit.operations.lists.one(tenant):
        report = await visit.read(lambda uow: spending.dearest(uow, application, tenant, visit.now, month, MOST_ROWS))
        text = await asyncio.to_thread(_table, report)
    headers = {"Content-Disposition": f'attachment; filename="spending-{month:%Y-%m}.csv"'}
    return Response(text, 200, headers, "text/csv")


def _table(report: spending.Spending) -> str:
    rows = (
        (one.id, one.name, one.desired is Desired.DELETED, cost.runtime_hours, cost.hourly_rate, cost.cost)
        for one, cost in report.deployments
    )
    return csv_text([("uuid", "name", "deleted", "hours", "per_hour", f"cost_{report.currency}"), *rows])


def _month(uow: UnitOfWork, visit: Visit, month: datetime) -> dict[str, Any]:
    """Return a month's costs, and what the open segments cost an hour by billing state."""
    tenant, application = visit.token.tenant_id, visit.application
    report = spending.dearest(uow, application, tenant, visit.now, month, SHOWN)
    spent = [one for one in report.deployments if one[1].cost]
    most = spent[0][1].cost if spent else Decimal(1)
    rows = [
        {"builder": builder, "cost": cost, "share": share(float(cost.cost), float(most))} for builder, cost in spent
    ]
    rates = uow.ledger.rates_of_tenant(tenant)
    now = [(billing.value, *rates[billing]) for billing in Billing if billing in rates]
    cap = caps.view_of_tenant(uow, application, tenant, visit.now)
    days = spending.by_day(uow, application, tenant, visit.now, (month, next_month(month)))
    hourly = sum((rate for _, rate in rates.values()), Decimal(0))
    return {
        "rows": rows,
        "total": report.total_cost,
        "cap": cap,
        "now": now,
        "more": max(0, report.total - SHOWN),
        "days": days.days,
        "expected": Spent(cap.spent, hourly).forecast(visit.now),
    }


@page("/spending", post=True, scope=Scope.ADMIN)
async def set_cap(visit: Visit) -> Response:
    """Set the tenant's cap."""
    form = await visit.form()
    try:
        monthly = amount(visit, form.get("monthly", "").strip())
        tenant, application = visit.token.tenant_id, visit.application
        await visit.write(lambda uow: caps.set_for_tenant(uow, application, tenant, monthly, visit.now))
    except ValidationFailed as error:
        return await _shown(visit, dict(error.errors), 422)
    return see_other("/spending", done="saved")
