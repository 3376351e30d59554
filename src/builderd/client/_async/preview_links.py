"""Links to a private preview."""

from __future__ import annotations

from builderd.client._async.pages import AsyncPages, reader
from builderd.client._async.transport import AsyncTransport
from builderd.client.models import NewPreviewLink, PreviewLink
from builderd.client.paths import api_path


class AsyncPreviewLinks:
    """Links that open a private preview, or one of its ports, without the service token."""

    def __init__(self, transport: AsyncTransport, builder: str) -> None:
        self._transport = transport
        self._builder = builder
        self._path = api_path("builders", builder, "preview-links")

    async def create(self, *, expires_minutes: int = 60, port: int | None = None) -> NewPreviewLink:
        """Make a link; its URL is shown once."""
        body = {"expires_minutes": expires_minutes, "port": port}
        return await self._transport.read(NewPreviewLink, "POST", self._path, json=body)

    def list(self) -> AsyncPages[PreviewLink]:
        """List the valid links."""
        return AsyncPages(self._transport, self._path, reader(PreviewLink))

    async def revoke(self, link: str) -> None:
        """End a link at once."""
        await self._transport.request("DELETE", api_path("builders", self._builder, "preview-links", link))
