"""Report of a standby to the service that works: which closed routes it has applied, and the visits that it has led."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from builderd.domain.previews import RESPONSE_TIMES, TIMED_CLASSES, PreviewActivity, is_host

#: No counter is greater: a report with a greater number is wrong, and would make sums of many overflow a database.
MOST = 1 << 53
_ID = re.compile(r"[0-9a-f-]{1,40}")
_COUNTERS = tuple(one.name for one in fields(PreviewActivity) if one.name != "class_times")
_CLASS_TIMES = len(RESPONSE_TIMES) * len(TIMED_CLASSES)


@dataclass(frozen=True, slots=True)
class StandbyReport:
    """``standby`` is the id of one run of its proxy, ``version`` that of its list of routes, "" for none.

    ``mark`` numbers the last closed route that its proxy has, of the run of the service that ``version`` names.
    ``counts`` are those of visited hosts since its proxy began, and of all visited hosts if they are ``whole``.
    ``open`` are the requests that are open now, of the hosts that it was asked for.
    ``leads`` is False where it leads no visits by the answer: it could not apply the last one.
    """

    standby: str
    version: str = ""
    mark: int = 0
    whole: bool = False
    counts: Mapping[str, PreviewActivity] = field(default_factory=dict)
    open: Mapping[str, int] = field(default_factory=dict)
    leads: bool = True

    def encode(self) -> bytes:
        return json.dumps(
            {
                "standby": self.standby,
                "version": self.version,
                "mark": self.mark,
                "whole": self.whole,
                "counts": {host: _encoded(one) for host, one in self.counts.items()},
                "open": dict(self.open),
                "leads": self.leads,
            }
        ).encode()


def decode(content: bytes) -> StandbyReport:
    """Parse a report. Raises ``ValueError`` for what is none, also for a counter that is negative or too great."""
    try:
        found = json.loads(content)
        standby, version, whole = found["standby"], found["version"], found["whole"]
        counts = {_host(host): _decoded(values) for host, values in found["counts"].items()}
        opened = {_host(host): _number(count) for host, count in found["open"].items()}
        mark, leads = _number(found["mark"]), found.get("leads") is not False
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a report of a standby: {error!r}") from None
    if not (isinstance(standby, str) and _ID.fullmatch(standby) and isinstance(version, str)):
        raise ValueError(f"not a standby: {standby!r} {version!r}")
    return StandbyReport(standby, version, mark, whole is True, counts, opened, leads)


def _encoded(activity: PreviewActivity) -> list[Any]:
    return [*(getattr(activity, name) for name in _COUNTERS), list(activity.class_times)]


def _decoded(values: Any) -> PreviewActivity:
    *counters, class_times = values
    if len(counters) != len(_COUNTERS) or len(class_times) not in (0, _CLASS_TIMES):
        raise ValueError(f"not {len(_COUNTERS)} counters and {_CLASS_TIMES} of times")
    named = dict(zip(_COUNTERS, counters, strict=True))
    idle = named.pop("idle_seconds")
    if isinstance(idle, bool) or not isinstance(idle, int | float) or not isfinite(idle) or not 0 <= idle <= MOST:
        raise ValueError(f"not a time: {idle!r}")
    numbers = {name: _number(value) for name, value in named.items()}
    return PreviewActivity(**numbers, idle_seconds=idle, class_times=tuple(map(_number, class_times)))


def _host(text: str) -> str:
    if not is_host(text):
        raise ValueError(f"not a host: {text!r}")
    return text


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise ValueError(f"not a counter: {value!r}")
    return value
