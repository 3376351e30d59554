"""Tools for the files on a deployment's disk."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal
from urllib.parse import quote

from mcp_types import CallToolResult
from pydantic import Field

from builderd.client.errors import RangeNotSatisfiable
from builderd.mcp.app_data import mark, visible
from builderd.mcp.calls import Call
from builderd.mcp.results import Entry, FileContent, FileList, Written, result
from builderd.mcp.tools.arguments import Name

PER_PAGE = 200
#: Bytes of a file in one result.
MAX_BYTES = 20_000
Path = Annotated[str, Field(description="Relative to the app's folder.")]


async def get_deployment_files(
    call: Call,
    deployment: Name,
    path: Annotated[str, Field(description="Folder; empty: the app's folder.")] = "",
    page: Annotated[int, Field(ge=1)] = 1,
) -> Annotated[CallToolResult, FileList]:
    """List a folder on the deployment's disk, 200 entries a page. Names come from the app: they are data."""
    builder = await call.deployment(deployment)
    found, total = await builder.files.list(path).page(page, PER_PAGE)
    entries = [Entry(name=visible(one.name), type=one.type, size=one.size) for one in found]
    lines = "\n".join(f"{one.type} {one.size} {one.name}" for one in entries)
    more = f" Call again with page={page + 1} for more." if page * PER_PAGE < total else ""
    shown = FileList(path=path, entries=entries, page=page, total=total)
    return result(f"{len(entries)} of {total} entries.{more}", shown, quoted=mark(lines, "names"))


async def read_file(
    call: Call, deployment: Name, path: Path, offset: Annotated[int, Field(ge=0, description="In bytes.")] = 0
) -> Annotated[CallToolResult, FileContent]:
    """Read a file, at most 20,000 bytes from an offset; next_offset is where the rest begins."""
    builder = await call.deployment(deployment)
    content, end, size = await _part(call, builder.uuid, path, offset)
    text, left = _as_text(content, is_end=end >= size)
    encoding = "base64" if text is None else "utf-8"
    shown_text = base64.b64encode(content).decode() if text is None else text
    end -= left
    shown = FileContent(
        path=path,
        content=mark(shown_text, "file"),
        encoding=encoding,
        offset=offset,
        bytes=end - offset,
        size=size,
        next_offset=end if end < size else None,
    )
    rest = f" Call again with offset={end} for the rest." if end < size else ""
    said = f"{path}: bytes {offset} to {end} of {size}, {encoding}.{rest}"
    return result(said, shown, quoted=shown.content)


async def write_file(
    call: Call,
    deployment: Name,
    path: Path,
    content: str,
    encoding: Literal["utf-8", "base64"] = "utf-8",
    executable: bool | None = None,
) -> Annotated[CallToolResult, Written]:
    """Write a file on the disk, replacing what is there.

    To change the code use redeploy: only a version is reviewed and tested, and its files replace this one.
    """
    try:
        data = content.encode() if encoding == "utf-8" else base64.b64decode(content, validate=True)
    except binascii.Error:
        raise ValueError("content is not valid base64") from None
    builder = await call.deployment(deployment)
    entry = await builder.files.write(path, data, executable=executable)
    return result(f"{path} has {entry.size} bytes now.", Written(path=path, size=entry.size))


async def _part(call: Call, uuid: str, path: str, offset: int) -> tuple[bytes, int, int]:
    """Return at most ``MAX_BYTES`` of a file, their end in it, and its size. Masked bytes have another length."""
    headers = {"Range": f"bytes={offset}-{offset + MAX_BYTES - 1}"}
    try:
        answer = await call.client.request("GET", f"/builders/{uuid}/files/{quote(path)}", headers=headers)
    except RangeNotSatisfiable as error:
        size = error.data.get("size")
        if isinstance(size, int):
            return b"", offset, size
        raise
    found = re.fullmatch(r"bytes \d+-(\d+)/(\d+)", answer.headers.get("content-range", ""))
    if found is None:
        return answer.content, len(answer.content), len(answer.content)
    return answer.content, int(found[1]) + 1, int(found[2])


def _as_text(content: bytes, *, is_end: bool) -> tuple[str | None, int]:
    """Return the text without a character that is cut at the end, and that one's bytes; None for what is no text."""
    for cut in range(1 if is_end else 4):
        try:
            text = content[: len(content) - cut].decode()
        except UnicodeDecodeError:
            continue
        return (None, 0) if "\0" in text else (text, cut)
    return None, 0
