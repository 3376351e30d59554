"""Parser of the worker's answers, which are untrusted: a scanned file may have taken the worker over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from builderd.domain.bundles import Bundle
from builderd.domain.reviews import Hit
from builderd.domain.sources import References

#: More are not judged, and so nothing passes for them.
MAX_HITS = 20_000
MAX_TEXT = 1_000


class Unbelievable(Exception):
    """The answer is malformed."""


class ScanResult(NamedTuple):
    hits: tuple[Hit, ...]
    references: Mapping[str, References]
    hooks: tuple[str, ...]
    failure: str | None


def read_answer(content: bytes, bundle: Bundle) -> tuple[ScanResult, Sequence[str]]:
    """Parse the findings and the names of missing tools. Raises ``Unbelievable``."""
    paths = {file.path for file in bundle.files}
    try:
        answer = json.loads(content)
        reported = answer["hits"]
        hits = tuple(_hit(entry, paths) for entry in reported[:MAX_HITS])
        references = {path: _references(entry) for path, entry in answer["references"].items() if path in paths}
        hooks = tuple(path for path in answer["hooks"] if path in paths)
        failures = [_text(failure) for failure in answer["failures"]]
        if len(reported) > MAX_HITS:
            failures.append(f"the scanner found {len(reported)} things, of which {MAX_HITS} can be judged")
        skipped = [_text(name) for name in answer["skipped"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unbelievable("the scanner gave no answer that can be read") from error
    return ScanResult(hits, references, hooks, "; ".join(failures) or None), skipped


def _hit(entry: Mapping[str, Any], paths: set[str]) -> Hit:
    line = entry["line"]
    if entry["path"] not in paths or not isinstance(line, int) or isinstance(line, bool) or line < 0:
        raise ValueError("a hit outside the bundle")
    words = {name: _text(entry[name]) for name in ("rule", "text", "mark", "message", "advice")}
    return Hit(path=entry["path"], line=line, **words)


def _references(entry: Mapping[str, Any]) -> References:
    names = {name: tuple(_text(one) for one in entry[name]) for name in ("modules", "scripts", "paths", "folders")}
    return References(**names, anything=entry["anything"] is True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text was expected")
    return value[:MAX_TEXT]
