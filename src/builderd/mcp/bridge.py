"""The bridge between an agent and a service: requests go to its ``/mcp``, answers come back as they arrive."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import httpx2

from builderd import __version__
from builderd.client.errors import ApiError, BuilderdError, MethodNotAllowed, NoAnswer, NotFound, error_in
from builderd.client.events import EventDecoder
from builderd.client.retries import no_answer, repeats_error, repeats_failure, wait_before
from builderd.mcp import messages
from builderd.mcp.messages import Message
from builderd.mcp.next_steps import LATER, NEXT, code_of

PATH = "/mcp"
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
MAX_RETRIES = 2
#: A service that has answered before, and does not now, is given so many seconds to come back.
RESTART_SECONDS = 20.0
#: An answer's stream is never silent for longer than the service's pings every 15 seconds.
TIMEOUT = httpx2.Timeout(10.0, read=90.0, write=60.0, pool=None)
#: Calls at the same time; further ones wait.
MAX_CONNECTIONS = 32
#: Of a proxy that does not reach the service.
PROXY_STATUSES = frozenset({502, 503, 504})
UNREACHABLE = f"{LATER} If it stays so, ask the user to run: builderd doctor --client"


class Bridge:
    """One agent's way to a service. ``send`` takes each message for the agent."""

    def __init__(self, http: httpx2.AsyncClient, send: Callable[[Message], None]) -> None:
        self._http = http
        self._send = send
        #: Revision of an agent that has begun with ``initialize``; later ones name it in each request.
        self._revision = ""
        self._agent = ""
        self._repeatable: set[str] = set()
        self._has_answered = False

    async def pass_on(self, request: Message) -> None:
        """Send a request to the service, and its messages to the agent. A failure is answered, too."""
        try:
            await self._repeat(_Exchange(request, self._can_repeat(request)))
        except BuilderdError as error:
            self._send(_refusal(request, error))
        except httpx2.HTTPError as error:
            self._send(_refusal(request, no_answer("POST", PATH, error)))

    def _can_repeat(self, request: Message) -> bool:
        """Return whether a request may be sent again once the service may have begun with it."""
        if request["method"] == "tools/call":
            name = messages.params_of(request).get("name")
            return isinstance(name, str) and name in self._repeatable
        return bool(request["method"] != "subscriptions/listen")

    async def _repeat(self, exchange: _Exchange) -> None:
        attempt, deadline = 0, None
        while True:
            try:
                await self._once(exchange)
            except httpx2.TransportError as broken:
                deadline = deadline or time.monotonic() + (RESTART_SECONDS if self._has_answered else 0)
                is_patient = attempt < MAX_RETRIES or time.monotonic() < deadline
                if not is_patient or not repeats_failure(broken, repeatable=exchange.repeatable):
                    raise no_answer("POST", PATH, broken) from broken
                await asyncio.sleep(wait_before(attempt))
            except ApiError as error:
                if attempt >= MAX_RETRIES or not repeats_error(error):
                    raise
                await asyncio.sleep(wait_before(attempt, error))
            else:
                return
            attempt += 1

    async def _once(self, exchange: _Exchange) -> None:
        request = exchange.request
        headers = {**HEADERS, "Idempotency-Key": exchange.key, **messages.headers_of(request, self._revision)}
        if request["method"] == "initialize":
            self._agent = messages.agent_name(request)
        if self._agent:
            headers["User-Agent"] = f"{self._agent}/builderd-mcp"
        async with self._http.stream(
            "POST", PATH, content=exchange.content, headers=headers, timeout=TIMEOUT
        ) as response:
            async for message in self._answers(response):
                self._has_answered = True
                if message.get("id") is None and "method" not in message:
                    message["id"] = request["id"]  # refused before the service knew the id
                if exchange.is_news(message):
                    self._send(message)
                if "method" not in message:
                    self._learn(request, message)
                    return
        raise httpx2.RemoteProtocolError("the answer ended early")

    async def _answers(self, response: httpx2.Response) -> AsyncIterator[Message]:
        """Yield the messages of a response. Raises the SDK's errors for what is no JSON-RPC."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.is_success and kind == "text/event-stream":
            decoder = EventDecoder()
            async for line in response.aiter_lines():
                event = decoder.decode(line)
                if event is not None:
                    yield self._message(response, event.data)
            return
        content = await response.aread()
        if kind == "application/json" and b'"jsonrpc"' in content:
            yield self._message(response, content)
            return
        error = error_in(response.status_code, response.headers, content)
        if isinstance(error, NotFound | MethodNotAllowed):
            raise await self._older(error)
        if isinstance(error, ApiError) and not response.is_success:
            raise error
        if response.status_code in PROXY_STATUSES:
            raise httpx2.RemoteProtocolError(f"a proxy answered {response.status_code}")
        raise NoAnswer(_no_builderd(response))

    def _message(self, response: httpx2.Response, data: str | bytes) -> Message:
        try:
            message = json.loads(data)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise NoAnswer(_no_builderd(response))
        return message

    async def _older(self, error: BuilderdError) -> BuilderdError:
        """Return the error of a service without ``/mcp``: it names both versions."""
        try:
            answer = await self._http.get("/healthz", timeout=TIMEOUT)
            version = answer.json()["data"]["version"]
        except (httpx2.TransportError, ValueError, KeyError, TypeError):
            return NoAnswer(f"{self._http.base_url} has no {PATH}: check the URL ({error.message})")
        return NoAnswer(
            f"The service at {self._http.base_url} has builderd {version}, without {PATH}: it needs {__version__} or "
            "newer. Ask its operator to run there: pip install -U 'builderd[server]'"
        )

    def _learn(self, request: Message, answer: Message) -> None:
        """Keep what later requests need: the revision, and the tools that can be called again."""
        result: Any = answer.get("result")
        if not isinstance(result, dict):
            return
        if request["method"] == "initialize" and isinstance(result.get("protocolVersion"), str):
            self._revision = result["protocolVersion"]
        elif request["method"] == "tools/list":
            self._repeatable |= messages.repeatable_tools(result)


class _Exchange:
    """One request, which may be sent several times with the same key."""

    def __init__(self, request: Message, repeatable: bool) -> None:
        self.request = request
        self.repeatable = repeatable
        self.content = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.key = str(uuid4())
        self._progress = -1.0

    def is_news(self, message: Message) -> bool:
        """Return whether the agent gets a message: a repeated call reports its progress once."""
        progress = messages.progress_of(message)
        if progress is None:
            return True
        if progress <= self._progress:
            return False
        self._progress = progress
        return True


def _refusal(request: Message, error: BuilderdError) -> Message:
    """Return the answer to a request that the service did not answer: the result of a tool, else an error."""
    code = code_of(error)
    next_step = NEXT.get(code, UNREACHABLE)
    failure: Message = {"code": code, "message": error.message, "next_step": next_step}
    if isinstance(error, ApiError) and error.retry_after is not None:
        failure["retry_after_seconds"] = error.retry_after
    if error.request_id:
        failure["request_id"] = error.request_id
    if request["method"] == "tools/call":
        return messages.failed_call(request["id"], failure)
    return messages.error(request["id"], messages.NO_ANSWER, f"{error.message} {next_step}", failure)


def _no_builderd(response: httpx2.Response) -> str:
    location = response.headers.get("location")
    said = f"redirects to {location}" if location else f"answered {response.status_code} without JSON-RPC"
    return f"{response.request.url} {said}: check the URL of the service"
