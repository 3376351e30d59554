"""Files of a builder's ``/app`` as they are now: browsed, edited, uploaded and downloaded.

No file is ever sent in a form that a browser shows: text stands escaped in a form, everything else is an attachment.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from urllib.parse import quote

from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from builderd.application import Application
from builderd.builders.service import Caller
from builderd.core.errors import BuilderdError, NotFound, PreconditionFailed, Unauthenticated
from builderd.executions import service as executions
from builderd.executions.model import LOGIN_SHELL, ProcessSpec
from builderd.files import service as files
from builderd.files.model import UNCONDITIONAL, Condition, FileKind, FilePage
from builderd.server.bodies import announced_length, pieces
from builderd.server.streams import ResourceStream, attachment, refuse, relay, window_of
from builderd.sessions import service as sessions
from builderd.tokens.model import Scope, Session
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.policy import check_origin
from builderd.web.visits import ROUTES, Visit, page, recognized, see_other, text_of

PER_PAGE = 500
#: Largest file that is edited in the browser, in bytes.
MAX_BYTES = 1_000_000
UPLOAD_SECONDS = 3600.0


@page("/builders/{name}/files")
@page("/builders/{name}/files/{path:path}")
async def show_files(visit: Visit) -> Response:
    """Show a folder, or a text file of it in an editor."""
    path = visit.request.path_params.get("path", "").strip("/")
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    builder, tenant, application = frame.builder, visit.token.tenant_id, visit.application
    content: str | None = None
    fault, tag, size, folder = "", "", 0, path
    listing: FilePage | None = None
    try:
        if path:
            folder, content, tag, size, fault = await _open(visit, builder.id, path)
        async with visit.operations.lists.one(tenant):
            listing = await files.list_page(application, tenant, builder.id, folder, 0, PER_PAGE)
    except BuilderdError as error:
        fault = fault or error.message
    above = folder.rpartition("/")[0]
    return await builder_page(
        visit,
        "files.html",
        "files",
        frame,
        listing=listing,
        folder=folder,
        above=above,
        file=path if path != folder else "",
        content=content,
        tag=tag,
        size=size,
        fault=fault,
        folder_kind=FileKind.FOLDER,
    )


async def _open(visit: Visit, builder_id: str, path: str) -> tuple[str, str | None, str, int, str]:
    """Return (folder, text, tag, size, why it is not edited); text None where the path is a folder or no text."""
    name = path.rpartition("/")[2]
    folder = path.rpartition("/")[0]
    async with visit.operations.lists.one(visit.token.tenant_id):
        listing = await files.list_page(visit.application, visit.token.tenant_id, builder_id, folder, 0, 100_000)
    entry = next((one for one in listing.entries if one.name == name), None)
    if entry is None:
        raise NotFound(f"There is nothing at {path} in the builder's /app.")
    if entry.kind is FileKind.FOLDER:
        return path, None, "", 0, ""
    if entry.kind is not FileKind.FILE:
        return folder, None, entry.tag, 0, "It is a link, a socket or a device, and is not opened."
    if entry.size > MAX_BYTES:
        return folder, None, entry.tag, entry.size, "It is too large to be edited here: download it."
    async with files.opened(visit.application, visit.token.tenant_id, builder_id, path) as file:
        content = b"".join([piece async for piece in file.read(0, file.entry.size)])
        tag = file.entry.tag
    text = text_of(content)
    return folder, text, tag, len(content), "" if text is not None else "It is no text in UTF-8: download it."


@page("/builders/{name}/files", post=True, scope=Scope.WRITE)
async def write_file(visit: Visit) -> Response:
    """Write a file that was edited, unless it was changed since it was read; or delete it."""
    form, builder = await visit.form(), await visit.find()
    path, tenant = form.get("path", "").strip(), visit.token.tenant_id
    folder = path.rpartition("/")[0]
    back = f"/builders/{builder.name}/files"
    if form.get("action", "") == "delete":
        await files.delete(visit.application, tenant, builder.id, path, condition=UNCONDITIONAL, recursive=True)
        return see_other(f"{back}/{quote(folder)}" if folder else back, done="file-deleted")
    content = form.get("content", "").replace("\r\n", "\n").encode()
    tag = form.get("tag", "")
    condition = Condition(matches=frozenset({tag})) if tag else Condition(differs=frozenset({"*"}))
    try:
        await files.write(
            visit.application,
            tenant,
            builder.id,
            path,
            files.NewContent(_once(content), len(content)),
            condition,
        )
    except PreconditionFailed:
        raise PreconditionFailed(
            f"{path} was changed by somebody else since you read it, and was not written: go back, copy what you have, "
            "and open it again."
        ) from None
    return see_other(f"{back}/{quote(path)}", done="written")


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@page("/builders/{name}/upload/{path:path}", post=True, scope=Scope.WRITE)
async def upload_file(visit: Visit) -> Response:
    """Write a file that the page's script sends."""
    builder, path = await visit.find(), visit.request.path_params["path"]
    await files.write(
        visit.application,
        visit.token.tenant_id,
        builder.id,
        path,
        files.NewContent(pieces(visit.request, UPLOAD_SECONDS), announced_length(visit.request)),
        UNCONDITIONAL,
    )
    return JSONResponse({}, 201)


