"""Requests to the launcher: their shapes, checked before it does anything. Standard library only.

A request is one packet, a JSON object that begins with its number: ``{"id": 7, "op": "kill", "name": "exec-0a"}``.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

#: Longest request: a packet of a SOCK_SEQPACKET socket, well below the default send buffer of 208 KiB.
MAX_PACKET = 128 * 1024
MAX_DESCRIPTORS = 8
#: Largest number of a program's descriptor.
MAX_NUMBER = 63
#: Answer to a request that is too damaged to tell its number.
NO_REQUEST = 0

Message = dict[str, Any]
Check = Callable[[Any], bool]

_NUMBER = re.compile(rb'\{"id": (\d{1,18})[,}]')


class Malformed(ValueError):
    """A request that is not one of ``SHAPES``. Nothing of it was done."""


def request_number(packet: bytes) -> int:
    """Return the number at the beginning of a packet, also of one whose rest is damaged; ``NO_REQUEST`` without one."""
    match = _NUMBER.match(packet)
    return int(match[1]) if match else NO_REQUEST


def parse(packet: bytes, flags: int, descriptors: int) -> Message:
    """Return the request of a packet. ``flags`` and the number of ``descriptors`` are those of its receipt.

    Raises ``Malformed``.
    """
    if flags & socket.MSG_TRUNC:
        raise Malformed(f"a request may have {MAX_PACKET} bytes")
    if flags & socket.MSG_CTRUNC:
        raise Malformed(f"descriptors were lost: a request may have {MAX_DESCRIPTORS}, and the launcher has a limit")
    try:
        request = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    if not isinstance(request, dict) or not is_number(request.get("id")):
        raise Malformed("not an object with a number")
    shape = SHAPES.get(request["op"]) if isinstance(request.get("op"), str) else None
    if shape is None:
        raise Malformed("an unknown operation")
    _check_fields(request, shape)
    wanted = len(request["fds"]) if request["op"] == "run" else 0
    if descriptors != wanted:
        raise Malformed(f"{descriptors} descriptors instead of {wanted}")
    return request


def _check_fields(request: Message, shape: Mapping[str, Check]) -> None:
    if unequal := sorted(request.keys() ^ {"id", "op", *shape}):
        raise Malformed(f"unknown or missing fields: {', '.join(unequal)[:200]}")
    for name, check in shape.items():
        if not check(request[name]):
            raise Malformed(f"a value of the wrong type: {name}")


def is_number(value: Any) -> bool:
    return type(value) is int and -(1 << 31) <= value < 1 << 63


def _is_id(value: Any) -> bool:
    """Check a uid, which the kernel would cut to 32 bits."""
    return is_number(value) and 0 <= value < (1 << 32) - 1


def _is_owner(value: Any) -> bool:
    return value is None or _is_id(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_name(value: Any) -> bool:
    return _is_text(value) and value != ""


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number_of_program(value: Any) -> bool:
    return is_number(value) and 0 <= value <= MAX_NUMBER


def _list_of(check: Check, least: int = 0, most: int = MAX_PACKET) -> Check:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(check, value))


def _texts(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(_is_text, value)) and all(map(check, value.values()))


def _object(**fields: Check) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == fields.keys()
        and all(check(value[name]) for name, check in fields.items())
    )


def _is_mount(value: Any) -> bool:
    """Check a mount of a ``run``: every kind but two is a file system, whose flags and data may be missing."""
    if not isinstance(value, dict):
        return False
    match value.get("kind"):
        case "bind":
            return _BIND(value)
        case "detach":
            return _DETACH(value)
        case _:
            return _FILE_SYSTEM({"flags": 0, "data": ""} | value)


def _are_distinct(numbers: list[int]) -> bool:
    return len(set(numbers)) == len(numbers)


_NUMBERS = _list_of(_is_number_of_program, most=MAX_DESCRIPTORS)
_TEXTS = _list_of(_is_text)
_MOUNTS = _list_of(_is_mount)
_BIND = _object(kind=_is_name, source=_is_name, target=_is_name, attributes=is_number, owner=_is_owner)
_DETACH = _object(kind=_is_name, target=_is_name)
_FILE_SYSTEM = _object(kind=_is_name, target=_is_name, flags=is_number, data=_is_text)
_LINK = _object(link=_is_name, bridge=_is_name, mac=_is_name, ip=_is_name, gateway=_is_name, mtu=is_number)

#: Fields of each operation beside its number.
SHAPES: Mapping[str, Mapping[str, Check]] = {
    "attach": {"pid": is_number, "network": _LINK},
    "run": {
        "argv": _list_of(_is_text, least=1),
        "env": _texts(_is_text),
        "cwd": _is_name,
        "fds": lambda value: _NUMBERS(value) and _are_distinct(value),
        "mounts": _MOUNTS,
        "cgroups": _TEXTS,
        "uid": lambda value: value == -1 or _is_id(value),
        "terminal": _is_flag,
        "oom_score": is_number,
        "name": _is_text,
    },
    "kill": {"name": _is_name},
}
