"""Own patterns, in RE2's syntax: run time proportional to the text's length for any text."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import re2

from builderd.code.sources import Kind

#: Lines of JavaScript this long were written by a program: odd things in them are mostly data. Since an attacker can
#: write such a line too, a rule that blocks elsewhere applies there.
MINIFIED = 1_000
MINIFIED_RULE = "RSK-minified"
#: Strings are first looked through together, so many characters at a time.
PORTION = 64_000
#: A line that is nothing but a comment.
COMMENTS = {
    Kind.JAVASCRIPT: re.compile(r"\s*(?://|\*(?!/)(?:\s|$)|/\*(?:(?!\*/).)*(?:\*/\s*)?$)"),
    Kind.SCRIPT: re.compile(r"\s*(?:#(?!!)|//|\*(?!/)(?:\s|$)|/\*(?:(?!\*/).)*(?:\*/\s*)?$)"),
}

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


class Pattern(NamedTuple):
    """``kinds`` are those of the files; None: any code, and the strings of Python code."""

    rule: str
    kinds: frozenset[Kind] | None
    regex: re2._Regexp


_FETCH = r"\b(?:curl|wget|Invoke-WebRequest|iwr)\b"
_PIECES = {
    "FETCH": _FETCH,
    "SHELL": r"(?:sudo\s+(?:-\w+\s+)*)?(?:/\S*/)?(?:ba|z|da|k)?sh\b",
    "DECODE": r"(?:atob|unescape|Buffer\s*\.\s*from)",
    # The function, and no method of that name but the global object's.
    "EVAL": r"(?:(?:^|[^.\w$])|\b(?:window|globalThis|global|self|this)\s*\.\s*)eval",
    "REQUEST_JS": r"\b(?:req|request|ctx\.request|ctx)\s*\.\s*(?:query|body|params|headers|cookies)\b",
    "GET_JS": r"(?:fetch|axios(?:\s*\.\s*\w+)?|got|https?(?:['\"`]\s*\))?\s*\.\s*get|request)\s*\(",
}


def _read_patterns() -> Iterator[Pattern]:
    """Yield the patterns of ``rules/patterns.toml``, with the pieces above in place of ``<NAME>``."""
    for entry in tomllib.loads(Path(__file__).with_name("rules").joinpath("patterns.toml").read_text())["pattern"]:
        regex = re.sub(r"<([A-Z_]+)>", lambda found: _PIECES[found[1]], entry["regex"])
        kinds = frozenset(Kind[name.upper()] for name in entry.get("kinds", ())) or None
        yield Pattern(entry["rule"], kinds, re2.compile(regex, _OPTIONS))


PATTERNS = tuple(_read_patterns())

#: U+202A to U+202E and U+2066 to U+2069, which reorder what is shown (CVE-2021-42574).
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")

FETCHES = re2.compile(rf"(?i){_FETCH}|\bfetch\s*\(|https?\s*\.\s*(?:get|request)\b|\baxios\b|\bgot\b", _OPTIONS)
RUNS = re2.compile(
    r"(?i)\bexec(?:Sync|File|FileSync)?\s*\(|\bspawn(?:Sync)?\s*\(|\beval\s*\(|\bnew\s+Function\b|chmod", _OPTIONS
)
#: A hook's command that fetches and continues to run something, or hides what it runs.
HOOK = re2.compile(
    rf"(?i){_FETCH}[^\n]*(?:\||&&|;|>)|\bnode\s+(?:-e|--eval|-p)\b[^\n]*(?:https?|eval|child_process|Buffer)|base64\s+(?:-d|--decode)[^\n]*\||/dev/tcp/",
    _OPTIONS,
)


class Match(NamedTuple):
    rule: str
    line: int


def matches(kind: Kind, text: str) -> Iterator[Match]:
    """Yield the matches of all patterns in a text, except in comments."""
    lines = text.split("\n")
    for pattern in PATTERNS:
        if pattern.kinds is not None and kind not in pattern.kinds:
            continue
        for found in pattern.regex.finditer(text):
            # RE2 cannot look behind, so the match may begin with a line break.
            blanks = len(found.group()) - len(found.group().lstrip())
            line = text.count("\n", 0, found.start() + blanks) + 1
            rule: str | None = pattern.rule
            if kind is Kind.JAVASCRIPT and len(lines[line - 1]) > MINIFIED:
                rule = MINIFIED_RULE if pattern.rule.startswith("MAL-") else None
            if rule and not COMMENTS[kind].match(lines[line - 1]):
                yield Match(rule, line)


def in_strings(strings: Iterable[tuple[int, str]]) -> Iterator[Match]:
    """Yield the matches in strings of Python code, as (line, text) with escapes resolved."""
    for portion in _portions(strings):
        # What a pattern finds in one of them it finds in all of them together: their ends are no part of a word.
        together = "\n".join(text for _, text in portion)
        for pattern in PATTERNS:
            if pattern.kinds is None and pattern.regex.search(together):
                yield from (Match(pattern.rule, line) for line, text in portion if pattern.regex.search(text))


def _portions(strings: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    portion: list[tuple[int, str]] = []
    size = 0
    for line, text in strings:
        if len(text) < 8:
            continue
        # Half of a surrogate pair is no text to RE2, and common in Python's patterns.
        portion.append((line, text.encode(errors="replace").decode()))
        size += len(text)
        if size > PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def reordered(text: str) -> Iterator[int]:
    """Yield the lines with bidirectional control characters, except in minified code, where they are data."""
    if not BIDI.search(text):
        return
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) <= MINIFIED and BIDI.search(line):
            yield number
