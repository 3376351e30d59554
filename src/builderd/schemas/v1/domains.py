"""Addresses of a builder: custom domains, preview links, and the URLs of other ports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.addresses import MAX_HOST, a_labels
from builderd.domain.previews import DEFAULT_MINUTES, MAX_MINUTES, MIN_MINUTES
from builderd.schemas.v1.shape import JsonInt, Page, Shape, Success, Time, View, checked_by


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


class NewPreviewLink(Shape):
    """New link to a preview."""

    expires_minutes: JsonInt = Field(default=DEFAULT_MINUTES, ge=MIN_MINUTES, le=MAX_MINUTES)
    port: JsonInt | None = Field(default=None, ge=1, le=65535, description="Left out: the builder's own port.")


class PreviewLink(View):
    """Valid link to a preview. Its URL is shown when it is made, and not again."""

    id: str
    port: int | None
    created_by: str
    created_at: Time
    expires_at: Time


class PreviewLinkWithUrl(PreviewLink):
    """New link. ``url`` opens the preview without another token."""

    url: str


class PreviewLinkAnswer(Success[PreviewLinkWithUrl]):
    """The new link."""


class PreviewLinkPage(Page[PreviewLink]):
    """Page of valid links, oldest first."""


class PortPreview(View):
    """URL of one port of a sandbox. It wants the service token, or a link."""

    port: int
    url: str


class PortPreviewAnswer(Success[PortPreview]):
    """The port's URL."""
