"""Constant folding: what Python's and JavaScript's usual functions make of constants. Pure, and bounded in size."""

from __future__ import annotations

import ast
import base64
import binascii
import codecs
import operator
import urllib.parse
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .values import MAX_LENGTH, UNKNOWN, Constant

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
    plain = encoding.lower().replace("_", "").replace("-", "") in (
        "utf8",
        "ascii",
        "latin1",
        "rot13",
        "hex",
        "base64",
        "utf16",
    )
    return codecs.decode(content, encoding) if plain else None


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


def call(function: Callable[..., Any], arguments: Sequence[Constant]) -> Constant | None:
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
        if kind is ast.Mod:
            return _percent(left, right)
        if kind in (ast.LShift, ast.RShift) and isinstance(right, int) and 0 <= right <= MAX_SHIFT:
            return _bounded(left << right if kind is ast.LShift else left >> right)
        if kind in OPERATORS and isinstance(left, int) and isinstance(right, int):
            return OPERATORS[kind](left, right)
    return None


def _percent(left: Constant, right: Constant) -> Constant | None:
    if isinstance(left, int):
        return left % right if isinstance(right, int) else None
    # ``%9999999d`` makes a text of that length.
    simple = isinstance(left, str) and all(part[:1] in ("s", "d", "%", "") for part in left.split("%")[1:])
    return _bounded(left % right) if simple else None


def index(value: Constant, at: Constant) -> Constant | None:
    with suppress(*ERRORS):
        return value[at]
    return None


def _bounded(value: Any) -> Constant | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << MAX_SHIFT else None
    return value if isinstance(value, str | bytes | tuple) and len(value) <= MAX_LENGTH else None
