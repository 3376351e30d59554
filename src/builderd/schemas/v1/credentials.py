"""Credentials: a tenant's named secrets, whose values are write-only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr

from builderd.domain.credentials import MAX_BYTES, MAX_VARIABLES
from builderd.domain.versions import ENV_NAME, env_error
from builderd.schemas.v1.shape import FieldError, Page, Shape, Success, Time, View, with_field_errors


def _values(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return with_field_errors(_errors(value), lambda: value)


def _errors(values: dict[str, Any]) -> Iterator[FieldError]:
    for name, content in values.items():
        why = env_error(name, content) if isinstance(content, str) else "must be text"
        if why is not None:
            yield (name,), why
    size = sum(len(name) + len(str(content).encode(errors="surrogatepass")) for name, content in values.items())
    if size > MAX_BYTES:
        yield (), f"must be at most {MAX_BYTES} bytes long in all"


Values = Annotated[
    dict[str, SecretStr],
    BeforeValidator(_values),
    Field(
        min_length=1,
        max_length=MAX_VARIABLES,
        json_schema_extra={"propertyNames": {"pattern": f"^{ENV_NAME.pattern}$"}},
    ),
]


class NewCredential(Shape):
    """Values of a credential, which replace all previous ones."""

    values: Values = Field(description="Environment variables of the builders that ask for this credential.")


class CredentialUse(View):
    """Builder that uses a credential. ``needs_restart``: it runs with old values.

    ``not_restarted`` is the reason of a failed restart, else absent.
    """

    uuid: str
    name: str
    needs_restart: bool
    not_restarted: str | None = Field(default=None, exclude_if=lambda value: value is None)


class Credential(View):
    """Credential without its values. ``variables`` are their names.

    ``last_used_by`` is the uuid of the builder that last started with it.
    """

    name: str
    variables: list[str]
    created_at: Time
    updated_at: Time
    last_used_at: Time | None
    last_used_by: str | None
    used_by: list[CredentialUse]


class CredentialAnswer(Success[Credential]):
    """One credential."""


class CredentialPage(Page[Credential]):
    """All credentials, by name."""
