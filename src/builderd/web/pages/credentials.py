"""Credentials of a tenant: their values go in, and never come out."""

from __future__ import annotations

import re

from starlette.responses import Response

from builderd.domain.credentials import name_error
from builderd.domain.errors import ValidationFailed
from builderd.domain.tokens import Scope
from builderd.schemas.v1.credentials import NewCredential
from builderd.services import credentials
from builderd.web import commands
from builderd.web.visits import Visit, page, see_other

_LINE = re.compile(r"\s*(?:export\s+)?([^=\s#]+)\s*=(.*)")


async def show_credentials(visit: Visit) -> Response:
    """List the credentials, without their values."""
    found = await visit.read(lambda uow: credentials.list_all(uow, visit.token.tenant_id))
    return await visit.page("credentials.html", credentials=found, errors={}, name="")


async def change(visit: Visit) -> Response:
    """Store a credential, or delete one."""
    form, tenant, vault = await visit.form(), visit.token.tenant_id, visit.application.vault
    name = form.text("name").strip()
    if form.text("action") == "delete":
        await visit.write(lambda uow: credentials.delete(uow, tenant, name, force=False))
        return see_other("/credentials", {"done": "credential-deleted"})
    try:
        _check_name(name)
        new = commands.shape_of(visit.application, NewCredential, {"values": _parsed(form.text("values"))})
        values = {variable: secret.get_secret_value() for variable, secret in new.values.items()}
        await visit.write(lambda uow: credentials.put(uow, vault, tenant, name, values, visit.now))
    except ValidationFailed as error:
        found = await visit.read(lambda uow: credentials.list_all(uow, tenant))
        return await visit.page("credentials.html", 422, credentials=found, errors=error.errors, name=name)
    return see_other("/credentials", {"done": "credential-saved"})


def _check_name(name: str) -> None:
    if why := name_error(name):
        raise ValidationFailed({"name": [why]})


def _parsed(text: str) -> dict[str, str]:
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


ROUTES = [page("/credentials", show_credentials), page("/credentials", change, post=True, scope=Scope.WRITE)]
