"""Next steps of failures by their code, in the words of the tools. Pure."""

from __future__ import annotations

import tomllib
from pathlib import Path

from builderd.client.errors import ApiError, BuilderdError, TimedOut

_TEXTS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
NEXT, MESSAGES = _TEXTS["next"], _TEXTS["messages"]
LATER = (
    "Wait for retry_after_seconds (or 10 s), then call the tool again: deploy_code never makes a second deployment of "
    "the same files."
)


def code_of(error: BuilderdError) -> str:
    """Return the code of an error: the API's, or that of a call without an answer."""
    if isinstance(error, ApiError):
        return error.code
    return "timed_out" if isinstance(error, TimedOut) else "no_answer"
