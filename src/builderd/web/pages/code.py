"""The code of a version in an editor: one file is changed and deployed as the next version."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from builderd.domain.bundles import Bundle
from builderd.domain.errors import NotFound, ValidationFailed
from builderd.domain.tokens import Scope
from builderd.domain.versions import Version, VersionStatus
from builderd.services import bundles
from builderd.store import UnitOfWork
from builderd.web import commands
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of
from builderd.web.visits import Visit, page, see_other

#: Largest file that is edited in the browser, in bytes.
MAX_BYTES = 1_000_000
MAX_LISTED = 500


@page("/builders/{name}/code")
async def show_code(visit: Visit) -> Response:
    """Show a file of a version in an editor."""
    query = visit.request.query_params
    frame, version = await visit.read(lambda uow: _find(uow, visit, query.get("version", "")))
    bundle = await bundles.fetch(visit.application, version)
    path = query.get("file") or _first(bundle, version)
    edited = _Edited(path, *_text(bundle, path), version.settings.entrypoint)
    return await _form(visit, frame, version, bundle, edited)


@page("/builders/{name}/code", post=True, scope=Scope.WRITE)
async def deploy_code(visit: Visit) -> Response:
    """Deploy the version's files with this one changed, as the next version."""
    form = await visit.form()
    frame, version = await visit.read(lambda uow: _find(uow, visit, form.get("version", "")))
    path, content = form.get("path", "").strip(), form.get("content", "").replace("\r\n", "\n")
    entrypoint = form.get("entrypoint", "").strip()
    try:
        deployed = await commands.deploy_edited(visit, frame.builder, version, path, content, entrypoint)
    except ValidationFailed as error:
        bundle = await bundles.fetch(visit.application, version)
        fault = "; ".join(f"{name} {', '.join(why)}" for name, why in error.errors.items())
        edited = _Edited(path, content, fault, entrypoint or version.settings.entrypoint)
        return await _form(visit, frame, version, bundle, edited, 422)
    number = deployed.version or deployed.builder.version
    return see_other(f"/builders/{frame.builder.name}/versions/{number}")


def _find(uow: UnitOfWork, visit: Visit, number: str) -> tuple[BuilderFrame, Version]:
    frame = frame_of(uow, visit)
    wanted = int(number) if number.isdecimal() and len(number) < 10 else frame.builder.version
    version = uow.versions.get(frame.builder.id, wanted)
    if version is None or version.status is VersionStatus.DROPPED:
        raise NotFound(f"The builder {frame.builder.name} keeps no version {wanted}.")
    return frame, version


def _first(bundle: Bundle, version: Version) -> str:
    """Return the file that the start command names, else the first one."""
    paths = [file.path for file in bundle.files]
    named = (word for word in version.settings.entrypoint.split() if word in paths)
    return next(named, paths[0] if paths else "main.py")


def _text(bundle: Bundle, path: str) -> tuple[str, str]:
    """Return the file's text, and why it cannot be edited here."""
    file = next((file for file in bundle.files if file.path == path), None)
    if file is None:
        return "", ""
    if file.size > MAX_BYTES:
        return "", "The file is too large to be edited here: send it by the API."
    try:
        text = file.content.decode()
    except UnicodeDecodeError:
        return "", "The file is no text in UTF-8, and cannot be edited here."
    return ("", "The file is binary, and cannot be edited here.") if "\0" in text else (text, "")


@dataclass(frozen=True, slots=True)
class _Edited:
    """The editor's fields, and why they are refused ("": they are not)."""

    path: str
    content: str
    fault: str
    entrypoint: str


async def _form(
    visit: Visit, frame: BuilderFrame, version: Version, bundle: Bundle, edited: _Edited, status: int = 200
) -> Response:
    files = [file.path for file in bundle.files]
    return await builder_page(
        visit,
        "code.html",
        "versions",
        frame,
        status,
        version=version,
        paths=files[:MAX_LISTED],
        more=max(0, len(files) - MAX_LISTED),
        file=edited.path,
        content=edited.content,
        fault=edited.fault,
        entrypoint=edited.entrypoint,
        is_new=edited.path not in files,
    )
