"""The server over stdio, beside an agent: a line is a message, and a bridge forwards requests to the service."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import httpx2

from builderd.client.errors import ApiError, BuilderdError, MethodNotAllowed, NoAnswer, NotFound, error_in
from builderd.client.logs import EventDecoder
from builderd.client.retries import certificates, is_loopback, no_answer, repeats_error, repeats_failure, wait_before
from builderd.mcp.next_steps import LATER, NEXT, code_of

#: Seconds for the answers under way once the agent has closed its end. One that does not read them ends the process.
FINISH_SECONDS = 30.0
CHUNK_BYTES = 65_536


def serve(url: str, token: str, ca: str | None = None) -> None:
    """Serve one agent on stdin and stdout until it closes them. ``ca`` is a file with further certificates."""
    asyncio.run(_serve(url, token, ca))


async def _serve(url: str, token: str, ca: str | None) -> None:
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    threading.Thread(target=_read_lines, args=(asyncio.get_running_loop(), lines), daemon=True).start()
    async with httpx2.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {token}"},
        verify=certificates(url, ca),
        trust_env=not is_loopback(url),
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS),
    ) as http:
        agent = _Agent(Bridge(http, write), lines)
        while (line := await lines.get()) is not None:
            agent.take(line)
        await agent.finish()


def write(message: Message) -> None:
    """Write a message as one line of ASCII."""
    sys.stdout.buffer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    sys.stdout.buffer.flush()


class _Agent:
    """Requests of one agent that are not answered yet."""

    def __init__(self, bridge: Bridge, lines: asyncio.Queue[bytes | None]) -> None:
        self._bridge = bridge
        self._lines = lines
        self._calls: dict[str, asyncio.Task[None]] = {}

    def take(self, line: bytes) -> None:
        """Begin with a message. Notifications end here: a service without sessions has no use for them."""
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            write(protocol_error(None, PARSE_ERROR, f"The line is not valid JSON: {error}"))
            return
        if not isinstance(message, dict):
            said = "A line must be one JSON-RPC object: send batches message by message."
            write(protocol_error(None, INVALID_REQUEST, said))
        elif isinstance(message.get("method"), str) and message.get("id") is not None:
            key = id_key(message["id"])
            task = asyncio.create_task(self._bridge.forward(message))
            self._calls[key] = task
            task.add_done_callback(lambda ended: self._end(key, ended))
        elif message.get("method") == "notifications/cancelled":
            # As over HTTP: the connection is closed, and what was begun goes on.
            cancelled = self._calls.get(id_key(params_of(message).get("requestId")))
            if cancelled is not None:
                cancelled.cancel()

    def _end(self, key: str, ended: asyncio.Task[None]) -> None:
        if self._calls.get(key) is ended:
            del self._calls[key]
        if not ended.cancelled() and isinstance(ended.exception(), OSError):
            self._lines.put_nowait(None)  # nobody reads the answers any more

    async def finish(self) -> None:
        """Wait a moment for the answers under way, then leave the others."""
        calls = set(self._calls.values())
        if calls:
            _, late = await asyncio.wait(calls, timeout=FINISH_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None]) -> None:
    """Put the lines of stdin into the queue, then None. Files, pipes and terminals are read alike."""

    def put(line: bytes | None) -> None:
        try:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        except RuntimeError:  # the loop has ended before the agent
            raise SystemExit from None

    parts: list[bytes] = []
    # Not by sys.stdin: the interpreter's end would wait for the lock of a blocked reader.
    while chunk := os.read(0, CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        for one in others:
            put(b"".join(parts))
            parts = [one]
    if any(parts):
        put(b"".join(parts))
    put(None)


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
    """Forwards one agent's requests to a service. ``send`` takes each message for the agent."""

    def __init__(self, http: httpx2.AsyncClient, send: Callable[[Message], None]) -> None:
        self._http = http
        self._send = send
        #: Revision of an agent that has begun with ``initialize``; later ones name it in each request.
        self._revision = ""
        self._agent = ""
        self._repeatable: set[str] = set()
        self._has_answered = False

    async def forward(self, request: Message) -> None:
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
            name = params_of(request).get("name")
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
        headers = {**HEADERS, "Idempotency-Key": exchange.key, **headers_of(request, self._revision)}
        if request["method"] == "initialize":
            info = params_of(request).get("clientInfo")
            name = info.get("name") if isinstance(info, dict) else None
            self._agent = AGENT_NAME.sub(" ", name).strip()[:60] if isinstance(name, str) else ""
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
            raise NoAnswer(f"{self._http.base_url} has no {PATH}: check the URL ({error.message})")
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

    def _learn(self, request: Message, answer: Message) -> None:
        """Keep what later requests need: the revision, and the tools that can be called again."""
        result: Any = answer.get("result")
        if not isinstance(result, dict):
            return
        if request["method"] == "initialize" and isinstance(result.get("protocolVersion"), str):
            self._revision = result["protocolVersion"]
        elif request["method"] == "tools/list":
            self._repeatable |= repeatable_tools(result)


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
        progress = progress_of(message)
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
        # As JSON that a model can act on.
        content = [{"type": "text", "text": json.dumps(failure, indent=1, ensure_ascii=False)}]
        result = {"content": content, "isError": True, "resultType": "complete"}
        return {"jsonrpc": "2.0", "id": request["id"], "result": result}
    return protocol_error(request["id"], NO_ANSWER, f"{error.message} {next_step}", failure)


