"""State of one review: its files, what was found in them, and the findings as the service gets them."""

from __future__ import annotations

import hashlib
import re
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from builderd.code.sources import Kind, References
from builderd.review.scanners.tripwire.secret_rules import Secret, masked


class Words(NamedTuple):
    """``message`` says what is there, ``advice`` what to do."""

    message: str
    advice: str


_ACCEPT = "If it is meant, accept the finding with a reason"
_REMOVE = "Remove it; if it is no attack, ask an admin to accept the finding"

CATALOGUE = {
    rule: Words(message, advice.format(accept=_ACCEPT, remove=_REMOVE))
    for rule, (message, advice) in tomllib.loads((Path(__file__).parent / "rules/catalogue.toml").read_text()).items()
}


VALUES = re.compile(r"""=(?:'[^']*'|"[^"]*"|[^\s;'"]+)+""")
QUOTED = re.compile(r"[\"'`][^\"'`]*[\"'`]")
#: Characters of a line that a finding shows.
MAX_TEXT = 200
#: What a tool may take of the review's time.
SHARE = 0.8


class Source(NamedTuple):
    path: str
    kind: str
    content: bytes


@dataclass(slots=True)
class Review:
    """State of one review."""

    sources: Sequence[Source]
    paths: Sequence[str]
    deadline: float
    texts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    secrets: dict[str, list[Secret]] = field(default_factory=lambda: defaultdict(list))
    raw: list[tuple[str, str, int, str, str, bool]] = field(default_factory=list)
    references: dict[str, References] = field(default_factory=dict)
    hooks: set[str] = field(default_factory=set)
    trees: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, rule: str, path: str, line: int, *words: str, hidden: bool = False) -> None:
        """``hidden``: nothing in quotes on that line is shown."""
        message, advice = words or CATALOGUE[rule]
        self.raw.append((rule, path, line, message, advice, hidden))

    def add_flow(self, rule: str, path: str, line: int, trace: Sequence[Sequence[Any]]) -> None:
        """Add a hit whose message shows the way of the data: source, steps, sink."""
        words = CATALOGUE[rule]
        steps = " → ".join(dict.fromkeys(f"{where}:{number}" for where, number in trace))
        message = f"{words.message}: {steps}" if "→" in steps else words.message
        self.add(rule, path, line, message, words.advice)

    def script(self, path: str) -> str | None:
        """Return the text of a file that a command names: by its path, or by the end of it."""
        near = (text for known, text in self.texts.items() if path and known.endswith(f"/{path}"))
        return self.texts[path] if path and path in self.texts else next(near, None)

    def left(self) -> float:
        return max(0.1, (self.deadline - time.monotonic()) * SHARE)

    def of(self, *kinds: Kind) -> list[Source]:
        return [source for source in self.sources if source.kind in kinds]


def reported(review: Review) -> Iterator[dict[str, Any]]:
    """Yield each finding once, with its line: secrets in it are masked, and no character of it controls a terminal."""
    contents = {source.path: source.content for source in review.sources}
    seen: set[tuple[str, str, int]] = set()
    for rule, path, line, message, advice, hidden in review.raw:
        if (rule, path, line) in seen:
            continue
        seen.add((rule, path, line))
        lines = review.lines.get(path, [])
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        is_setting = not path and text.startswith("export ")
        # A finding on a whole file is bound to that content.
        marked = text.encode(errors="surrogatepass") if line else contents.get(path, b"")
        mark = hashlib.sha256(marked).hexdigest()[:32]
        shown = masked(text, [secret.value for secret in review.secrets.get(path, ())])
        if is_setting:  # values of ``env``, which nobody is shown
            shown = VALUES.sub("=…", shown)
        if hidden:
            shown = QUOTED.sub("…", shown)
        visible = (char if char.isprintable() or char == "\t" else f"<U+{ord(char):04X}>" for char in shown)
        yield {
            "rule": rule,
            "path": path,
            "line": line,
            "text": "".join(visible)[:MAX_TEXT],
            "mark": mark,
            "message": message,
            "advice": advice,
        }
