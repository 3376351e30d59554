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
        encoded = sorted((form.encode("utf-8", "surrogatepass") for form in forms), key=len, reverse=True)
        self._bytes = re.compile(b"|".join(map(re.escape, encoded))) if forms else None
        #: Bytes of the longest form.
        self._longest = len(encoded[0]) if encoded else 0

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
        """Return bytes without secrets."""
        return self._bytes.sub(MASK.encode(), content) if self._bytes else content

    def beginning(self, content: bytes) -> tuple[bytes, bytes]:
        """Return the masked beginning of bytes that go on, and the rest, in which a secret may have begun."""
        if self._bytes is None:
            return content, b""
        safe, position, parts = len(content) - self._longest + 1, 0, list[bytes]()
        for found in self._bytes.finditer(content):
            if found.start() >= safe:
                break
            parts += [content[position : found.start()], MASK.encode()]
            position = found.end()
        end = max(position, safe)
        return b"".join([*parts, content[position:end]]), content[end:]


def _forms(value: str) -> Iterator[str]:
    """Yield the value as it may appear: whole, line by line as a log has it, in JSON and in a URL."""
    for part in {value, *value.splitlines()}:
        if len(part.strip()) >= MIN_LENGTH:
            yield from (part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1], quote(part, safe=""))
