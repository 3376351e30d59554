"""Calls over HTTP: one connection pool, retries, event streams, and errors of the SDK."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from builderd.client.errors import BuilderdError, NoAnswer, NotFound, TimedOut, error_in
from builderd.client.logs import Event, EventDecoder
from builderd.client.models import lenient
from builderd.client.options import RequestPath
from builderd.client.retries import (
    IDEMPOTENT,
    OnRetry,
    Retry,
    async_sleep,
    ignore_retry,
    is_loopback,
    no_answer,
    repeats_error,
    repeats_failure,
    wait_before,
)

M = TypeVar("M", bound=BaseModel)

CONNECT_SECONDS = 10.0
#: Default read timeout of calls that are answered at once.
ANSWER_SECONDS = 30.0
#: An event stream is never silent for longer than its heartbeats' 15 seconds.
STREAM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class AsyncTransport:
    """Calls to one service. ``timeout`` in seconds overrides the limits of each call; None keeps them."""

    http: httpx2.AsyncClient
    timeout: float | None
    max_retries: int
    on_retry: OnRetry = ignore_retry

    def with_options(self, timeout: float | None, max_retries: int | None, on_retry: OnRetry | None) -> AsyncTransport:
        """Return a transport on the same connections with other limits."""
        return replace(
            self,
            timeout=self.timeout if timeout is None else timeout,
            max_retries=self.max_retries if max_retries is None else max_retries,
            on_retry=on_retry or self.on_retry,
        )

    async def wait(self, method: str, path: RequestPath, attempt: int, error: BuilderdError) -> None:
        """Wait before a call is sent again; ``attempt`` counts from 0."""
        seconds = wait_before(attempt, error)
        self.on_retry(Retry(method, path, error, attempt + 1, seconds))
        await async_sleep(seconds)

    def deadline(self) -> float | None:
        """Return when a call that begins now has to end, by the monotonic clock; None without ``timeout``."""
        return None if self.timeout is None else time.monotonic() + self.timeout

    async def read(self, shape: type[M], method: str, path: RequestPath, **options: Any) -> M:
        """Return ``data`` of the answer."""
        return parsed(shape, (await self.json(method, path, **options)).get("data"))

    async def json(self, method: str, path: RequestPath, **options: Any) -> dict[str, Any]:
        """Return the answer, which is a JSON object."""
        return json_of(await self.request(method, path, **options))

    async def request(
        self,
        method: str,
        path: RequestPath,
        *,
        waits: bool = False,
        repeatable: bool | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> httpx2.Response:
        """Send a call until it is answered; raise the SDK's errors.

        ``waits``: the service answers at the end of long work, which has limits of its own. ``repeatable``: the call
        may be sent again after a broken connection; False: never again, since its body can be read only once; None: by
        its method, or since its headers have an ``Idempotency-Key``.
        """
        safe = (method in IDEMPOTENT or "Idempotency-Key" in (headers or {})) if repeatable is None else repeatable
        retries = 0 if repeatable is False else self.max_retries
        read = self.timeout or (None if waits else ANSWER_SECONDS)
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=read, write=60, pool=CONNECT_SECONDS)
        for attempt in range(retries + 1):
            try:
                response = await self.http.request(
                    method, path, headers=headers, params=given(params), timeout=timeout, **options
                )
            except httpx2.TransportError as broken:
                failure = self._broken(method, path, broken)
                if attempt == retries or not repeats_failure(broken, repeatable=safe):
                    raise failure from broken
                await self.wait(method, path, attempt, failure)
                continue
            if response.is_success or response.status_code == 304:
                return response
            error = error_in(response.status_code, response.headers, response.content)
            # The first attempt, whose answer was lost, has deleted it.
            if attempt and method == "DELETE" and isinstance(error, NotFound):
                return response
            if attempt == retries or not repeats_error(error, self.timeout):
                raise error
            await self.wait(method, path, attempt, error)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: RequestPath,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        read_seconds: float = STREAM_SECONDS,
        **options: Any,
    ) -> AsyncIterator[httpx2.Response]:
        """Open a response whose body is read piece by piece. Raises the SDK's errors, also while it is read."""
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=read_seconds)
        try:
            async with self.http.stream(
                method, path, headers=headers, params=given(params), timeout=timeout, **options
            ) as response:
                if not response.is_success:
                    raise error_in(response.status_code, response.headers, await response.aread())
                yield response
        except httpx2.TransportError as broken:
            raise self._broken(method, path, broken) from broken

    @asynccontextmanager
    async def events(
        self,
        method: str,
        path: RequestPath,
        *,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
        **options: Any,
    ) -> AsyncIterator[AsyncEvents]:
        """Open an event stream; its ``answer`` is set where the service has answered with JSON instead.

        Raises ``TimedOut`` at the ``deadline``, at the latest with the next heartbeat after it.
        """
        if deadline is not None:
            options["read_seconds"] = max(0.1, min(STREAM_SECONDS, deadline - time.monotonic()))
        accept = {"Accept": "text/event-stream", **(headers or {})}
        async with self.stream(method, path, headers=accept, **options) as response:
            answer = None
            if response.headers.get("content-type", "").startswith("application/json"):
                await response.aread()
                answer = json_of(response)
            yield AsyncEvents(response, answer, deadline)

    def _broken(self, method: str, path: RequestPath, error: httpx2.TransportError) -> NoAnswer:
        if isinstance(error, httpx2.ReadTimeout) and self.timeout is not None:
            return TimedOut(f"{method} {path}: no answer within {self.timeout:g} s")
        return no_answer(method, path, error)


