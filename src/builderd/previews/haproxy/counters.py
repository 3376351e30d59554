"""Counters of visits: what is counted in stick tables, and the parser of ``show table``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from builderd.previews.model import RESPONSE_BOUNDS, RESPONSE_TIMES, TIMED_CLASSES, PreviewActivity

#: Seconds that a host's counters are kept after its last request.
COUNTER_TTL = 7 * 86_400
#: The classes of statuses that are counted, in the order of their counters.
ANSWER_CLASSES = (2, 3, 4, 5)


def conditions() -> Sequence[str]:
    """Return the conditions of the counters of answers: by class, by time in ms until the head, and by both.

    An answer that the proxy gives in an app's place has no such time.
    """
    lows = (0, *RESPONSE_BOUNDS)
    spans = (*(f"{low}:{high - 1}" for low, high in zip(lows, RESPONSE_BOUNDS, strict=False)), f"{lows[-1]}:")
    times = [f"res.timer.hdr {span}" for span in spans]
    classes = [f"status {cls}00:{cls}99" for cls in ANSWER_CLASSES]
    return (
        *classes,
        *times,
        *(f"status {cls[0]}00:{cls[0]}99 }} {{ {time}" for cls in TIMED_CLASSES for time in times),
    )


#: Shows the counters of all hosts.
SHOW = "show table activity"
#: Is answered once no thread of the proxy is within its turn (HAProxy isolates the one that answers; the descriptor is
#: the worker's /dev/null, of which it tells nothing). A request whose route was looked up before is counted then: a
#: thread does both in one turn, in the midst of which it may wait for a processor.
AFTER_TURNS = "show fd 0"

#: The general purpose counters in their order.
_COUNTERS = (*(f"answers_{cls}xx" for cls in ANSWER_CLASSES), *RESPONSE_TIMES)
_CLASS_COUNTERS = range(len(_COUNTERS), len(_COUNTERS) + len(RESPONSE_TIMES) * len(TIMED_CLASSES))
#: ``0x7f…: key=app.localhost use=0 exp=604747228 shard=0 conn_cur=0 http_req_cnt=17 bytes_in_cnt=1142 …``
_OPEN = re.compile(r"conn_cur=(\d+)")
_FIELD = re.compile(r"([a-z_]+\d*)(?:\(\d+\))?=(\S+)")


def parse(answer: str) -> dict[str, PreviewActivity]:
    """Parse the counters by host. The time since the last request follows from the entry's remaining life in ms."""
    rows = (dict(_FIELD.findall(line)) for line in answer.splitlines() if not line.startswith("#"))
    return {row["key"]: _activity(row) for row in rows if "key" in row}


def open_in(answer: str) -> int:
    """Return how many are open according to the answer for one host of a table."""
    return sum(int(count) for count in _OPEN.findall(answer))


def _activity(row: dict[str, str]) -> PreviewActivity:
    class_times = tuple(int(row.get(f"gpc{counter}", 0)) for counter in _CLASS_COUNTERS)
    return PreviewActivity(
        requests=int(row["http_req_cnt"]),
        bytes_in=int(row["bytes_in_cnt"]),
        bytes_out=int(row["bytes_out_cnt"]),
        open_connections=int(row["conn_cur"]),
        failures=int(row["http_fail_cnt"]),
        idle_seconds=0.0 if int(row["conn_cur"]) else max(0.0, COUNTER_TTL - int(row["exp"]) / 1000),
        **{name: int(row.get(f"gpc{counter}", 0)) for counter, name in enumerate(_COUNTERS)},
        class_times=class_times if any(class_times) else (),
    )
