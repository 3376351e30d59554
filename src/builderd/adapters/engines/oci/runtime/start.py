"""Programs of ``start.c``, which the launcher starts without a copy of its own pages. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from builderd.adapters.engines.oci.runtime.join import PASSING

_FAULT = re.compile(r"failed (\d+) (.*)", re.DOTALL)


class Helper:
    """The compiled program, until it cannot be executed; without it, the launcher forks.

    ``path`` is empty for none.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path

    def start(
        self, request: Mapping[str, Any], maps: Mapping[int, int], descriptors: Sequence[int], report: int
    ) -> int | None:
        """Start the program of a ``run`` request; return its pid, None when it must be started by a fork.

        ``maps`` holds user namespaces by owner. A fault is written to ``report``, for ``fault_of``.
        """
        given = (report, *descriptors, *maps.values())
        words = ("start", *_words_of(request, maps, descriptors, report))
        return self.spawn(words, request["env"], given)

    def spawn(self, words: Sequence[str], env: Mapping[str, str], given: Sequence[int]) -> int | None:
        """Execute the program with these descriptors; return its pid, None when it or its words cannot be executed.

        Raises ``OSError`` when that is the machine's fault, which passes.
        """
        if not self.path:
            return None
        try:
            for descriptor in given:
                os.set_inheritable(descriptor, True)
            return os.posix_spawn(self.path, (self.path, *words), env)
        except ValueError:
            return None
        except OSError as error:
            if error.errno in PASSING:
                # Without the path, which is the host's.
                raise OSError(error.errno, error.strerror) from error
            if error.errno != errno.E2BIG:
                self._give_up(error)
            return None
        finally:
            for descriptor in given:
                os.set_inheritable(descriptor, False)

    def _give_up(self, error: OSError) -> None:
        log_event(f"programs are started by a fork until a restart program={self.path} error={error.strerror}")
        self.path = ""


def log_event(event: str) -> None:
    """Write a line to the launcher's standard error, which is the service's."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"launcher: {event}\n")


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
