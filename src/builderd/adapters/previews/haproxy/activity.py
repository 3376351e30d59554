"""Parser of the stick tables' counters, as printed by ``show table`` (management guide, 9.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields

from builderd.adapters.previews.haproxy.counting import ANSWER_CLASSES, COUNTER_TTL, TABLES
from builderd.domain.metrics import added_times
from builderd.domain.previews import RESPONSE_TIMES, TIMED_CLASSES, PreviewActivity

COMMANDS = tuple(f"show table {table}" for table in TABLES)

#: Is answered once no thread of the proxy is within its turn (HAProxy isolates the one that answers; the descriptor is
#: the worker's /dev/null, of which it tells nothing). A request whose route was looked up before is counted then: a
#: thread does both in one turn, in the midst of which it may wait for a processor.
AFTER_TURNS = "show fd 0"

#: The general purpose counters in their order.
_COUNTERS = (*(f"answers_{cls}xx" for cls in ANSWER_CLASSES), *RESPONSE_TIMES)
_CLASS_COUNTERS = range(len(_COUNTERS), len(_COUNTERS) + len(RESPONSE_TIMES) * len(TIMED_CLASSES))
#: ``0x7f…: key=app.localhost use=0 exp=604747228 shard=0 conn_cur=0 http_req_cnt=17 http_req_rate(60000)=17 …``
_FIELD = re.compile(r"([a-z_]+\d*)(?:\(\d+\))?=(\S+)")


def parse(answer: str) -> dict[str, PreviewActivity]:
    """Parse the counters by host. The time since the last request follows from the entry's remaining life in ms."""
    rows = (dict(_FIELD.findall(line)) for line in answer.splitlines() if not line.startswith("#"))
    return {row["key"]: _activity(row) for row in rows if "key" in row}


def open_requests_command(host: str) -> str:
    """Return the command for the counters of one host's requests, without streams."""
    return f"show table {TABLES[0]} key {host}"


def _activity(row: dict[str, str]) -> PreviewActivity:
    return PreviewActivity(
        requests=int(row["http_req_cnt"]),
        bytes_in=int(row["bytes_in_cnt"]),
        bytes_out=int(row["bytes_out_cnt"]),
        open_connections=int(row["conn_cur"]),
        failures=int(row["http_fail_cnt"]),
        requests_per_minute=int(row["http_req_rate"]),
        idle_seconds=0.0 if int(row["conn_cur"]) else max(0.0, COUNTER_TTL - int(row["exp"]) / 1000),
        # A replaced worker of an earlier version counts no answers.
        **{name: int(row.get(f"gpc{counter}", 0)) for counter, name in enumerate(_COUNTERS)},
        class_times=_class_times(row),
    )


def _class_times(row: dict[str, str]) -> tuple[int, ...]:
    counts = tuple(int(row.get(f"gpc{counter}", 0)) for counter in _CLASS_COUNTERS)
    return counts if any(counts) else ()


_ADDED = tuple(one.name for one in fields(PreviewActivity) if one.name not in ("idle_seconds", "class_times"))


def total(workers: Iterable[dict[str, PreviewActivity]]) -> dict[str, PreviewActivity]:
    """Sum the counters of several workers: after a reload, the replaced one still serves open connections."""
    merged: dict[str, PreviewActivity] = {}
    for worker in workers:
        for host, activity in worker.items():
            merged[host] = _sum(merged[host], activity) if host in merged else activity
    return merged


def _sum(one: PreviewActivity, other: PreviewActivity) -> PreviewActivity:
    """Add all counters; the idle time is the shorter one."""
    added = {name: getattr(one, name) + getattr(other, name) for name in _ADDED}
    idle = min(one.idle_seconds, other.idle_seconds)
    return PreviewActivity(**added, idle_seconds=idle, class_times=added_times(one.class_times, other.class_times))
