"""Custom domains of a builder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.host_names import MAX_HOST, a_labels
from builderd.schemas.v1.envelope import Page, Success, Time
from builderd.schemas.v1.shape import Shape, View, checked_by


def _host_error(host: str) -> str | None:
    try:
        a_labels(host)
    except ValueError as error:
        return str(error)
    return None


Host = Annotated[str, checked_by(_host_error), Field(json_schema_extra={"maxLength": 4 * MAX_HOST, "minLength": 1})]


class NewDomain(Shape):
    """Host name of your own, such as `shop.example.com` or `bücher.example`. Wildcards are refused."""

    host: Host


class TxtRecord(View):
    """TXT record that gets you a name that another tenant holds, or held within 90 days, or one above or below it."""

    name: str
    value: str


class Domain(View):
    """Custom domain. ``host`` is in A-labels (`xn--…`), ``name`` the same for people.

    ``reason`` says what is wrong, and ``next_try_at`` when it is looked at again. ``expires_at`` is the end of its
    certificate.
    """

    host: str
    name: str
    status: str
    reason: str
    next_try_at: Time | None
    expires_at: Time | None
    url: str
    created_at: Time
    txt: TxtRecord


class DomainAnswer(Success[Domain]):
    """One domain."""


class DomainPage(Page[Domain]):
    """Domains of a builder, by host."""
