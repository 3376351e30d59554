"""Classes of harm in any language: what comes together in one file, once strings are written as they will be.

A class needs all of its parts within a number of lines (``window``) and none of its excuses. It says less than a flow
of data, and holds for every language alike.
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import re2

from builderd.review.scanners.tripwire.patterns import MINIFIED

_TABLES = tomllib.loads(Path(__file__).with_name("rules").joinpath("classes.toml").read_text())
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
#: Lines within which a class's parts lie, without a number of its own; characters of a line that count as one.
WINDOW, WIDTH = 400, 160
#: Endings of scripts that a program may have written.
SCRIPTS = (".js", ".mjs", ".cjs")
#: Endings of files that are mostly pickles.
PICKLES = (".pkl", ".pickle", ".joblib", ".model", ".sav")
#: Parts of one class that are looked at in one file, and characters of a string that is decoded.
MAX_PLACES, MAX_STRING = 200, 4_000
#: Names of functions that nobody writes in another form without a purpose.
_HIDDEN = frozenset(_TABLES["hidden"].split())
#: Functions of a pickle that run code when it is loaded, by module.
_PICKLED = re.compile(
    r"^(?:os|posix|nt|subprocess|pty|socket|runpy|importlib|ctypes|sys|commands|webbrowser|shutil|asyncio)(?:\.|\s)|^(?:builtins|__builtin__)\s(?:eval|exec|compile|__import__|open|getattr)$"
)
_STRING = re.compile(r"'((?:[^'\\\n]|\\.){0,4000})'|\"((?:[^\"\\\n]|\\.){0,4000})\"|`((?:[^`\\\n]|\\.){0,4000})`")
#: Between two strings that are put together.
_BETWEEN = (("", "+", ".", ".."), (",",))
_NUMBERS = re.compile(r"(?:\b(?:0x[0-9a-fA-F]{2}|\d{2,3})\b[\s,]{0,4}){4,}")
_BASE64, _HEX = re.compile(r"[A-Za-z0-9+/_-]{4,}={0,2}"), re.compile(r"(?:[0-9a-fA-F]{2}){3,}")
_PICKLE = re.compile(r"(?:gA[I-X]|Y[w-z0-9+/])[A-Za-z0-9+/]{17,}={0,2}")
_ADDRESS = re.compile(r"(?:https?|wss?|ftp|tcp)://[\w.\[\]-]+")
#: Words of a list, in Ruby.
_WORDS = re.compile(r"%[wi][\[({]([^\])}]{1,400})[\])}]")
_COMMENT = re.compile(r"\s*(?:#(?!!)|//|/?\*|--|<!--)")


class Class(NamedTuple):
    rule: str
    #: None: all files of code.
    files: re.Pattern[str] | None
    all: Sequence[re2._Regexp]
    none: Sequence[re2._Regexp]
    window: int


def _compiled(text: str) -> re2._Regexp:
    while (found := re.search(r"<([A-Z_]+)>", text)) is not None:
        text = text.replace(found[0], f"(?:{_TABLES['pieces'][found[1]]})")
    return re2.compile(text, _OPTIONS)


def _read_class(entry: Mapping[str, Any]) -> Class:
    files = re.compile(entry["files"]) if "files" in entry else None
    parts, excuses = ([_compiled(one) for one in entry.get(name, ())] for name in ("all", "none"))
    return Class(entry["rule"], files, parts, excuses, entry.get("window", WINDOW))


_CLASSES = tuple(map(_read_class, _TABLES["class"]))


def find(path: str, text: str, *, is_code: bool = True) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield (rule, lines of its parts) of each class in a file."""
    lines: list[str] = []
    hidden: list[tuple[str, int]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if _COMMENT.match(line):
            lines.append("")
            continue
        decoded = [one for one in _decoded(line[: 2 * MAX_STRING]) if one and one not in line]
        hidden += [("MAL-hidden-name", number) for one in decoded if one in _HIDDEN]
        hidden += [("RSK-hidden-address", number) for one in decoded if _ADDRESS.match(one) and one[:6] not in line]
        # Short names of a minifier mean many things: such a line is left to the flow of data.
        lines.append("" if len(line) > MINIFIED and path.endswith(SCRIPTS) else " ".join((line, *decoded)))
    yield from ((rule, [number]) for rule, number in hidden)
    # Half of a surrogate pair is no text to RE2.
    view = "\n".join(lines).encode(errors="replace").decode()
    # A long line, which a program wrote, counts as many.
    starts: list[int] = []
    numbers: list[int] = []
    at = 0
    for number, line in enumerate(lines, 1):
        parts = range(at, at + max(len(line), 1), WIDTH)
        starts += parts
        numbers += [number] * len(parts)
        at += len(line) + 1
    for one in _CLASSES:
        if (is_code if one.files is None else one.files.search(path)) and (places := _together(one, view, starts)):
            yield one.rule, [numbers[place - 1] for place in places]


def _together(one: Class, view: str, starts: Sequence[int]) -> Sequence[int]:
    """Return a place of each part where all come together, counted from 1, or none."""
    found: list[list[int]] = []
    for regex in one.all:
        places = [bisect_right(starts, match.start()) for match in islice(regex.finditer(view), MAX_PLACES)]
        if not places:
            return ()
        found.append(places)
    if any(regex.search(view) for regex in one.none):
        return ()
    for at in found[-1]:
        nearest = [min(places, key=lambda place: abs(place - at)) for places in found]
        if max(nearest) - min(nearest) <= one.window:
            return nearest
    return ()


def _decoded(line: str) -> Iterator[str]:
    """Yield strings as they are when they are used: put together, and out of their encodings."""
    strings = list(_STRING.finditer(line))
    texts = [next(filter(None, found.groups()), "") for found in strings]
    for text in texts:
        plain = _unescaped(text)
        if plain != text:
            yield plain
        yield from _opened(plain)
    for between in _BETWEEN:
        joined = ""
        for index, (found, text) in enumerate(zip(strings, texts, strict=True)):
            if index and line[strings[index - 1].end() : found.start()].strip() in between:
                joined += text
                continue
            yield joined
            joined = text
        yield joined
    yield from ("".join(found[1].split()) for found in _WORDS.finditer(line))
    for numbers in _NUMBERS.finditer(line):
        codes = [int(one, 0) for one in re.findall(r"0x[0-9a-fA-F]{2}|[1-9]\d{1,2}", numbers[0])]
        if all(9 <= code < 127 for code in codes):
            yield "".join(map(chr, codes))


def _opened(text: str) -> Iterator[str]:
    if not 4 <= len(text) <= MAX_STRING:
        return
    if len(text) > 3:
        yield text[::-1]
    if _HEX.fullmatch(text):
        yield from _printable(bytes.fromhex(text))
    elif _BASE64.fullmatch(text) and len(text) % 4 == 0:
        try:
            yield from _printable(base64.b64decode(text.replace("-", "+").replace("_", "/")))
        except (ValueError, binascii.Error):
            return


def _printable(content: bytes) -> Iterator[str]:
    if content.isascii() and (text := content.decode()).isprintable():
        yield text


def _unescaped(text: str) -> str:
    return re.sub(
        r"\\(?:x([0-9a-fA-F]{2})|u\{?([0-9a-fA-F]{4})\}?|([0-7]{3}))",
        lambda found: chr(int(found[1] or found[2] or "0", 16) if not found[3] else int(found[3], 8)),
        text,
    )


def pickled(path: str, content: bytes) -> Iterator[str]:
    """Yield the functions that run code when a pickle, or one in base64, is loaded. Nothing of it is loaded."""
    blobs = [content] if content[:1] == b"\x80" or path.endswith(PICKLES) else []
    if not blobs:
        text_of_all = content[:1_000_000].decode("latin-1")
        whole = "".join(text_of_all.split())
        # A file of nothing else may have it in lines.
        for found in _PICKLE.finditer(whole if _BASE64.fullmatch(whole) else text_of_all):
            text = found[0]
            with_padding = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
            try:
                blobs.append(base64.b64decode(with_padding))
            except (ValueError, binascii.Error):
                continue
    for blob in blobs:
        yield from _called(blob)


def _called(blob: bytes) -> Iterator[str]:
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(blob[:5_000_000]):
            if opcode.name in ("GLOBAL", "INST") and _PICKLED.search(str(argument)):
                yield str(argument)
            elif opcode.name == "STACK_GLOBAL" and _PICKLED.search(" ".join(strings[-2:])):
                yield " ".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        return  # the end of a file that is no pickle
