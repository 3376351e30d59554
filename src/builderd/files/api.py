"""The files of a builder: listed, read, written and deleted one by one, or taken all together."""

from __future__ import annotations

import re
import stat
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field
from starlette.datastructures import Headers

from builderd.builders.api import Uuid
from builderd.core.errors import BadRequest, BuilderdError
from builderd.files import model as domain
from builderd.files import service as files
from builderd.files.model import Condition
from builderd.schemas.files import FileAnswer, FileEntry, FilePage
from builderd.schemas.shape import PageMeta, Parameters
from builderd.server import openapi
from builderd.server.answers import PREFIX, failure, success
from builderd.server.auth import Reader, TheApplication, TheOperations, Writer
from builderd.server.bodies import announced_length, pieces
from builderd.server.pages import Listing, listed, page_of
from builderd.server.streams import ResourceStream, attachment, readable
from builderd.tokens.limits import releasing

router = APIRouter(prefix=PREFIX, tags=[openapi.FILES])

BINARY = "application/octet-stream"
ARCHIVE = "application/zstd"
MAX_PER_PAGE = 1_000
#: Entries are put in order up to here: what lies further on is found in a folder of its own.
MAX_PAGE = 100
#: Seconds that a file may take to arrive.
UPLOAD_SECONDS = 3600.0

FilePath = Annotated[str, Path(description="The file, relative to `/app`.", json_schema_extra={"minLength": 1})]
TAGGED = {"ETag": {"description": "Names this content.", "schema": {"type": "string"}}}
IF_MATCH: openapi.Parameter = {
    "name": "If-Match",
    "in": "header",
    "description": "Only if the file still has one of these tags (`*`: only if it is there); else 412.",
    "schema": {"type": "string"},
}
IF_NONE_MATCH: openapi.Parameter = {
    "name": "If-None-Match",
    "in": "header",
    "description": "`*`: only if there is no such file; else 412. On reading: 304 for a tag that is known.",
    "schema": {"type": "string"},
}
RANGE: openapi.Parameter = {
    "name": "Range",
    "in": "header",
    "description": "`bytes=0-99`, `bytes=100-` or `bytes=-100`: this part alone, with 206.",
    "schema": {"type": "string"},
}
BYTES = {BINARY: {"schema": {"type": "string", "format": "binary"}}}


class ListQuery(Parameters):
    """A folder, and the page of its entries."""

    path: str = Field(default="", description="The folder, relative to `/app`; left out: `/app` itself.")
    page: int = Field(default=1, ge=1, le=MAX_PAGE)
    per_page: int = Field(default=100, ge=1, le=MAX_PER_PAGE)


class WriteQuery(Parameters):
    """Options of writing a file."""

    executable: bool | None = Field(
        default=None, description="Left out: as the file that is replaced; a new one is not."
    )


class DeleteQuery(Parameters):
    """Options of deleting a file or folder."""

    recursive: bool = Field(default=False, description="Delete a folder with all that is in it.")


@router.get("/builders/{uuid}/files", responses=openapi.answers(200, FilePage, "A page of them.", 404, 409, 422))
async def list_files(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: Annotated[ListQuery, Query()]
) -> Response:
    """List a folder of the builder's `/app` as it is now, by name, whether or not the builder runs."""
    skip = (query.page - 1) * query.per_page
    tenant_id = identity.token.tenant_id

    async def listing() -> Listing:
        path = query.path.strip("/")
        page = await files.list_page(application, tenant_id, uuid.lower(), path, skip, query.per_page)
        meta = PageMeta(page=query.page, per_page=query.per_page, total=page.total)
        return page_of(f"{len(page.entries)} of {page.total} entries.", meta, map(_present, page.entries))

    return await listed(request, tenant_id, listing)