class AsyncEvents:
    """Server-sent events of one response. A heartbeat is yielded as None."""

    def __init__(self, response: httpx2.Response, answer: dict[str, Any] | None, deadline: float | None) -> None:
        self._response = response
        self._deadline = deadline
        self.answer = answer
        self.request_id: str = response.headers.get("x-request-id", "")
        #: Path of the builder that the call is about.
        self.location: str = response.headers.get("location", "")
        #: The service's time at the beginning of the stream, as HTTP writes it.
        self.date: str = response.headers.get("date", "")

    async def __aiter__(self) -> AsyncIterator[Event | None]:
        decoder = EventDecoder()
        async for line in self._response.aiter_lines():
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise TimedOut("the time is over, the service goes on", request_id=self.request_id)
            if line.startswith(":"):
                yield None
            event = decoder.decode(line)
            if event is not None:
                yield event


def connect(
    url: str, token: str, verify: ssl.SSLContext | bool, transport: httpx2.AsyncBaseTransport | None, agent: str
) -> httpx2.AsyncClient:
    """Return the connection pool. Proxies and certificates of the environment are used, not for this machine itself."""
    return httpx2.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {token}", "User-Agent": agent},
        transport=transport,
        verify=verify,
        trust_env=not is_loopback(url),
        event_hooks={"response": [_keep_refusal]},
    )


async def _keep_refusal(response: httpx2.Response) -> None:
    """Read the answer that refuses a WebSocket: httpx2 closes it unread."""
    if response.request.headers.get("upgrade") == "websocket" and response.status_code != 101:
        await response.aread()


def json_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the body, a JSON object. Raises ``NoAnswer``."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise NoAnswer(f"{response.request.url} answered {response.status_code} without a JSON object: check the URL")
    return body


def parsed(shape: type[M], value: Any) -> M:
    """Return a result's model. Raises ``NoAnswer`` where the answer lacks what the model needs."""
    try:
        result: M = lenient(shape).model_validate(value)
    except ValidationError as error:
        lacks = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
        raise NoAnswer(f"the answer is not as this client knows it ({lacks}): install the service's version") from error
    return result


def given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a query without parameters that are None, with times in RFC 3339, and with days."""
    found = {name: value for name, value in (params or {}).items() if value is not None}
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in found.items()}
