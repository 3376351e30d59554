"""Values as the flow analysis knows them: possible constants, names, functions and kinds of data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    pairs = product(left.consts or (UNKNOWN,), right.consts or (UNKNOWN,))
    return constant(*_sums(pairs), built=True)


def _sums(pairs: Iterable[tuple[Constant, Constant]]) -> Iterable[Constant]:
    for one, other in pairs:
        total = _sum(one, other)
        if total is not None and (isinstance(total, int) or len(total) <= MAX_LENGTH):
            yield total


def _sum(one: Constant, other: Constant) -> Constant | None:
    if type(one) is type(other):
        return one + other
    texts = [part if isinstance(part, str) else str(part) if isinstance(part, int) else None for part in (one, other)]
    return None if None in texts else f"{texts[0]}{texts[1]}"


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