@page("/builders/{name}/download/{path:path}")
async def download_file(visit: Visit) -> Response:
    """Return a file as an attachment: a browser saves it, and never shows it on this origin."""
    builder, path = await visit.find(), visit.request.path_params["path"]
    async with AsyncExitStack() as stack:
        stack.enter_context(visit.operations.file_reads.acquire(visit.token.tenant_id))
        file = await stack.enter_async_context(files.opened(visit.application, visit.token.tenant_id, builder.id, path))
        headers = {"Content-Length": str(file.entry.size), "Content-Disposition": attachment(file.entry.name)}
        return ResourceStream(stack.pop_all(), file.read(0, file.entry.size), 200, headers, "application/octet-stream")


@page("/builders/{name}/download")
async def download_all(visit: Visit) -> Response:
    """Return all of ``/app`` as an archive."""
    builder = await visit.find()
    async with AsyncExitStack() as stack:
        stack.enter_context(visit.operations.archives.acquire(visit.token.tenant_id))
        packed = await stack.enter_async_context(files.archive(visit.application, visit.token.tenant_id, builder.id))
        headers = {"Content-Disposition": attachment(f"{builder.name}.tar.zst")}
        return ResourceStream(stack.pop_all(), packed, 200, headers, "application/zstd")


log = logging.getLogger(__name__)


@page("/builders/{name}/terminal")
async def show_terminal(visit: Visit) -> Response:
    """Show the terminal; its script opens the session."""
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    return await builder_page(visit, "terminal.html", "terminal", frame)


async def open_terminal(websocket: WebSocket) -> None:
    """A login shell. Binary messages are what is typed and printed, text messages are sizes and the exit code."""
    application: Application = websocket.app.state.application
    try:
        # An opening changes something: it must come from this very origin.
        check_origin(websocket)
        session, token, _, _ = await recognized(websocket)
        if not token.allows(Scope.WRITE):
            raise Unauthenticated("The terminal needs a token with the scope write.")
        name = websocket.path_params["name"]
        builder = await application.store.read(lambda uow: uow.builders.by_name(token.tenant_id, name))
        if builder is None:
            raise NotFound(f"You have no builder named {name!r}.")
        spec = ProcessSpec(LOGIN_SHELL, window=window_of(websocket.query_params))
        caller = Caller.of(token)
        async with executions.session(application, caller, builder.id, spec) as process:
            await websocket.accept()
            log.info("terminal opened builder=%s session=%s", builder.id, session.id)
            await relay(websocket, process, partial(_check, application, session))
    except BuilderdError as error:
        await refuse(websocket, error)


ROUTES.append(WebSocketRoute("/builders/{name}/terminal/session", open_terminal))


async def _check(application: Application, session: Session) -> None:
    """Raise ``Unauthenticated`` once the session has ended."""
    now = application.clock.now()
    if not await application.store.read(lambda uow: sessions.is_good_still(uow, session, now)):
        raise Unauthenticated("The session is over.")
