"""The OpenAPI document: every status that a call can be answered with, and what is in it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from builderd import __version__
from builderd.core.resources import Resources
from builderd.schemas.shape import Failure

SCHEMAS = "#/components/schemas/"
#: Shapes of requests, by name. The framework does not see them, since the bodies are read and limited apart from it.
_REQUESTS: dict[str, type[BaseModel]] = {}

#: Texts of the document.
_TEXTS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
FAILURES: dict[str, str] = _TEXTS["failures"]
#: The groups of calls, in the order in which they are shown.
TAGS = [{"name": name, "description": text} for name, text in _TEXTS["tags"].values()]
BUILDERS, WATCHING, FILES, CREDENTIALS, GATES, BACKUPS, SPENDING, TOKENS, SERVICE = (one["name"] for one in TAGS)

Parameter = dict[str, Any]
PREFER, IDEMPOTENCY_KEY, LAST_EVENT_ID = map(_TEXTS["parameters"].get, ("PREFER", "IDEMPOTENCY_KEY", "LAST_EVENT_ID"))
LOCATION, REQUEST_ID, RATE, RETRY_AFTER = map(_TEXTS["headers"].get, ("location", "request", "rate", "retry"))


def failures(*statuses: int, stages: bool = False) -> dict[int | str, dict[str, Any]]:
    """The documentation of these failures, and of those that any call may meet."""
    # Calls that need a token are rate-limited too.
    limited = {429} if 401 in statuses else set()
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": FAILURES[str(status)]}
        for status in sorted({*statuses, *limited, 500, 503})
    }
    if stages:
        documented[422]["description"] += FAILURES["stages"]
    return documented


def answers(
    status: int, model: type[BaseModel], text: str, *failed: int, later: str = "", stages: bool = False, **more: Any
) -> dict[int | str, dict[str, Any]]:
    """Document one answer in JSON, the 202 in its place (``later``), and failures: those of a call with a token."""
    documented = answer(status, model, text, **more)
    if later:
        documented |= answer(202, model, later, headers=LOCATION)
    return documented | failures(401, 403, *failed, stages=stages)


def answer(status: int, model: type[BaseModel], description: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    """The documentation of one answer in JSON."""
    return {status: {"model": model, "description": description, **more}}


def body_of(shape: type[BaseModel], example: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """The documentation of a body that ``bodies.json_body`` reads, or ``optional_json_body`` where it is not required.

    The example is one that works as it stands.
    """
    _REQUESTS[shape.__name__] = shape
    media = {"schema": {"$ref": f"{SCHEMAS}{shape.__name__}"}, "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": media}}}


def events(description: str) -> dict[str, Any]:
    """The documentation of an event stream."""
    # Without a type: what reads the document takes the stream for a text, or for the events in it.
    return {"text/event-stream": {"schema": {"description": description}}}


def install(app: FastAPI, maximum: Resources) -> None:
    """Have the app describe itself exactly, with the bounds that its operator set."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, maximum)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, maximum: Resources) -> dict[str, Any]:
    document = get_openapi(
        title="builderd",
        version=__version__,
        summary="One call turns code into a running, isolated app with a live URL.",
        routes=app.routes,
        tags=TAGS,
    )
    schemas = document["components"]["schemas"]
    schemas.update(_request_schemas(maximum))
    for path in document["paths"].values():
        for operation in path.values():
            _complete(operation)
    # The framework's own shapes of errors, which this service never answers.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _request_schemas(maximum: Resources) -> Mapping[str, Any]:
    pairs = [(_REQUESTS[name], "validation") for name in sorted(_REQUESTS)]
    _, found = models_json_schema(pairs, ref_template=f"{SCHEMAS}{{model}}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = found["$defs"]
    for name, field in schemas["Resources"]["properties"].items():
        field["maximum"] = getattr(maximum, name)
    return schemas


def _complete(operation: dict[str, Any]) -> None:
    summary, _, _ = operation["description"].partition("\n")
    operation["summary"] = summary.removesuffix(".")
    answers = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]
    counted = RATE if "429" in answers else {}
    for status, documented in answers.items():
        waits = RETRY_AFTER if status in ("409", "429", "503") else {}
        documented["headers"] = {**REQUEST_ID, **counted, **waits, **documented.get("headers", {})}
