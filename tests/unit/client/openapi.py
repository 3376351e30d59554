"""The OpenAPI document's operations, and which of them a recorded request was."""

from __future__ import annotations

import re

from tests.document import DOCUMENT

Operation = tuple[str, str]

OPERATIONS: set[Operation] = {
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
}


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{path\\\}", ".+", re.sub(r"\\\{(?!path)\w+\\\}", "[^/]+", re.escape(path))))


_PATTERNS = [(operation, _pattern(operation[1])) for operation in sorted(OPERATIONS, key=lambda one: one[1].count("{"))]


def operation_of(method: str, path: str) -> Operation | None:
    """Return the operation that a request is answered by."""
    for operation, pattern in _PATTERNS:
        if operation[0] == method and pattern.fullmatch(path):
            return operation
    return None
