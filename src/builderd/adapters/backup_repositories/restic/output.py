"""Parser of restic's output: one JSON object a line, and plain lines for messages without JSON. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: A user and password in a URL, which no message may show.
_USERINFO = re.compile(r"(?<=://)[^/@\s\"']+@")
_SHOWN = 3
#: ENOSPC and EDQUOT as Go prints them, at the end of an error.
_FULL = (": no space left on device", ": disk quota exceeded")
_LINE_LENGTH = 300
#: Shorter values are no secrets, and would mask ordinary words in messages.
_SECRET_LENGTH = 6


def parse(line: str) -> Mapping[str, Any]:
    """Parse the JSON object of a line; any other line becomes ``{"text": line}``."""
    try:
        found = json.loads(line)
    except ValueError:
        return {"text": line}
    return found if isinstance(found, dict) else {"text": line}


def is_full(messages: Iterable[Mapping[str, Any]], *, during: str = "") -> bool:
    """Return True if an error says that there was no room: for a file that was restored, or in the repository.

    ``during`` is "restore" for the files, whose errors name restic's work; empty for the repository, whose error ends
    restic. An error's last words are the kernel's; names of files, which may say anything, stand before them.
    """
    kind = "error" if during else "exit_error"
    return any(
        one.get("message_type") == kind and one.get("during", "") == during and _error_text(one).lower().endswith(_FULL)
        for one in messages
    )


def find(messages: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """Return the last message of a kind, None if there is none."""
    return next((one for one in reversed(list(messages)) if one.get("message_type") == kind), None)


def explain(messages: Iterable[Mapping[str, Any]], secrets: Iterable[str] = ()) -> str:
    """Quote the last lines that restic printed about a failure, without secrets.

    If none of them is an error, quote the last lines of any kind.
    """
    printed, secrets = list(messages), list(secrets)
    errors = [text for one in printed if (text := _error_text(one))]
    errors = errors or [json.dumps(one, ensure_ascii=False) for one in printed]
    # Cut last, or a part of a secret could stand at the end.
    shown = "; ".join(dict.fromkeys(_masked(text, secrets)[:_LINE_LENGTH] for text in errors[-_SHOWN:]))
    return f'restic printed: "{shown}"' if shown else "restic printed nothing"


def _masked(text: str, secrets: Iterable[str]) -> str:
    """Return the text without secrets and unprintable characters."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, "…")
    return "".join(char if char.isprintable() else "?" for char in _USERINFO.sub("", text))


def _error_text(message: Mapping[str, Any]) -> str:
    match message.get("message_type"):
        case "error":
            error = message.get("error")
            detail = error.get("message", "") if isinstance(error, Mapping) else error
            item = message.get("item")
            text = f"{item!r}: {detail}" if item else str(detail)
        case "exit_error":
            text = str(message.get("message", ""))
        case None:
            text = str(message.get("text", ""))
        case _:
            return ""
    return " ".join(text.split())


def parse_list(text: str) -> list[Mapping[str, Any]]:
    """Parse an array and return its objects. Raises ``ValueError`` for anything else."""
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("not an array")  # noqa: TRY004
    return [one for one in found if isinstance(one, dict)]
