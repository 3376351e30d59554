"""Values as the flow analysis knows them: constants, names, functions and kinds of data; and constant folding. Pure."""

from __future__ import annotations

import ast
import base64
import binascii
import codecs
import operator
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

from .places import WEAK

#: Part of a text that is not known.
UNKNOWN = "\0"
#: Most alternatives that are followed for one value, and the longest constant.
MAX_CONSTANTS, MAX_NAMES, MAX_LENGTH = 16, 4, 20_000
#: Most steps that data is followed for; fewer for what sound apps handle too, since long paths are often no paths.
MAX_STEPS, MAX_WEAK_STEPS = 8, 4

Step = tuple[str, int]
Trace = tuple[Step, ...]
Constant = Any


@dataclass(frozen=True, slots=True)
class Value:
    """``consts``: exact constants (lists as tuples), texts with ``UNKNOWN`` for what is not known.

    ``names``: dotted names that it may be. ``functions``: keys of functions of the bundle. ``kinds``: kind of data →
    path from its source. ``built``: computed from constants, so it does not stand in the code as it is.
    """

    consts: tuple[Constant, ...] = ()
    names: tuple[str, ...] = ()
    functions: tuple[int, ...] = ()
    kinds: Mapping[str, Trace] | None = None
    built: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Constants as text, those in lists too."""
        return tuple(_texts(self.consts))

    def has(self, *kinds: str) -> bool:
        return self.kinds is not None and any(kind in self.kinds for kind in kinds)


NOTHING = Value()


def _texts(consts: Iterable[Constant]) -> Iterable[str]:
    for one in consts:
        if isinstance(one, str):
            yield one
        elif isinstance(one, bytes):
            yield one.decode("latin-1")
        elif isinstance(one, tuple):
            yield from _texts(one)


def constant(*consts: Constant, built: bool = False) -> Value:
    return Value(tuple(consts[:MAX_CONSTANTS]), built=built)


def tainted(kind: str, path: str, line: int) -> Value:
    return Value(kinds={kind: ((path, line),)})


def merge(*values: Value) -> Value:
    """Return the value that is any of these."""
    useful = [value for value in values if value is not NOTHING]
    if not useful:
        return NOTHING
    first = useful[0]
    if len(useful) == 1:
        return first
    consts, names, functions, kinds, built = first.consts, first.names, first.functions, first.kinds, first.built
    for value in useful[1:]:
        if value is first:
            continue
        if value.consts:
            consts = _union(MAX_CONSTANTS, consts, value.consts) if consts else value.consts
        if value.names:
            names = _union(MAX_NAMES, names, value.names) if names else value.names
        if value.functions:
            functions = _union(MAX_NAMES, functions, value.functions) if functions else value.functions
        if value.kinds:
            kinds = {**value.kinds, **kinds} if kinds else value.kinds
        built = built or value.built
    return Value(consts, names, functions, kinds, built)


def _union(most: int, known: tuple[Any, ...], more: tuple[Any, ...]) -> tuple[Any, ...]:
    if known is more or len(known) >= most:
        return known
    fresh = [one for one in more if not any(type(one) is type(old) and one == old for old in known)]
    return (*known, *fresh)[:most] if fresh else known


def same(one: Value, other: Value) -> bool:
    """Return True if nothing was added; a kind's path does not count."""
    return (
        len(one.consts) == len(other.consts)
        and len(one.names) == len(other.names)
        and len(one.functions) == len(other.functions)
        and (one.kinds or {}).keys() == (other.kinds or {}).keys()
    )


def carried(value: Value, *without: str) -> Value:
    """Return the kinds of data alone."""
    if not value.kinds:
        return NOTHING
    if not without:
        return value if not (value.consts or value.names or value.functions) else Value(kinds=value.kinds)
    kinds = {kind: trace for kind, trace in value.kinds.items() if kind not in without}
    return Value(kinds=kinds) if kinds else NOTHING


def stepped(value: Value, path: str, line: int) -> Value:
    """Return the value with one more step in the path of its kinds; without those whose path is too long."""
    if not value.kinds:
        return value
    step = (path, line)
    kinds = {
        kind: trace if step in trace else (*trace, step)
        for kind, trace in value.kinds.items()
        if step in trace or len(trace) < (MAX_WEAK_STEPS if kind in WEAK else MAX_STEPS)
    }
    return Value(value.consts, value.names, value.functions, kinds or None, value.built)


