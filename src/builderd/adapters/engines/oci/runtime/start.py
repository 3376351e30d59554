"""Programs of ``start.c``, which the launcher starts without a copy of its own pages. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from builderd.adapters.engines.oci.runtime.join import PASSING

_FAULT = re.compile(r"failed (\d+) (.*)", re.DOTALL)


def start(
    helper: str, request: Mapping[str, Any], maps: Mapping[int, int], descriptors: Sequence[int], report: int
) -> int | None:
    """Start the program of a ``run`` request; return its pid, None when it must be started by a fork.

    ``maps`` holds user namespaces by owner. A fault is written to ``report``, for ``fault_of``.
    """
    given = (report, *descriptors, *maps.values())
    words = ("start", *_words_of(request, maps, descriptors, report))
    return spawn(helper, words, request["env"], given)


def spawn(helper: str, words: Sequence[str], env: Mapping[str, str], given: Sequence[int]) -> int | None:
    """Execute the helper with these descriptors; return its pid, None when it or its words cannot be executed.

    Raises ``OSError`` when that is the machine's fault, which passes.
    """
    if not helper:
        return None
    try:
        for descriptor in given:
            os.set_inheritable(descriptor, True)
        return os.posix_spawn(helper, (helper, *words), env)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            # Without the path, which is the host's.
            raise OSError(error.errno, error.strerror) from error
        return None
    finally:
        for descriptor in given:
            os.set_inheritable(descriptor, False)


def fault_of(report: str) -> str:
    """Return the fault in words, of a report of ``start.c`` or of a forked child."""
    match = _FAULT.fullmatch(report)
    return f"{match[2]}: {os.strerror(int(match[1]))}" if match else report


def _words_of(
    request: Mapping[str, Any], maps: Mapping[int, int], descriptors: Sequence[int], report: int
) -> Iterable[str]:
    pairs = zip(request["fds"], descriptors, strict=True)
    return (
        *(str(report), request["cwd"], str(request["oom_score"]), str(int(request["terminal"]))),
        *(str(len(request["cgroups"])), *request["cgroups"]),
        *(str(len(request["mounts"])), *(word for mount in request["mounts"] for word in _mount(mount, maps))),
        *(str(len(descriptors)), *(str(number) for pair in pairs for number in pair)),
        *request["argv"],
    )


def _mount(mount: Mapping[str, Any], maps: Mapping[int, int]) -> tuple[str, ...]:
    kind, target = mount["kind"], mount["target"]
    match kind:
        case "bind":
            owner = mount["owner"]
            namespace = "" if owner is None else str(maps[owner])
            return kind, target, mount["source"], str(mount["attributes"]), namespace
        case "detach":
            return kind, target, "", "", ""
        case _:
            return kind, target, "", str(mount.get("flags", 0)), mount.get("data", "")
