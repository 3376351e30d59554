"""Tools for what belongs to no single deployment: uploads, credentials, spending."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from mcp_types import CallToolResult
from pydantic import Field

from builderd.client import models
from builderd.client.errors import NotFound
from builderd.mcp.calls import Call
from builderd.mcp.results import (
    Credential,
    CredentialList,
    Failure,
    Spending,
    UploadLink,
    credential_of,
    failed,
    result,
)


async def create_upload_link(
    call: Call,
    size: Annotated[int, Field(ge=1, description="Of the archive, in bytes.")] | None = None,
    sha256: str | None = None,
) -> Annotated[CallToolResult, UploadLink]:
    """Make a URL that takes one archive (zip, tar, tar.gz, tar.zst) of code too large for files.

    Give its upload_id to deploy_code or redeploy once the archive is sent.
    """
    place = await call.client.uploads.create(size=size, sha256=sha256)
    command = f"tar czf - --exclude=.git --exclude=node_modules --exclude=.venv . | curl -fsS -T - '{place.upload_url}'"
    shown = UploadLink.of(place, expires_at=place.expires_at.isoformat(), command=command)
    return result(f"Send the folder with: {command}\nThen deploy with upload_id={place.upload_id}.", shown)


async def store_credentials(
    call: Call,
    name: Annotated[str, Field(description="Name by which deployments ask for it.")],
    values: Annotated[
        dict[str, str], Field(description="Variables and their secret values; replaces all earlier ones.")
    ],
    restart: Annotated[bool, Field(description="Restart the deployments that use it.")] = False,
    confirm: Annotated[str, Field(description="The same name, to replace a credential that exists.")] = "",
) -> Annotated[CallToolResult, Credential]:
    """Store secrets, sealed. No tool shows them again; a deployment with this name in credentials gets them.

    The values of one that exists are lost for good: without confirm it only says what it would do.
    """
    if confirm != name:
        with suppress(NotFound):
            return failed(_unconfirmed(await call.client.credentials.get(name)))
    stored = await call.client.credentials.put(name, values, restart=restart)
    return result(f"{name} is stored with {', '.join(stored.variables)}.", credential_of(stored))


def _unconfirmed(existing: models.Credential) -> Failure:
    users = ", ".join(use.name for use in existing.used_by) or "No deployment"
    return Failure(
        code="confirmation_needed",
        message=f"Nothing was stored. {users} has {existing.name} with {', '.join(existing.variables)}: this would "
        "replace all its values, and nobody can read the earlier ones again.",
        next_step="Ask the user, or choose another name. If the user agrees, call store_credentials again with "
        f"confirm={existing.name!r}.",
    )


async def list_credentials(call: Call) -> Annotated[CallToolResult, CredentialList]:
    """List the stored credentials: names, variables, and who uses them; never the values."""
    shown = CredentialList(credentials=[credential_of(one) async for one in call.client.credentials.list()])
    lines = [f"{one.name}: {', '.join(one.variables)}" for one in shown.credentials]
    return result("\n".join(lines) or "There are no credentials.", shown)


async def get_spending(call: Call) -> Annotated[CallToolResult, Spending]:
    """Show what all deployments have cost, each of the oldest 100, and the spending cap of this month."""
    spending, cap = await call.client.spending.page(), await call.client.spending.cap()
    of_month = {"spent_this_month": cap.spent, "monthly_cap": cap.applies, "resets_at": cap.resets_at.isoformat()}
    shown = Spending.of(spending, **of_month)
    limit = f"of at most {cap.applies:.2f}" if cap.applies is not None else "without a cap"
    text = f"{spending.total_cost:.2f} {spending.currency} in all; {cap.spent:.2f} this month, {limit}."
    return result(text, shown)
