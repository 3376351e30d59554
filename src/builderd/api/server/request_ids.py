"""The id of each request: in its answer, and in the log lines that are written while it is answered."""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import Scope

#: The id of the request that is being answered; empty outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

HEADER = "X-Request-Id"
#: An id from outside stands in log lines and headers: nothing in it may break out of them.
ACCEPTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class RequestIdFilter(logging.Filter):
    """Gives every record a ``request_id`` for the formatter: the id, or ``-`` outside of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get() or "-"
        return True


def id_of(scope: Scope) -> str:
    """Return the id that the caller gave, or a new one."""
    given = Headers(scope=scope).get(HEADER, "")
    return given if ACCEPTED.fullmatch(given) else str(uuid.uuid4())
