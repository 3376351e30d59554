"""Tools for the files on a deployment's disk."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from mcp_types import CallToolResult
from pydantic import AfterValidator, Field

from builderd.client._async.builder import AsyncBuilder
from builderd.client.errors import NotFound, RangeNotSatisfiable
from builderd.client.options import api_path
from builderd.code.model import path_error
from builderd.credentials.model import MASK
from builderd.mcp.calls import Call
from builderd.mcp.results import Entry, Failure, FileContent, FileList, Written, failed, mark, result, visible
from builderd.mcp.tools.arguments import Name

PER_PAGE = 200
#: Bytes of a file in one result.
MAX_BYTES = 20_000


def _relative(path: str) -> str:
    """Return a path of a file within the app's folder. Raises ``ValueError`` for others."""
    if why := path_error(path):
        raise ValueError(f"{path!r} {why}")
    return path


Path = Annotated[str, AfterValidator(_relative), Field(description="Relative to the app's folder.")]


async def get_deployment_files(
    call: Call,
    deployment: Name,
    path: Annotated[str, Field(description="Folder; empty: the app's folder.")] = "",
    page: Annotated[int, Field(ge=1)] = 1,
) -> Annotated[CallToolResult, FileList]:
    """List a folder on the deployment's disk, 200 entries a page. Names come from the app: they are data."""
    builder = await call.deployment(deployment)
    found, total = await builder.files.list(path).page(page, PER_PAGE)
    entries = [Entry.of(one, name=visible(one.name)) for one in found]
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
    confirm: Annotated[
        str, Field(description="The deployment's name, to replace a file that the result could not bring back.")
    ] = "",
) -> Annotated[CallToolResult, Written]:
    """Write a file on the disk. What it replaces is returned, so that it can be written back.

    A file that is too long for that is replaced only with confirm. To change the code use redeploy: only a version is
    reviewed and tested, and its files replace this one.
    """
    try:
        data = content.encode() if encoding == "utf-8" else base64.b64decode(content, validate=True)
    except binascii.Error:
        raise ValueError("content is not valid base64") from None
    builder = await call.deployment(deployment)
    replaced = await _replaced(call, builder.uuid, path)
    if replaced is not None and not replaced.is_whole and confirm != builder.name:
        return failed(_unconfirmed(builder, path, replaced))
    entry = await builder.files.write(path, data, executable=executable)
    old = {}
    if replaced is not None and replaced.is_whole:
        old = {"replaced": mark(replaced.text, "file"), "replaced_encoding": replaced.encoding}
    shown = Written(path=path, size=entry.size, **old)
    return result(f"{path} has {entry.size} bytes now.", shown, quoted=shown.replaced or "")


@dataclass(frozen=True, slots=True)
class _Replaced:
    """File that is about to be replaced. ``text`` is the whole of it, as far as ``is_whole`` says so."""

    text: str
    encoding: str
    size: int
    is_whole: bool


async def _replaced(call: Call, uuid: str, path: str) -> _Replaced | None:
    """Return the file at a path; None where there is none yet."""
    try:
        content, end, size = await _part(call, uuid, path, 0)
    except NotFound:
        return None
    text, _ = _as_text(content, is_end=True)
    # A value that was masked cannot be written back.
    is_whole = end >= size and MASK.encode() not in content
    if text is None:
        return _Replaced(base64.b64encode(content).decode(), "base64", size, is_whole)
    # Nor can characters that a result does not show.
    return _Replaced(text, "utf-8", size, is_whole and visible(text) == text)


def _unconfirmed(builder: AsyncBuilder, path: str, replaced: _Replaced) -> Failure:
    return Failure(
        code="confirmation_needed",
        message=f"Nothing was written. This would replace {visible(path)} of {builder.name}, {replaced.size} bytes, "
        "which the result could not bring back.",
        next_step="Keep a copy first (exec_command with cp), or ask the user. Then call write_file again with "
        f"confirm={builder.name!r}.",
        deployment=builder.uuid,
    )


async def _part(call: Call, uuid: str, path: str, offset: int) -> tuple[bytes, int, int]:
    """Return at most ``MAX_BYTES`` of a file, their end in it, and its size. Masked bytes have another length."""
    headers = {"Range": f"bytes={offset}-{offset + MAX_BYTES - 1}"}
    source = api_path("builders", uuid, "files", *path.split("/"))
    try:
        answer = await call.client._transport.request("GET", source, headers=headers)
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
