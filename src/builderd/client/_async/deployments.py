"""Calls that deploy: their stages are followed, and a lost answer is asked for again with the same key."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from builderd.client._async.transport import STREAM_SECONDS, AsyncTransport, parsed
from builderd.client._async.uploads import AsyncUploads, OnProgress
from builderd.client._sync.settings import BuilderOptions, VersionOptions
from builderd.client.errors import (
    ApiError,
    BuilderdError,
    BuildFailed,
    DeploymentFailed,
    InstallFailed,
    NoAnswer,
    QaFailed,
    ReleaseFailed,
    TimedOut,
    Unavailable,
    error_of,
)
from builderd.client.folders import Folder, encoded, read_folder
from builderd.client.models import BuilderState, Qa, Stage
from builderd.client.options import FileContent, RequestPath, StoredCode, api_path
from builderd.client.retries import in_thread, is_going_on, new_key, repeats_error

#: Called at the end of each stage.
OnStage = Callable[[Stage], None]
#: Called with the builder's path once the service has begun.
OnBegin = Callable[[str], None]

TAIL_LINES = 20


class CallOptions(TypedDict, total=False):
    """Options of a call that deploys a folder.

    Calls with one ``idempotency_key`` make one deployment. ``on_stage`` gets each stage at its end, ``on_begin`` the
    builder's path once the service has begun, ``on_progress`` the bytes that were uploaded and their total.
    """

    idempotency_key: str | None
    on_stage: OnStage
    on_progress: OnProgress | None
    on_begin: OnBegin | None


class CodeOptions(CallOptions, total=False):
    """Code in place of a folder: ``files`` by path, or a finished upload."""

    files: Mapping[str, FileContent] | None
    upload_id: str | None


class FolderOptions(BuilderOptions, CallOptions, total=False):
    """Options of ``client.deploy``."""


class CreateOptions(BuilderOptions, CodeOptions, total=False):
    """Options of ``builders.create``."""


class DeployOptions(VersionOptions, CodeOptions, total=False):
    """Options of ``builder.deploy``. ``fresh`` installs the dependencies again.

    ``stored`` names code of a kept version that ``files`` are laid over, in place of replacing all of it.
    """

    fresh: bool
    stored: StoredCode


def no_stages(_: Stage) -> None:
    """Ignore the stages."""


class AsyncDeployment:
    """One call that deploys, with its key."""

    def __init__(
        self,
        transport: AsyncTransport,
        key: str | None = None,
        on_stage: OnStage = no_stages,
        on_begin: OnBegin | None = None,
    ) -> None:
        #: Upload made for this call alone: deleted once its outcome is known, since a tenant has only a few at a time.
        self.upload_id: str | None = None
        self._transport = transport
        self._key = key or new_key()
        self._on_stage = on_stage
        self._on_begin = on_begin
        self._deadline = time.monotonic() + transport.timeout if transport.timeout else None
        self._told: set[str] = set()

    async def run(
        self, method: str, path: RequestPath, body: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> BuilderState:
        """Send the call until its outcome is known. Raises the error of the stage that failed, with its details."""
        try:
            state = await self._repeat(method, path, body, params)
        except ApiError as error:
            if not isinstance(error, Unavailable):
                await self._delete_upload()
            raise
        await self._delete_upload()
        return state

    async def _delete_upload(self) -> None:
        if self.upload_id is not None:
            with suppress(BuilderdError):
                await AsyncUploads(self._transport).delete(self.upload_id)

    async def _repeat(
        self, method: str, path: RequestPath, body: Mapping[str, Any], params: Mapping[str, Any] | None
    ) -> BuilderState:
        attempt = 0
        while True:
            try:
                return await self._once(method, path, body, params)
            except BuilderdError as error:
                self._check_deadline(error)
                waits = attempt
                if not is_going_on(error):
                    repeats = isinstance(error, NoAnswer) or repeats_error(error, self._seconds_left())
                    if not repeats or attempt == self._transport.max_retries:
                        raise await explained(self._transport, error) from error
                    attempt += 1
                await self._transport.wait(method, path, waits, error)

    async def _once(
        self, method: str, path: RequestPath, body: Mapping[str, Any], params: Mapping[str, Any] | None
    ) -> BuilderState:
        headers, left = {"Idempotency-Key": self._key}, self._seconds_left()
        seconds = STREAM_SECONDS if left is None else max(0.1, min(STREAM_SECONDS, left))
        async with self._transport.events(
            method, path, json=body, params=params, headers=headers, read_seconds=seconds
        ) as events:
            if events.answer is not None:  # nothing had to be deployed
                return parsed(BuilderState, events.answer.get("data"))
            if self._on_begin and events.location:
                self._on_begin(events.location)
            async for event in events:
                self._check_deadline(None)
                if event is None:
                    continue
                if event.name == "done":
                    return parsed(BuilderState, event.json())
                if event.name == "failed":
                    raise error_of(event.json(), request_id=events.request_id)
                if not event.id or event.id not in self._told:
                    self._told.add(event.id)
                    self._on_stage(parsed(Stage, event.json()))
        raise NoAnswer(f"{method} {path}: the stream ended before the outcome", request_id=events.request_id)

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def _check_deadline(self, error: BuilderdError | None) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimedOut(f"no outcome within {self._transport.timeout:g} s; the service goes on with it") from error


async def prepare(
    transport: AsyncTransport, path: str | Path | Folder | None, options: Mapping[str, Any]
) -> tuple[AsyncDeployment, dict[str, Any]]:
    """Return a call that deploys, and its body: settings, and the code of a folder, an upload or ``files``."""
    given = {name: options.get(name) for name in CodeOptions.__annotations__}
    body = {name: value for name, value in options.items() if name not in given}
    call = AsyncDeployment(transport, given["idempotency_key"], given["on_stage"] or no_stages, given["on_begin"])
    if isinstance(path, str | Path):
        path = await in_thread(read_folder, Path(path), (), body.get("env_file", ""))
    if path is not None and path.fits_json:
        body["files"] = await in_thread(path.contents)
    elif path is not None:
        call.upload_id = await AsyncUploads(transport).send_folder(path, given["on_progress"])
        body["source"] = {"upload_id": call.upload_id}
    elif given["upload_id"] is not None:
        body["source"] = {"upload_id": given["upload_id"]}
    elif given["files"] is not None:
        body["files"] = {
            name: encoded(content) if isinstance(content, str | bytes) else dict(content)
            for name, content in given["files"].items()
        }
    return call, body


async def explained(transport: AsyncTransport, error: BuilderdError) -> BuilderdError:
    """Add the log's last lines to the error of a stage, and the report to that of QA, as far as they can be read."""
    if isinstance(error, DeploymentFailed) and error.builder:
        with suppress(BuilderdError):
            stream = "build" if isinstance(error, InstallFailed | BuildFailed) else None
            stream = "release" if isinstance(error, ReleaseFailed) else stream
            params = {"tail": TAIL_LINES, "stream": stream}
            answer = await transport.json("GET", api_path("builders", error.builder, "logs"), params=params)
            number = error.data.get("version")
            error.log_tail = [line["text"] for line in answer["data"] if number in (None, line["version"])]
        if isinstance(error, QaFailed):
            with suppress(BuilderdError):
                params = {"version": error.data.get("version")}
                error.report = await transport.read(Qa, "GET", api_path("builders", error.builder, "qa"), params=params)
    return error
