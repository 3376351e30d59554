"""Messages of JSON-RPC 2.0 that pass between an agent and a service: what HTTP needs of them. Pure."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

Message = dict[str, Any]

PARSE_ERROR, INVALID_REQUEST, NO_ANSWER = -32700, -32600, -32000
#: Key of the revision in the ``_meta`` of each request from 2026-07-28 on.
REVISION_KEY = "io.modelcontextprotocol/protocolVersion"
#: Parameter that the header ``Mcp-Name`` repeats.
NAMES = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
PLAIN = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
ENCODED = re.compile(r"=\?base64\?.*\?=")
AGENT_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


class Malformed(ValueError):
    """A line is no message; ``code`` is that of JSON-RPC."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def parse(line: bytes) -> Message:
    """Return the message of a line. Raises ``Malformed``."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(PARSE_ERROR, f"The line is not valid JSON: {error}") from error
    if not isinstance(message, dict):
        raise Malformed(INVALID_REQUEST, "A line must be one JSON-RPC object: send batches message by message.")
    return message


def params_of(message: Message) -> Message:
    """Return the parameters of a message, an object."""
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def meta_of(message: Message) -> Message:
    """Return the ``_meta`` of a request."""
    meta = params_of(message).get("_meta")
    return meta if isinstance(meta, dict) else {}


def is_request(message: Message) -> bool:
    """Return whether a message wants an answer: it has a method and an id."""
    return isinstance(message.get("method"), str) and message.get("id") is not None


def id_key(value: Any) -> str:
    """Return a key that tells the id 1 from the id "1"."""
    return json.dumps(value, sort_keys=True)


def headers_of(request: Message, negotiated: str) -> dict[str, str]:
    """Return the headers that repeat a request's fields. ``negotiated`` is the revision of ``initialize``."""
    method = request["method"]
    if method == "initialize":
        return {}
    revision = meta_of(request).get(REVISION_KEY)
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


def agent_name(initialize: Message) -> str:
    """Return the agent's name, which a request of 2025-11-25 has in ``initialize`` alone, or ""."""
    info = params_of(initialize).get("clientInfo")
    name = info.get("name") if isinstance(info, dict) else None
    return AGENT_NAME.sub(" ", name).strip()[:60] if isinstance(name, str) else ""


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


def error(request_id: Any, code: int, message: str, data: Message | None = None) -> Message:
    """Return an error of the protocol."""
    described = {"code": code, "message": message, **({"data": data} if data else {})}
    return {"jsonrpc": "2.0", "id": request_id, "error": described}


def failed_call(request_id: Any, failure: Message) -> Message:
    """Return the result of a tool's call that failed, as JSON that a model can act on."""
    content = [{"type": "text", "text": json.dumps(failure, indent=1, ensure_ascii=False)}]
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "result": {"content": content, "isError": True, "resultType": "complete"},
    }
