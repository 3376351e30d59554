"""Level of a log line, read from its text: the formats of the usual loggers, and exceptions that nobody caught.

The stream says nothing of it: Python's ``logging``, gunicorn, uvicorn and Node's ``console.warn`` write all to stderr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from builderd.sandboxes.model import LogLine, LogStream


class Level(StrEnum):
    """Level of a line; a line that names none has none."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_WORDS = {
    Level.DEBUG: "TRACE TRCE DEBUG DBUG VERBOSE FINE D",
    Level.INFO: "INFO INFORMATION NOTICE LOG I",
    Level.WARNING: "WARN WARNING W",
    Level.ERROR: "ERROR ERR FAIL SEVERE CRITICAL CRIT FATAL ALERT EMERG EMERGENCY PANIC E F C",
}
_LEVELS: Mapping[str, Level] = {word: level for level, words in _WORDS.items() for word in words.split()}

#: Control sequences of terminals: colours, and movements of the cursor (ECMA-48).
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
#: Characters of a line in which a field of JSON or logfmt, and those in which the prefix of a line is looked for.
_FIELDS, _PREFIX, _TOKENS = 1_500, 160, 10
#: The level in an object of JSON; of loguru's it is an object with a name.
_JSON = re.compile(
    r'"(?:level|severity|severityText|levelname|level_name|loglevel|log\.level|lvl|@l)"\s*:\s*'
    r'(?:\{[^{}]*"name"\s*:\s*)?"?(\w+)',
    re.IGNORECASE,
)
_LOGFMT = re.compile(r'(?:^|\s)(?:level|lvl|severity)="?(\w+)', re.IGNORECASE)
#: Ruby's Logger (``E, [2026-…``) and glog (``E1203 08:…``).
_LETTER = re.compile(r"([DIWEFC])(?:, \[|\d{4} \d\d:)")
_FAILED = re.compile(
    r"Traceback \(most recent call last\)|Exception in |Unhandled |Uncaught |thread '.*' panicked|panic: |Segmentation "
    r"fault|PHP (?:Fatal|Parse) error|npm (?:ERR!|error)|\S+: No module named |error\[\w+\]|"
    r"[\w.$:]*(?:Error|Exception)(?: \[\w+\])?(?::|$)"
)
_WARNED = re.compile(r"npm (?:warn|WARN)|(?:\S+:\d+: |\(node:\d+\) (?:\[\w+\] )?)?\w*Warning: ")
#: A word of a prefix, with what stands around it.
_WORD = re.compile(r"([\[(<|*:-]*)([A-Za-z]+)(?=$|[\])>|:/,*-])(.?)")
#: What else stands before a level: dates and times, process ids, and what is in brackets.
_BEFORE = re.compile(r".*\d.*|[\[(<].*|.*[\])>:|]|\W+|[AP]M|UTC|PHP|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec")


class LevelReader:
    """Reads the levels of lines in their order, those of each stream by themselves."""

    def __init__(self) -> None:
        self._last: dict[LogStream, Level | None] = {}

    def read(self, line: LogLine) -> Level | None:
        """Return the level of the next line, None where it names none."""
        level = self._last[line.stream] = level_of(line.text, self._last.get(line.stream))
        return level


def level_of(text: str, before: Level | None = None) -> Level | None:
    """Return the level that a line names, None where it names none.

    An indented line goes on with the one before, whose level is ``before``: a stack trace is of one level.
    """
    text = ANSI.sub("", text) if "\x1b" in text else text
    if not text or text[0].isspace():
        return before
    if text[0] == "{":
        return _value(_JSON.search(text[:_FIELDS]))
    head = text[:_PREFIX]
    if letter := _LETTER.match(head):
        return _LEVELS[letter[1]]
    if _WARNED.match(head):
        return Level.WARNING
    if _FAILED.match(head):
        return Level.ERROR
    return _prefixed(head) or _value(_LOGFMT.search(text[:_FIELDS]))


def _value(field: re.Match[str] | None) -> Level | None:
    """Return the level of a field: a word, a number of pino and bunyan, or one of syslog (RFC 5424)."""
    if field is None:
        return None
    if not field[1].isdecimal():
        return _LEVELS.get(field[1].upper())
    number = int(field[1][:4])
    bounds = ((50, Level.ERROR), (40, Level.WARNING), (30, Level.INFO), (8, Level.DEBUG), (7, Level.DEBUG))
    syslog = ((5, Level.INFO), (4, Level.WARNING), (0, Level.ERROR))
    return next(level for least, level in bounds + syslog if number >= least)


def _prefixed(head: str) -> Level | None:
    """Return the level that stands at the beginning, or after dates, names and numbers.

    A word in capitals counts, and one of small letters in brackets, before a colon or after a time.
    """
    tokens = head.split()[:_TOKENS]
    is_after_time = False
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        word = _WORD.match(token)
        level = _LEVELS.get(word[2].upper()) if word and len(word[2]) > 1 else None
        if word and level and (word[2].isupper() or word[1] or word[3] in tuple("]):|>") or is_after_time):
            return level
        # A logger's name is followed by a dash or a bar.
        if not _BEFORE.fullmatch(token) and following not in ("-", "|", "--", ":"):
            return None
        is_after_time = ":" in token and token[-1].isalnum()
    return None
