"""Rules of the configuration that count what apps answer, and the tables of the counters. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from builderd.adapters.previews.haproxy.section import section
from builderd.domain.previews import RESPONSE_BOUNDS, RESPONSE_TIMES, TIMED_CLASSES

#: Seconds that a host's counters are kept after its last request.
COUNTER_TTL = 7 * 86_400
#: The classes of statuses that are counted, in the order of their counters.
ANSWER_CLASSES = (2, 3, 4, 5)
#: Counters by host: of requests, and of WebSockets and event streams.
TABLES = ("activity", "streams")


def requests() -> str:
    """Return the rules that count a request for its host."""
    return """
        # Streams have no time limit: they are counted apart.
        http-request track-sc0 var(txn.host) table streams if { req.hdr(upgrade) -m found }
        http-request track-sc0 var(txn.host) table streams if { req.hdr(accept) -m beg -i text/event-stream }
        http-request track-sc0 var(txn.host) table activity
        """


def usual_answer() -> str:
    """Return the rules that count a 2xx and a time within the first span, and end there if the answer is both."""
    first = _spans()[0]
    return f"""
        http-after-response sc-inc-gpc(0,0) if {{ status 200:299 }}
        http-after-response sc-inc-gpc({len(ANSWER_CLASSES)},0) if {{ res.timer.hdr {first} }}
        http-after-response allow if {{ status 200:299 }} {{ res.timer.hdr {first} }}
        """


def other_answers() -> str:
    """Return the rules that count an app's answer behind those of ``usual_answer``."""
    return f"{answers()}\n{times()}\n{class_times()}"


def answers() -> str:
    """Return the rules that count answers by class of status, each in one of the table's counters, but the first."""
    return "\n".join(
        f"http-after-response sc-inc-gpc({counter},0) if {{ status {cls}00:{cls}99 }}"
        for counter, cls in enumerate(ANSWER_CLASSES[1:], 1)
    )


def times() -> str:
    """Return the rules that count the app's answers by the time, in ms, until their head, but the first span.

    An answer that the proxy gives in its place has no such time, and none of them applies.
    """
    return "\n".join(
        f"http-after-response sc-inc-gpc({counter},0) if {{ res.timer.hdr {span} }}"
        for counter, span in enumerate(_spans()[1:], len(ANSWER_CLASSES) + 1)
    )


def class_times() -> str:
    """Return the rules that count the times of the rarer classes of statuses: of 2xx, one rule is evaluated."""
    first = len(ANSWER_CLASSES) + len(RESPONSE_TIMES)
    rules = [(f"{cls[0]}00:{cls[0]}99", span) for cls in TIMED_CLASSES for span in _spans()]
    return "\n".join(
        [
            "http-after-response allow if { status 200:299 }",
            *(
                f"http-after-response sc-inc-gpc({counter},0) if {{ status {codes} }} {{ res.timer.hdr {span} }}"
                for counter, (codes, span) in enumerate(rules, first)
            ),
        ]
    )


def _spans() -> Sequence[str]:
    """Return the spans of ``RESPONSE_TIMES``, in ms."""
    lows = (0, *RESPONSE_BOUNDS)
    return (*(f"{low}:{high - 1}" for low, high in zip(lows, RESPONSE_BOUNDS, strict=False)), f"{lows[-1]}:")


def table(name: str) -> str:
    requests = "http_req_cnt,http_req_rate(60s),bytes_in_cnt,bytes_out_cnt,conn_cur,http_fail_cnt"
    counters = f"{requests},gpc({len(ANSWER_CLASSES) + len(RESPONSE_TIMES) * (1 + len(TIMED_CLASSES))})"
    return section(
        f"backend {name} from base",
        f"stick-table type string len 254 size 100k expire {COUNTER_TTL}s store {counters}",
    )
