"""What restic prints, understood: one JSON object a line, and plain lines where it has no JSON for. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: A user and password in a URL, which no message may show.
_USERINFO = re.compile(r"(?<=://)[^/@\s\"']+@")
_SHOWN = 3
_LINE_LENGTH = 300


def parse(line: str) -> Mapping[str, Any]:
    """The object of a line; a line that is none becomes ``{"text": line}``."""
    try:
        found = json.loads(line)
    except ValueError:
        return {"text": line}
    return found if isinstance(found, dict) else {"text": line}


def find(messages: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The last message of a kind."""
    return next((one for one in reversed(list(messages)) if one.get("message_type") == kind), None)


def explain(messages: Iterable[Mapping[str, Any]]) -> str:
    """What went wrong, in restic's own last words, without secrets."""
    told = [text for one in messages if (text := _complaint(one))]
    shown = "; ".join(dict.fromkeys(told[-_SHOWN:])) or "restic gave no reason"
    return _USERINFO.sub("", shown)


def _complaint(message: Mapping[str, Any]) -> str:
    match message.get("message_type"):
        case "error":
            error = message.get("error")
            words = error.get("message", "") if isinstance(error, Mapping) else error
            item = message.get("item")
            text = f"{item!r}: {words}" if item else str(words)
        case "exit_error":
            text = str(message.get("message", ""))
        case None:
            text = str(message.get("text", ""))
        case _:
            return ""
    return " ".join(text.split())[:_LINE_LENGTH]


def parse_list(text: str) -> list[Mapping[str, Any]]:
    """The objects of an array. Raises ``ValueError`` for anything else."""
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("not an array")  # noqa: TRY004
    return [one for one in found if isinstance(one, dict)]
