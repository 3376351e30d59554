"""Masking of secrets in text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

#: Text that stands in place of a secret.
MASK = "[credential masked]"
#: Shorter values are left: they occur in ordinary text, such as `true` and `8080`.
MIN_LENGTH = 6


class Masker:
    """Replacement of secret values in texts, JSON documents and bytes."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def document(self, value: Any) -> Any:
        """Return a JSON value with all its strings masked; names of fields stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.document(one) for one in value]
        if isinstance(value, dict):
            return {name: self.document(one) for name, one in value.items()}
        return value

    def data(self, content: bytes) -> bytes:
        """Return bytes without secrets; those that are no UTF-8 stay as they are."""
        return self.text(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _forms(value: str) -> Iterator[str]:
    """Yield the value as it may appear: whole, line by line as a log has it, in JSON and in a URL."""
    for part in {value, *value.splitlines()}:
        if len(part.strip()) >= MIN_LENGTH:
            yield from (part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1], quote(part, safe=""))
