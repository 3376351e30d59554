"""Static files: kept in memory, gzipped once, and served under a path with their hash for a year."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from builderd.domain.errors import NotFound

HERE = Path(__file__).parent
PATH = "/static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
#: What is compressed already.
PACKED = frozenset({".woff2"})
#: In a style sheet: the address of another static file.
_REFERENCE = re.compile(r'url\("asset:([\w.-]+)"\)')


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file: its content, gzipped content where that is smaller, media type, and URL with its hash."""

    content: bytes
    packed: bytes | None
    media_type: str
    url: str


class Assets:
    """All static files by name. A style sheet that refers to another file gets that file's URL."""

    def __init__(self) -> None:
        self._assets: dict[str, Asset] = {}
        # Style sheets last: their content has the hashes of the other files in it.
        files = [path for folder in ("static", "vendor") for path in (HERE / folder).rglob("*") if path.suffix in TYPES]
        for path in sorted(files, key=lambda path: (path.suffix == ".css", path.name)):
            self._assets[path.name] = _asset(path, self._assets)

    def url(self, name: str) -> str:
        """Return the URL of the file with this name."""
        return self._assets[name].url

    async def answer(self, request: Request) -> Response:
        """Return the file. Raises ``NotFound``, also for another hash: what a cache keeps must never change."""
        asset = self._assets.get(request.path_params["name"])
        if asset is None or asset.url != request.url.path:
            raise NotFound("There is no such file.")
        headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
        if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.packed, 200, {**headers, "Content-Encoding": "gzip"}, asset.media_type)
        return Response(asset.content, 200, headers, asset.media_type)


def _asset(path: Path, known: Mapping[str, Asset]) -> Asset:
    content = path.read_bytes()
    if path.suffix == ".css":
        text = _REFERENCE.sub(lambda match: f'url("{known[match[1]].url}")', content.decode())
        content = text.encode()
    packed = None if path.suffix in PACKED else gzip.compress(content, 9, mtime=0)
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content, packed, TYPES[path.suffix], f"{PATH}/{digest}/{path.name}")
