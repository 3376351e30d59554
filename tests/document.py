"""The OpenAPI document of the service with the default limits, built once: it takes half a second of CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from builderd.application import Application
from builderd.server.app import create_app
from builderd.server.operations import Operations
from builderd.tokens.limits import Limits

#: Nothing but its limits makes one service's document differ from another's. Not to be changed by a test.
DOCUMENT: dict[str, Any] = create_app(Operations(cast("Application", SimpleNamespace(limits=Limits())))).openapi()