def added(left: Value, right: Value) -> Value:
    """Return ``left + right``, for numbers, lists and texts, of which one may be unknown."""
    if not left.consts and not right.consts:
        return NOTHING
    found = []
    for one, other in product(left.consts or (UNKNOWN,), right.consts or (UNKNOWN,)):
        total = None
        if type(one) is type(other):
            total = one + other
        elif isinstance(one, str | int) and isinstance(other, str | int):
            total = f"{one}{other}"
        if total is not None and (isinstance(total, int) or len(total) <= MAX_LENGTH):
            found.append(total)
    return constant(*found, built=True)


def joined(parts: Iterable[Value], between: str = "") -> Value:
    """Return the texts with these parts, unknown ones as ``UNKNOWN``; nothing if no part is known."""
    choices: list[str] = [""]
    known = first = False
    for part in parts:
        texts = [one if isinstance(one, str) else str(one) for one in part.consts if isinstance(one, str | int)]
        known |= bool(texts)
        texts = texts or [UNKNOWN]
        glue = between if first else ""
        choices = [f"{one}{glue}{text}" for one in choices for text in texts if len(one) + len(text) <= MAX_LENGTH]
        choices = choices[:MAX_CONSTANTS]
        first = True
    return constant(*choices, built=True) if known else NOTHING


# Constant folding: what Python's and JavaScript's usual functions make of constants, bounded in size

MAX_SHIFT = 64
#: Errors that code makes of its constants: nothing is known of the result then.
ERRORS = (ValueError, TypeError, IndexError, KeyError, AttributeError, LookupError, OverflowError, zlib.error)

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Sub: operator.sub,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.FloorDiv: operator.floordiv,
}


def _inflated(content: bytes) -> bytes:
    return zlib.decompressobj(47).decompress(content, MAX_LENGTH)


def _chars(*codes: Any) -> str:
    return "".join(map(chr, codes))


def _whole_bytes(text: Any, *_: Any) -> bytes:
    if isinstance(text, str):
        return text.encode()
    return bytes(text) if isinstance(text, tuple | bytes) else b""


def _decoded64(text: Any, *_: Any) -> bytes:
    given = text if isinstance(text, bytes) else text.encode("latin-1")
    return base64.b64decode(given + b"=" * (-len(given) % 4))


def _buffer(content: Any, encoding: str = "utf8", *_: Any) -> bytes:
    if encoding in ("base64", "base64url"):
        return _decoded64(content)
    return bytes.fromhex(content) if encoding == "hex" else _whole_bytes(content)


def _decoded(content: Any, encoding: str) -> Any:
    # Others inflate what they are given.
    plain = ("utf8", "ascii", "latin1", "rot13", "hex", "base64", "utf16")
    return codecs.decode(content, encoding) if encoding.lower().replace("_", "").replace("-", "") in plain else None


def _replaced(text: str, old: str, new: str) -> str | None:
    return text.replace(old, new) if text.count(old) * len(new) <= MAX_LENGTH else None


#: Functions by their name.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "chr": _chars,
    "ord": ord,
    "str": lambda value="", *_: value if isinstance(value, str) else str(value) if isinstance(value, int) else None,
    "int": int,
    "len": len,
    "list": tuple,
    "tuple": tuple,
    "reversed": lambda values: tuple(reversed(tuple(values))),
    "range": lambda *ends: tuple(range(*ends)) if max(ends) - min(ends) < 4_096 else None,
    "bytes": _whole_bytes,
    "bytearray": _whole_bytes,
    "bytes.fromhex": bytes.fromhex,
    "bytearray.fromhex": bytes.fromhex,
    "binascii.unhexlify": binascii.unhexlify,
    "binascii.a2b_base64": _decoded64,
    "base64.b64decode": _decoded64,
    "base64.standard_b64decode": _decoded64,
    "base64.urlsafe_b64decode": lambda text, *_: base64.urlsafe_b64decode(text),
    "base64.b32decode": lambda text, *_: base64.b32decode(text),
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": lambda text, *_: base64.a85decode(text),
    "zlib.decompress": lambda content, *_: _inflated(content),
    "gzip.decompress": _inflated,
    "codecs.decode": lambda text, encoding="utf-8", *_: _decoded(text, encoding),
    "urllib.parse.unquote": urllib.parse.unquote,
    # JavaScript
    "atob": lambda text: _decoded64(text).decode("latin-1"),
    "Buffer.from": _buffer,
    "String.fromCharCode": _chars,
    "String.fromCodePoint": _chars,
    "String": lambda value="": str(value),
    "parseInt": lambda text, base=10: int(text, base),
    "decodeURIComponent": urllib.parse.unquote,
    "unescape": urllib.parse.unquote,
}

