"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from builderd.client._sync.pages import Pages, reader
from builderd.client._sync.transport import Transport
from builderd.client.models import NewPreviewLink, PreviewLink


class PreviewLinks:
    """Links that open a private preview, or one of its ports, without the service token."""

    def __init__(self, transport: Transport, builder: str) -> None:
        self._transport = transport
        self._path = f"/builders/{builder}/preview-links"

    def create(self, *, expires_minutes: int = 60, port: int | None = None) -> NewPreviewLink:
        """Make a link; its URL is shown once."""
        body = {"expires_minutes": expires_minutes, "port": port}
        return self._transport.read(NewPreviewLink, "POST", self._path, json=body)

    def list(self) -> Pages[PreviewLink]:
        """List the valid links."""
        return Pages(self._transport, self._path, reader(PreviewLink))

    def revoke(self, link: str) -> None:
        """End a link at once."""
        self._transport.request("DELETE", f"{self._path}/{link}")