@router.get(
    "/builders/{uuid}/files/{path:path}",
    responses={
        200: {"description": "The file.", "content": BYTES, "headers": TAGGED},
        206: {"description": "The part that was asked for.", "content": BYTES, "headers": TAGGED},
        304: {"description": "It is the one that the caller knows."},
        **openapi.failures(400, 401, 403, 404, 409, 416, 422),
    },
    openapi_extra={"parameters": [RANGE, IF_NONE_MATCH]},
)
async def read_file(
    request: Request, operations: TheOperations, identity: Reader, uuid: Uuid, path: FilePath
) -> Response:
    """Return a file as it is now, whole or in part. Links are not followed."""
    async with AsyncExitStack() as stack:
        stack.enter_context(operations.file_reads.acquire(identity.token.tenant_id))
        context = files.opened(operations.application, identity.token.tenant_id, uuid.lower(), path)
        file = await stack.enter_async_context(context)
        tagged = {"ETag": quoted(file.entry.tag), "Accept-Ranges": "bytes"}
        if is_known(request.headers, file.entry.tag):
            return Response(status_code=304, headers=tagged)
        try:
            part = part_of(request.headers, file.entry.size, file.entry.tag)
        except RangeNotSatisfiable as error:
            answer = failure(error).response()
            answer.headers["Content-Range"] = f"bytes */{file.entry.size}"
            return answer
        headers = {**tagged, "Content-Length": str(part.length), "Content-Disposition": attachment(file.entry.name)}
        if not part.whole:
            headers["Content-Range"] = part.content_range
        status = 200 if part.whole else 206
        return ResourceStream(stack.pop_all(), file.read(part.start, part.length), status, headers, BINARY)


@router.put(
    "/builders/{uuid}/files/{path:path}",
    responses={
        **openapi.answer(200, FileAnswer, "It has replaced another one.", headers=TAGGED),
        **openapi.answer(201, FileAnswer, "It is new.", headers=TAGGED),
        **openapi.failures(400, 401, 403, 404, 409, 412, 413, 422),
    },
    openapi_extra={
        "parameters": [IF_MATCH, IF_NONE_MATCH],
        "requestBody": {"required": True, "content": BYTES},
    },
)
async def write_file(
    request: Request,
    operations: TheOperations,
    identity: Writer,
    uuid: Uuid,
    path: FilePath,
    query: Annotated[WriteQuery, Query()],
) -> Response:
    """Write a file, and create the folders that are missing.

    An app sees the old content or the new one, and nothing between. When it does not fit, the old one stays.
    """
    if "content-range" in request.headers:
        # RFC 9110, 14.5: a part that is taken for the whole would replace the whole file.
        raise BadRequest("A file is not put in parts: send all of it in one request, and leave Content-Range out.")
    tenant_id = identity.token.tenant_id
    async with (
        operations.file_writes.admitted(tenant_id) as slot,
        slot,
        aclosing(releasing(pieces(request, UPLOAD_SECONDS), slot)) as arriving,
    ):
        entry, new = await files.write(
            operations.application,
            tenant_id,
            uuid.lower(),
            path,
            files.NewContent(arriving, announced_length(request), query.executable),
            condition_of(request.headers),
        )
    message = f"{entry.name} has {entry.size} bytes now."
    answer = FileAnswer(message=message, data=_present(entry))
    return success(answer, 201 if new else 200, {"ETag": quoted(entry.tag)}).response()


@router.delete(
    "/builders/{uuid}/files/{path:path}",
    responses={
        204: {"description": "It is gone."},
        **openapi.failures(400, 401, 403, 404, 409, 412, 413, 422),
    },
    status_code=204,
    openapi_extra={"parameters": [IF_MATCH]},
)
async def delete_file(
    request: Request,
    application: TheApplication,
    identity: Writer,
    uuid: Uuid,
    path: FilePath,
    query: Annotated[DeleteQuery, Query()],
) -> Response:
    """Delete a file, a link itself, or an empty folder.

    On a full disk a folder may be too much (413): delete single files first.
    """
    condition = condition_of(request.headers)
    tenant_id = identity.token.tenant_id
    await files.delete(application, tenant_id, uuid.lower(), path, condition=condition, recursive=query.recursive)
    return Response(status_code=204)


