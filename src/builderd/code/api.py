"""Uploads: create one, then send its bytes in one request or in several."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from builderd.code import service as bundles
from builderd.code.service import Part
from builderd.core.errors import BadRequest
from builderd.files.model import SHA256, Upload
from builderd.schemas.files import NewUpload, UploadAnswer, UploadPlace, UploadState
from builderd.schemas.shape import Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import TheApplication, Writer
from builderd.server.bodies import Received, announced_length, optional_json_body, pieces
from builderd.server.limits import count_for_tenant

router = APIRouter(prefix=PREFIX, tags=[openapi.FILES])

MAX_BODY_BYTES = 10_000
#: Seconds that one request may take to send its bytes.
UPLOAD_SECONDS = 6 * 3600.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)

Body = Annotated[Received[NewUpload], Depends(optional_json_body(NewUpload, MAX_BODY_BYTES))]
UploadUuid = Annotated[str, Path(description="The upload's id.", json_schema_extra={"format": "uuid"})]
Signature = Annotated[str, Query(description="As the upload's URL has it.")]

CONTENT_RANGE: openapi.Parameter = {
    "name": "Content-Range",
    "in": "header",
    "description": "`bytes 0-999/5000`: these of so many bytes; left out, the body is all of it (RFC 9110, 14.4).",
    "schema": {"type": "string"},
}
CHECK_SUM: openapi.Parameter = {
    "name": "X-Content-Sha256",
    "in": "header",
    "description": "The sha256 of the whole upload; 422 when all has arrived and has another one.",
    "schema": {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"},
}


@router.post(
    "/uploads",
    status_code=201,
    responses=openapi.answers(201, Success[UploadPlace], "Send the bytes to its URL.", 400, 413, 422, 429),
    openapi_extra=openapi.body_of(NewUpload, {"size": 3_000_000}, required=False),
)
async def create_upload(request: Request, application: TheApplication, identity: Writer, body: Body) -> Response:
    """Create an upload for an archive: a zip, a tar, a tar.gz or a tar.zst.

    `PUT` the bytes to `upload_url`, which is good for 24 hours and needs no token. Then create a builder, or deploy a
    version, with `{"source": {"upload_id"}}` in place of `files`.
    """
    new, caller, now = body.value, identity.caller, application.clock.now()
    rules = application.upload_rules
    upload, signature = await application.store.write(
        lambda uow: bundles.create(uow, rules, caller, new.size, new.sha256, now)
    )
    base = (application.public_url or str(request.base_url)).rstrip("/")
    url = f"{base}{PREFIX}/uploads/{upload.id}?{urlencode({'signature': signature})}"
    data = UploadPlace(upload_id=upload.id, upload_url=url, expires_at=upload.expires_at)
    return success(Success[UploadPlace](message="Send the bytes with PUT to upload_url.", data=data), 201).response()


@router.put(
    "/uploads/{upload_id}",
    responses={
        **openapi.answer(200, UploadAnswer, "The bytes are there; `complete` says whether all are."),
        **openapi.failures(400, 404, 409, 413, 422, 429),
    },
    openapi_extra={
        "security": [],
        "parameters": [CONTENT_RANGE, CHECK_SUM],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
async def receive_upload(
    request: Request, application: TheApplication, upload_id: UploadUuid, signature: Signature = ""
) -> Response:
    """Send the bytes, all at once or in parts, one after the other.

    What arrives is kept when a request breaks off: `GET` this URL says how many bytes there are, and
    `Content-Range` continues from there.
    """
    upload = await bundles.signed(application, upload_id.lower(), signature)
    count_for_tenant(request, upload.tenant_id)
    part, check_sum = part_of(request), check_sum_of(request)
    body = pieces(request, UPLOAD_SECONDS)
    upload, received = await bundles.receive(application, upload, part, body, check_sum)
    return success(_answer(upload, received)).response()


@router.get(
    "/uploads/{upload_id}",
    responses={**openapi.answer(200, UploadAnswer, "How far it is."), **openapi.failures(404)},
    openapi_extra={"security": []},
)
async def get_upload(application: TheApplication, upload_id: UploadUuid, signature: Signature = "") -> Response:
    """Return how many bytes have arrived: the position at which to continue."""
    upload = await bundles.signed(application, upload_id.lower(), signature)
    return success(_answer(upload, await application.uploads.size(upload.id))).response()


@router.delete(
    "/uploads/{upload_id}",
    status_code=204,
    responses={204: {"description": "It is gone."}, **openapi.failures(401, 403, 404, 409)},
)
async def delete_upload(application: TheApplication, identity: Writer, upload_id: UploadUuid) -> Response:
    """Delete an upload, once no request sends it any more. What was deployed from it stays."""
    await bundles.delete(application, identity.token.tenant_id, upload_id.lower())
    return Response(status_code=204)


def part_of(request: Request) -> Part:
    """Return the range of bytes that a request carries (``Content-Range``). Raises ``BadRequest``."""
    text = request.headers.get("content-range")
    length = announced_length(request)
    if text is None:
        return Part(0, length)
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise BadRequest("Content-Range must be like: bytes 0-999/5000.")
    first, last, total = (int(text) for text in match.groups())
    if last < first or last >= total or (length is not None and length != last - first + 1):
        raise BadRequest("Content-Range does not fit the body, or itself.")
    return Part(first, total)


def check_sum_of(request: Request) -> str | None:
    """Return the checksum in ``X-Content-SHA256``, None without one. Raises ``BadRequest``."""
    text = request.headers.get("x-content-sha256")
    if text is not None and not SHA256.fullmatch(text.lower()):
        raise BadRequest("X-Content-Sha256 must be 64 hex characters.")
    return text


def _answer(upload: Upload, received: int) -> UploadAnswer:
    data = UploadState.of(upload, upload_id=upload.id, received=received)
    said = "It is complete." if upload.complete else "Go on from there."
    return UploadAnswer(message=f"{received} bytes have arrived. {said}", data=data)
