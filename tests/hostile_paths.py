"""Identifiers and paths that try to lead a client's request to another resource, and where a request leads."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from typing import Any, get_args, get_origin
from urllib.parse import unquote

import httpx2
from tests.unit.client.openapi import Operation, operation_of

from builderd.schemas.builders import Builder

OWN = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
HOSTILE = (
    "",
    ".",
    "..",
    f"../{OTHER}",
    f"../../{OTHER}",
    f"../../{OTHER}/files/x",
    f"../builders/{OTHER}",
    f"../../../builders/{OTHER}",
    "../../../credentials/prod",
    "../../../../api/v1/tokens",
    "/api/v1/tokens",
    f"x/../../../{OTHER}/files/x",
    "a//b",
    "a/./b",
    "x/deliveries",
    "x/restore",
    "..\\..",
    "%2e%2e/tokens",
    "..%2ftokens",
    "x?purge=true",
    "x#",
    "\0",
)


def strays(requests: Collection[httpx2.Request], operations: Collection[Operation | None] | None) -> list[str]:
    """Return the requests that lead elsewhere than to these operations, None for any, of the own builder."""
    return [f"{one.method} {one.url}" for one in requests if not _stays(one, operations)]


def _stays(request: httpx2.Request, operations: Collection[Operation | None] | None) -> bool:
    # A server or a proxy may decode a path before it resolves it.
    path = unquote(request.url.raw_path.partition(b"?")[0].decode())
    # An upload is named by the end of its URL.
    is_clean = path == posixpath.normpath(path) and (OTHER not in path or "/uploads/" in path)
    return is_clean and (operations is None or operation_of(request.method, path) in operations)


def builder() -> dict[str, Any]:
    """The own builder, as the service answers it."""
    return {
        **{name: _empty(field.annotation) for name, field in Builder.model_fields.items()},
        **dict.fromkeys(("created_at", "updated_at"), "2026-01-31T12:00:00.000001Z"),
        "uuid": OWN,
        "name": "own",
        "status": "running",
        "version": 2,
        "job_type": "always_on",
        "env": {},
        "env_file_values": {},
        "detected": None,
        "resources": {"cpu": 1, "memory": 1, "disk": 1},
        "visibility": "public",
        "credentials": [],
        "cost": {"currency": "EUR", "hourly_rate": 0, "runtime_hours": 0, "cost": 0},
    }


def _empty(kind: Any) -> Any:
    if (made := get_origin(kind)) in (dict, list):
        return made()
    return None if type(None) in get_args(kind) else 0 if kind is int else False if kind is bool else ""


class OneBuilder:
    """Service that has the own builder alone: all other calls find nothing. ``requests`` are those it got."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if request.method == "GET" and request.url.path == "/api/v1/builders":
            return httpx2.Response(200, json={"success": True, "data": [builder()], "meta": {"total": 1}})
        if request.method == "GET" and request.url.path == f"/api/v1/builders/{OWN}":
            return httpx2.Response(200, json={"success": True, "data": builder()})
        return httpx2.Response(404, json={"success": False, "code": "not_found", "message": "nothing"})
