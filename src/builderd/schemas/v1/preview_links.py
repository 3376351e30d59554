"""Preview links, and the URLs of other ports."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.preview_links import DEFAULT_MINUTES, MAX_MINUTES, MIN_MINUTES
from builderd.schemas.v1.envelope import Page, Success, Time
from builderd.schemas.v1.shape import JsonInt, Shape, View


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