def _no_builderd(response: httpx2.Response) -> str:
    location = response.headers.get("location")
    said = f"redirects to {location}" if location else f"answered {response.status_code} without JSON-RPC"
    return f"{response.request.url} {said}: check the URL of the service"


Message = dict[str, Any]

PARSE_ERROR, INVALID_REQUEST, NO_ANSWER = -32700, -32600, -32000
#: Key of the revision in the ``_meta`` of each request from 2026-07-28 on.
REVISION_KEY = "io.modelcontextprotocol/protocolVersion"
#: Parameter that the header ``Mcp-Name`` repeats.
NAMES = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
PLAIN = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
ENCODED = re.compile(r"=\?base64\?.*\?=")
AGENT_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


def params_of(message: Message) -> Message:
    """Return the parameters of a message, an object."""
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def id_key(value: Any) -> str:
    """Return a key that tells the id 1 from the id "1"."""
    return json.dumps(value, sort_keys=True)


def headers_of(request: Message, negotiated: str) -> dict[str, str]:
    """Return the headers that repeat a request's fields. ``negotiated`` is the revision of ``initialize``."""
    method = request["method"]
    if method == "initialize":
        return {}
    meta = params_of(request).get("_meta")
    revision = meta.get(REVISION_KEY) if isinstance(meta, dict) else None
    if not isinstance(revision, str):
        return {"MCP-Protocol-Version": negotiated} if negotiated else {}
    headers = {"MCP-Protocol-Version": revision, "Mcp-Method": method}
    name = params_of(request).get(NAMES.get(method, ""))
    if isinstance(name, str):
        headers["Mcp-Name"] = name
    return {field: _header_value(value) for field, value in headers.items()}


def _header_value(text: str) -> str:
    """Return a text as HTTP can carry it: in base64 where it is not printable ASCII."""
    if PLAIN.fullmatch(text) and not ENCODED.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode('utf-8', 'surrogatepass')).decode()}?="


def progress_of(message: Message) -> float | None:
    """Return how far a progress notification is; None for another message."""
    progress = params_of(message).get("progress")
    is_progress = message.get("method") == "notifications/progress"
    return float(progress) if is_progress and isinstance(progress, int | float) else None


def repeatable_tools(listed: Message) -> set[str]:
    """Return the tools of a ``tools/list`` whose repeated call changes nothing: by their hints, or by a key."""
    tools = listed.get("tools")
    return {
        tool["name"]
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict) and isinstance(tool.get("name"), str) and _is_repeatable(tool)
    }


def _is_repeatable(tool: Message) -> bool:
    hints, schema = tool.get("annotations") or {}, tool.get("inputSchema") or {}
    has_key = "idempotency_key" in (schema.get("properties") or {})
    return bool(hints.get("readOnlyHint") or hints.get("idempotentHint") or has_key)


def protocol_error(request_id: Any, code: int, message: str, data: Message | None = None) -> Message:
    """Return an error of the protocol."""
    described = {"code": code, "message": message, **({"data": data} if data else {})}
    return {"jsonrpc": "2.0", "id": request_id, "error": described}
