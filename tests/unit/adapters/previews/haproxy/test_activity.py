"""The stick table, as HAProxy 3.0 prints it."""

from __future__ import annotations

from typing import Any

from builderd.adapters.previews.haproxy.counters import parse
from builderd.domain.previews import PreviewActivity

ANSWER = """\
# table: activity, type: string, size:102400, used:2
0x7f0c4b77e428: key=app.localhost use=0 exp=604795000 shard=0 conn_cur=0 http_req_cnt=17 \
bytes_in_cnt=1142 bytes_out_cnt=2563 http_fail_cnt=1 gpc0=9 gpc1=2 gpc2=4 gpc3=1 gpc4=12 gpc14=3 gpc26=2 gpc47=1
0x7f0c4babd028: key=busy.localhost use=2 exp=604000000 shard=0 conn_cur=2 http_req_cnt=6 \
bytes_in_cnt=502 bytes_out_cnt=932 http_fail_cnt=0
"""

#: Two answers with a status of 4xx took less than 5 ms, one of 5xx more than 10 s.
TIMES = (0,) * 11 + (2,) + (0,) * 10 + (0,) * 10 + (1,)
ANSWERS: Any = {
    "class_times": TIMES,
    "answers_2xx": 9,
    "answers_3xx": 2,
    "answers_4xx": 4,
    "answers_5xx": 1,
    "within_5_ms": 12,
    "slower": 3,
}
APP = PreviewActivity(17, 1142, 2563, open_connections=0, failures=1, idle_seconds=5.0, **ANSWERS)
BUSY = PreviewActivity(6, 502, 932, open_connections=2, failures=0, idle_seconds=0.0)


def test_the_table_is_read() -> None:
    assert parse(ANSWER) == {"app.localhost": APP, "busy.localhost": BUSY}


def test_empty_table_has_no_activity() -> None:
    assert parse("# table: activity, type: string, size:102400, used:0\n") == {}


def test_malformed_table_has_no_activity() -> None:
    assert parse("Can't find the target PID matching the prefix '@!17'\n") == {}