@router.get(
    "/builders/{uuid}/archive",
    responses={
        200: {
            "description": "A `tar.zst` (RFC 8878). Links are in it as links; sockets are left out.",
            "content": {ARCHIVE: {"schema": {"type": "string", "format": "binary"}}},
        },
        **openapi.failures(401, 403, 404, 409),
    },
)
async def download_archive(operations: TheOperations, identity: Reader, uuid: Uuid) -> Response:
    """Return all files of `/app` as they are now, in one archive. It breaks off where a file cannot be read."""
    async with AsyncExitStack() as stack:
        stack.enter_context(operations.archives.acquire(identity.token.tenant_id))
        context = files.archive(operations.application, identity.token.tenant_id, uuid.lower())
        packed = await stack.enter_async_context(context)
        headers = {"Content-Disposition": attachment(f"{uuid.lower()}.tar.zst")}
        return ResourceStream(stack.pop_all(), packed, 200, headers, ARCHIVE)


def _present(entry: domain.FileEntry) -> FileEntry:
    return FileEntry(
        name=readable(entry.name),
        type=entry.kind,
        size=entry.size,
        mode=f"{stat.S_IMODE(entry.mode):04o}",
        mtime=entry.modified_at,
        target=None if entry.target is None else readable(entry.target),
    )


#: Digits of a position: enough for any file, too few to overflow when added to.
_DIGITS = 18
_RANGE = re.compile(rf"bytes=\s*(\d{{0,{_DIGITS}}})\s*-\s*(\d{{0,{_DIGITS}}})\s*")
_TAG = re.compile(r'\s*(?:\*|(W/)?"([\x21\x23-\x7e\x80-\xff]*)")\s*(?:,|$)')


class RangeNotSatisfiable(BuilderdError):
    """Error for a range of which no byte exists."""

    code = "range_not_satisfiable"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a content of ``size`` bytes: ``length`` bytes from ``start``; ``whole`` without a range."""

    start: int
    length: int
    size: int
    whole: bool = False

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"


def part_of(headers: Headers, size: int, tag: str) -> Part:
    """Return the part to send; the whole where the header is no single range of bytes (RFC 9110, 14.2).

    Raises ``RangeNotSatisfiable``.
    """
    whole = Part(0, size, size, whole=True)
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or not (match[1] or match[2]) or headers.get("if-range", quoted(tag)) != quoted(tag):
        return whole
    first, last = (int(text) if text else None for text in match.groups())
    if first is None:
        assert last is not None
        start, end = max(size - last, 0), size
    elif last is not None and last < first:
        return whole
    else:
        start, end = first, size if last is None else min(last + 1, size)
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes.", data={"size": size})
    return Part(start, end - start, size)


def quoted(tag: str) -> str:
    """Return the tag in quotes, as an entity tag."""
    return f'"{tag}"'


def condition_of(headers: Headers) -> Condition:
    """Return ``If-Match`` and ``If-None-Match``. Raises ``BadRequest`` for a malformed one instead of ignoring it."""
    return Condition(_tags(headers, "if-match", weak=False), _tags(headers, "if-none-match", weak=True))


def is_known(headers: Headers, tag: str) -> bool:
    """Return whether the caller has the content with this tag already (``If-None-Match``)."""
    tags = _tags(headers, "if-none-match", weak=True)
    return tags is not None and ("*" in tags or tag in tags)


def _tags(headers: Headers, name: str, *, weak: bool) -> frozenset[str] | None:
    """Return the entity tags in a header, None without it. Raises ``BadRequest`` for a malformed one.

    Without ``weak`` the comparison is strong: a weak tag becomes ``W/``, which equals no tag of a file.
    """
    text = ", ".join(headers.getlist(name)).strip()
    if name not in headers:
        return None
    tags: set[str] = set()
    position = 0
    while position < len(text) or not tags:
        match = _TAG.match(text, position)
        if match is None:
            raise BadRequest(f'The header {name} must be * or a list of entity tags in quotes, such as "1a-2b".')
        position = match.end()
        if match[2] is None:
            tags.add("*")
        elif weak or not match[1]:
            tags.add(match[2])
        else:
            tags.add("W/")
    return frozenset(tags)
