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
#: Data of the repository that cannot be read. A file's name can say this too, which costs its tenant a check.
_DAMAGE = re.compile(
    "ciphertext verification failed|invalid data returned|could not be loaded; the repository could be damaged"
)
#: Data of the parent snapshot that the index does not list, since a repair found it lost.
_PARENT_LOST = re.compile("storing the file again$|is not known; the repository could be damaged")
#: Lines of ``check`` on snapshots whose data the index does not list. New backups are whole nevertheless.
_LOST = re.compile("error for tree |.* not found in (index|repository)$|The repository is damaged and must be repaired")
_SNAPSHOT = re.compile("snapshot ([0-9a-f]{8}) of ")
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


def is_damaged(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Return True if an error says that data of the repository cannot be read."""
    return any(_DAMAGE.search(_error_text(one)) for one in messages)


def is_parent_lost(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Return True if an error says that data of the parent snapshot is lost; the file was stored again."""
    return any(_PARENT_LOST.search(_error_text(one)) for one in messages)


def needs_repair(message: Mapping[str, Any]) -> bool:
    """Return True if a message of ``check`` tells of damage other than data that an earlier repair found lost."""
    match message.get("message_type"):
        case "summary":
            return bool(message.get("broken_packs") or message.get("suggest_repair_index"))
        case "error":
            return not _LOST.match(str(message.get("message", "")).strip())
        case _:
            return False


class IncompleteSnapshots:
    """Reader of the output of ``repair snapshots --dry-run``. ``found``: short ids of the snapshots that lack data.

    Names of files in it are quoted and indented.
    """

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._snapshot = ""

    def read(self, message: Mapping[str, Any]) -> None:
        line = str(message.get("text", ""))
        if begun := _SNAPSHOT.match(line):
            self._snapshot = begun[1]
        elif line.startswith("would ") and self._snapshot:
            self.found.add(self._snapshot)
            self._snapshot = ""


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
            detail = error.get("message", "") if isinstance(error, Mapping) else message.get("message", error)
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
