"""Requests to the launcher: their fields, checked before it does anything. Standard library only.

A request is one packet, a JSON object that begins with its number: ``{"id": 7, "op": "kill", "name": "exec-0a"}``.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from typing import Any

#: Longest request: a packet of a SOCK_SEQPACKET socket, well below the default send buffer of 208 KiB.
MAX_PACKET = 128 * 1024
MAX_DESCRIPTORS = 8
#: Largest number of a program's descriptor.
MAX_NUMBER = 63
#: Answer to a request that is too damaged to tell its number.
NO_REQUEST = 0

Message = dict[str, Any]

#: Fields of each operation beside its number, with their types.
FIELDS: Mapping[str, Mapping[str, type]] = {
    "attach": {"pid": int, "network": dict},
    "run": {
        "argv": list,
        "env": dict,
        "cwd": str,
        "fds": list,
        "mounts": list,
        "cgroups": list,
        "uid": int,
        "terminal": bool,
        "oom_score": int,
        "name": str,
    },
    "kill": {"name": str},
}
_NUMBER = re.compile(rb'\{"id": (\d{1,18})[,}]')


class Malformed(ValueError):
    """A request that is not one of ``FIELDS``. Nothing of it was done."""


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
    if not isinstance(request, dict) or type(request.get("id")) is not int:
        raise Malformed("not an object with a number")
    fields = FIELDS.get(request["op"]) if isinstance(request.get("op"), str) else None
    if fields is None:
        raise Malformed("an unknown operation")
    if unequal := sorted(request.keys() ^ {"id", "op", *fields}):
        raise Malformed(f"unknown or missing fields: {', '.join(unequal)[:200]}")
    if wrong := [name for name, kind in fields.items() if type(request[name]) is not kind]:
        raise Malformed(f"a value of the wrong type: {', '.join(wrong)}")
    _check_descriptors(request.get("fds", []), descriptors)
    return request


def _check_descriptors(numbers: list[Any], descriptors: int) -> None:
    if len(numbers) != descriptors:
        raise Malformed(f"{descriptors} descriptors instead of {len(numbers)}")
    if len(set(map(str, numbers))) < len(numbers) or not all(number in range(MAX_NUMBER + 1) for number in numbers):
        raise Malformed("numbers of descriptors that are none, or not distinct")
