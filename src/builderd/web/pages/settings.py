"""Settings of a builder: each group a form of its own; and what destroys, behind a typed name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from starlette.responses import Response

from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.addresses import a_labels, shown
from builderd.core.errors import BadRequest, ValidationFailed
from builderd.database.unit_of_work import UnitOfWork
from builderd.domains import service as domains
from builderd.money import caps
from builderd.money.model import Billing
from builderd.previews import service as preview_links
from builderd.schemas.account import NewSpendingCap
from builderd.schemas.builder_parts import NewDomain, NewPreviewLink
from builderd.schemas.versions import NewSettings, given_fields
from builderd.tokens.model import Scope
from builderd.versions import service as deployments
from builderd.versions.service import Change
from builderd.web.pages import deploying
from builderd.web.pages.builder import BuilderFrame, builder_page, read_frame
from builderd.web.pages.deploying import number
from builderd.web.visits import Form, Visit, page, see_other


@page("/builders/{name}/settings")
async def show_settings(visit: Visit) -> Response:
    """Show all settings."""
    return await _shown(visit, {})


async def _shown(visit: Visit, errors: Mapping[str, Sequence[str]], status: int = 200, made_link: str = "") -> Response:
    def look(uow: UnitOfWork, frame: BuilderFrame) -> dict[str, Any]:
        return {
            "credentials": uow.credentials.list(visit.token.tenant_id),
            "cap": caps.view_of_builder(uow, visit.application, frame.builder, visit.now),
            "domains": [
                (one, shown(one.host), visit.application.domain_rules.url(one))
                for one in uow.domains.of_builder(frame.builder.id)
            ],
            "links": preview_links.valid_of(uow, visit.caller, frame.builder.id, visit.now),
        }

    frame, found = await read_frame(visit, look)
    resources, prices = frame.version.settings.resources, visit.application.prices
    rates = {billing.value: prices.hourly_rate(resources, billing) for billing in Billing}
    return await builder_page(
        visit,
        "settings.html",
        "settings",
        frame,
        status,
        settings=frame.version.settings,
        **found,
        made_link=made_link,
        errors=errors,
        maximum=visit.application.limits.maximum,
        freeze_after=visit.application.limits.freeze_after,
        rates=rates,
        is_admin=visit.allows(Scope.ADMIN),
    )


@page("/builders/{name}/settings", post=True, scope=Scope.WRITE)
async def change(visit: Visit) -> Response:
    """Save one group of settings."""
    application = visit.application
    form, builder = await visit.form(), await visit.find()
    group, back = form.get("group", ""), f"/builders/{builder.name}"
    try:
        if group == "cap":
            await _set_cap(visit, builder, form.get("monthly", "").strip())
            return see_other(f"{back}/settings", done="saved")
        if group == "domains":
            await _change_domain(visit, builder, form.get("do", "add"), form.get("host", "").strip())
            return see_other(f"{back}/settings", done="saved")
        if group == "links":
            return await _change_links(visit, builder, form)
        # At once where the app need not know of them, else by a new version of the same code.
        new = deploying.shape_of(application, NewSettings, _values(form, group))
        deployed = await visit.operations.change(
            builder.id,
            lambda uow: deployments.configure(
                uow, application, visit.caller, builder.id, Change.of(given_fields(new)), visit.now
            ),
            None,
        )
    except ValidationFailed as error:
        return await _shown(visit, {name.removeprefix("resources."): why for name, why in error.errors.items()}, 422)
    if deployed.version is not None and deployed.builder.candidate_version == deployed.version:
        return see_other(f"{back}/versions/{deployed.version}")
    return see_other(f"{back}/settings", done="saved")


def _values(form: Form, group: str) -> Mapping[str, Any]:
    """Return the group's fields as the API takes them. Raises ``BadRequest`` for a group that is none."""
    match group:
        case "resources":
            return {"resources": {name: number(form.get(name, "")) for name in ("cpu", "memory", "disk")}}
        case "sleep":
            minutes = number(form.get("minutes", "15")) if form.get("sleeps", "") == "yes" else 0
            return {"auto_stop_interval": minutes}
        case "backups":
            return {"backup_interval_hours": number(form.get("hours", "0"))}
        case "visitors":
            return {"visibility": form.get("visibility", "")}
        case "environment":
            names, values = form.getlist("env-name"), form.getlist("env-value")
            return {"env": {name.strip(): value for name, value in zip(names, values, strict=False) if name.strip()}}
        case "release":
            return {"release": form.get("release", "").strip()}
        case "credentials":
            return {"credentials": form.getlist("credential")}
    raise BadRequest(f"There is no group of settings named {group!r}.")


async def _change_links(visit: Visit, builder: Builder, form: Form) -> Response:
    """Make or revoke a link; the page of a new one shows its URL, once. Raises ``ValidationFailed``."""
    if form.get("do", "make") == "revoke":
        await preview_links.revoke(visit.application, visit.caller, builder.id, form.get("link", ""))
        return see_other(f"/builders/{builder.name}/settings", done="saved")
    asked = {"expires_minutes": number(form.get("expires_minutes", "60"))}
    if form.get("link_port", "").strip():
        asked["port"] = number(form.get("link_port", ""))
    new = deploying.shape_of(visit.application, NewPreviewLink, asked)
    made = await preview_links.create(visit.application, visit.caller, builder.id, new.expires_minutes, new.port)
    return await _shown(visit, {}, made_link=made.url)


async def _set_cap(visit: Visit, builder: Builder, text: str) -> None:
    visit.require(Scope.ADMIN)
    monthly = amount(visit, text)

    def work(uow: UnitOfWork) -> None:
        locked = builders.get(uow, visit.token.tenant_id, builder.id, lock=True)
        caps.set_for_builder(uow, visit.application, locked, monthly, visit.now)

    await visit.write(work)
    visit.application.signals.change(builder.id)


async def _change_domain(visit: Visit, builder: Builder, do: str, host: str) -> None:
    """Add, check or remove a domain. Raises ``ValidationFailed`` and ``BadRequest``."""
    application, caller, now = visit.application, visit.caller, visit.now
    match do:
        case "add":
            name = a_labels(deploying.shape_of(application, NewDomain, {"host": host}).host)
            await visit.write(lambda uow: domains.add(uow, application, caller, builder.id, name, now))
        case "check":
            await visit.write(lambda uow: domains.ask_again(uow, caller, builder.id, host, now))
        case "remove":
            await visit.write(lambda uow: domains.remove(uow, caller, builder.id, host, now))
        case _:
            raise BadRequest(f"Nothing named {do!r} can be done to a domain.")
    application.signals.change(builder.id)


def amount(visit: Visit, text: str) -> Decimal | None:
    """Return an amount of money, None for an empty text. Raises ``ValidationFailed``."""
    asked = {"monthly": number(text) if text.strip() else None}
    monthly = deploying.shape_of(visit.application, NewSpendingCap, asked).monthly
    # From the number's text: a binary 0.1 is not a tenth.
    return None if monthly is None else Decimal(str(monthly))


@page("/builders/{name}/service-token", post=True, scope=Scope.WRITE)
async def renew_token(visit: Visit) -> Response:
    """Make a new service token."""
    builder, application = await visit.find(), visit.application

    def renew(uow: UnitOfWork) -> Builder:
        return deployments.renew_service_token(uow, application, visit.caller, builder.id, visit.now)

    await outcomes.after_take_over(application, builder.id, lambda: application.commit(renew))
    return see_other(f"/builders/{builder.name}/settings", done="renewed")
