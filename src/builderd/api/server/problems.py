"""Problems: every error of a request is answered in the envelope."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from builderd.api.server.answers import Answer, failure
from builderd.domain.errors import (
    BuilderdError,
    EngineUnavailable,
    MachineFault,
    NotFound,
    StoreUnavailable,
    ValidationFailed,
    machine_fault,
)
from builderd.schemas.v1.shape import Failure, field_errors_in


class MethodNotAllowed(BuilderdError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


def install(app: FastAPI) -> None:
    """Have the app answer every error in the envelope."""
    app.add_exception_handler(BuilderdError, _coded)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _routing)


def unexpected(error: Exception, request_id: str) -> Answer:
    """Answer 503 for a fault of the machine, else 500; the log has the exception under the same request id."""
    fault = machine_fault(error)
    if fault is not None:
        return failure(fault, request_id)
    message = f"Something went wrong in the service. Its log tells more under the request id {request_id}."
    body = Failure(code=BuilderdError.code, message=message)
    return Answer(500, body.model_dump(mode="json"))


def stopping() -> Answer:
    """Return the answer for calls that still wait for an outcome when the service ends."""
    message = "The service is stopping. What was begun goes on: look at it, or repeat the call with its retry key."
    return failure(EngineUnavailable(message, retry_after=5))


def not_found() -> Answer:
    """Return the answer for an unknown path."""
    return failure(NotFound("There is no such call: GET /docs shows those that there are."))


async def _coded(request: Request, error: Exception) -> Response:
    """Return the response to an error of the contract."""
    assert isinstance(error, BuilderdError)
    in_log = isinstance(error, MachineFault | StoreUnavailable)
    return failure(error, request.state.request_id if in_log else None).response()


async def _parameters(_: Request, error: Exception) -> Response:
    """Query parameters that break a rule; their paths are their names alone, without ``query.``"""
    assert isinstance(error, RequestValidationError)
    return failure(ValidationFailed(field_errors_in(error.errors(), skip=1))).response()


async def _routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        return not_found().response()
    methods = ", ".join(sorted(allowed_methods(request)))
    response = failure(MethodNotAllowed(f"{request.method} is not for this path, which takes {methods}.")).response()
    response.headers["Allow"] = methods
    return response


def allowed_methods(request: Request) -> set[str]:
    """The methods of all routes of this path; the framework's own answer names those of the first alone."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    # /builders/spending is no builder, though it looks like one's path.
    exact = [route for route in matching if getattr(route, "path", "") == request.url.path]
    methods = {method for route in exact or matching for method in getattr(route, "methods", None) or ()}
    return methods | {"HEAD"} if "GET" in methods else methods