#: Methods by their name, called with what they belong to.
METHODS: dict[str, Callable[..., Any]] = {
    "replace": lambda text, old, new, *_: _replaced(text, old, new),
    "replaceAll": _replaced,
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "toLowerCase": lambda text: text.lower(),
    "toUpperCase": lambda text: text.upper(),
    "strip": lambda text, *what: text.strip(*what),
    "trim": lambda text: text.strip(),
    "split": lambda text, *by: tuple(text) if by and by[0] == "" else tuple(text.split(*by)),
    "decode": lambda content, encoding="utf-8", *_: _decoded(content, encoding),
    "encode": lambda text, *_: text.encode(),
    "toString": lambda value, *_: value.decode(errors="replace") if isinstance(value, bytes) else str(value),
    "translate": lambda text, table: text.translate(table),
    "reverse": lambda values: tuple(reversed(values)),
    "repeat": lambda text, times: text * times if len(text) * times <= MAX_LENGTH else None,
    "charCodeAt": lambda text, at=0: ord(text[at]),
    "codePointAt": lambda text, at=0: ord(text[at]),
    "charAt": lambda text, at=0: text[at],
    "slice": lambda text, *ends: text[slice(*ends)] if len(ends) > 1 else text[ends[0] :] if ends else text,
    "substring": lambda text, start, end=None: text[start:end],
    "substr": lambda text, start, length=None: text[start : None if length is None else start + length],
    "concat": lambda text, *more: "".join((text, *more)),
    "expanduser": lambda text: text,
    "resolve": lambda text: text,
    "absolute": lambda text: text,
    "as_posix": lambda text: text,
}


def call_folded(function: Callable[..., Any], arguments: Sequence[Constant]) -> Constant | None:
    """Return the result, or None where it is unknown or too long."""
    if any(isinstance(one, str) and UNKNOWN in one for one in arguments[:1]) and function not in _KEEP:
        return None
    with suppress(*ERRORS):
        return _bounded(function(*arguments))
    return None


_KEEP = frozenset(METHODS[name] for name in ("expanduser", "resolve", "absolute", "as_posix", "replace", "lower"))


def operate(kind: type[ast.operator], left: Constant, right: Constant) -> Constant | None:
    """Return the result of an operator, except ``+``, or None."""
    with suppress(*ERRORS, ZeroDivisionError):
        if kind is ast.Mult and isinstance(left, int) != isinstance(right, int):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            return value * times if 0 <= times * len(value) <= MAX_LENGTH else None
        if kind is ast.Mod and isinstance(left, int):
            return left % right if isinstance(right, int) else None
        if kind is ast.Mod:
            # ``%9999999d`` makes a text of that length.
            simple = isinstance(left, str) and all(part[:1] in ("s", "d", "%", "") for part in left.split("%")[1:])
            return _bounded(left % right) if simple else None
        if kind in (ast.LShift, ast.RShift) and isinstance(right, int) and 0 <= right <= MAX_SHIFT:
            return _bounded(left << right if kind is ast.LShift else left >> right)
        if kind in OPERATORS and isinstance(left, int) and isinstance(right, int):
            return OPERATORS[kind](left, right)
    return None


def item_at(value: Constant, at: Constant) -> Constant | None:
    with suppress(*ERRORS):
        return value[at]
    return None


def _bounded(value: Any) -> Constant | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << MAX_SHIFT else None
    return value if isinstance(value, str | bytes | tuple) and len(value) <= MAX_LENGTH else None
