"""Parts of the service's work by the stacks of samples (``benchmarks/profile.py``). Pure.

The same rules hold for the code of all versions since 8e4c7a9, whose folders had other names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

OTHER = "other"
#: Parts by any frame of a stack; the first that matches counts.
BY_STACK = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        (
            "jobs at their own time",
            r"reconciler/(backups|webhooks|domains|reports|sampl|spending|caps|idle|retention|jobs)|\bevery \("
            r"|Netlink|Heartbeat|heartbeat|BackupSchedule|WebhookJob|DomainJob|Reporting|Reconciler\._due|[Ss]ampler"
            r"|ProcFiles\._?update|Runs\._warm|_check_spending|Idleness|check_due|MonthToDate|_watch_exits|keep_alive"
            r"|DeferredSync|BytecodeCompilation|Retention|StoreWatch|save_periodically|watch_visits|LostMembers"
            r"|api/server/listener\.py.*on_tick|uvicorn/server",
        ),
        ("write transactions", r"Store\._write\b|Store\._write_once"),
        (
            "waiting for the port",
            r"SystemClock\.poll|wait_until_listening|wait_until_up|_await_listening|PortProbe|Listeners|\.listening \(",
        ),
        (
            "gates: review and QA",
            r"_check_app|/testers/|Gate\.|services/qa|stages/gate|Steps\._review|/review(s|ers?)?/",
        ),
    )
)
#: Parts by the innermost frame that has one; helpers of the standard library count for their callers.
BY_FRAME = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        (
            "changes of threads",
            r"concurrent/futures|\(queue\.py|\(threading\.py|asyncio/(threads|futures)\.py|\banyio/|starlette/concurrency"
            r"|run_in_executor|call_soon_threadsafe|_read_from_self|_write_to_self",
        ),
        ("statements that read, with SQLAlchemy", r"\bsqlalchemy/|builderd/store/(store|sqlite|connections?)"),
        ("rows to values", r"builderd/store/"),
        ("token and rate", r"/auth\.py|services/tokens|services/rates|/rates?\.py"),
        ("log and counters", r"request_log|/metrics|prometheus_client|\blogging/"),
        ("listener", r"\buvicorn/|\bhttptools|asyncio/(selector_events|transports)\.py|/listener\.py"),
        (
            "view and JSON",
            r"/presenters|/pages\.py|/shown\.py|/schemas/|services/(builders|settled_views|outcomes)|/outcomes\.py",
        ),
        ("command: launcher, pipes, group", r"oci/.*(execut|streams|launcher)|services/(executions|wake)"),
        ("disk", r"oci/(storage/|disks|quotas|layers)"),
        ("sandbox, network and launch", r"adapters/engines|adapters/previews|builderd/(linux|sandboxing|launcher)"),
        ("worker and its steps", r"builderd/reconciler"),
        (
            "framework and API",
            r"\bfastapi/|\bstarlette/|\bpydantic/|builderd/(api|doors|web|operations)/|builderd/services|builderd/domain",
        ),
        ("event loop", r"\basyncio/|\(selectors\.py"),
    )
)


def part_of(stack: str) -> str:
    """Return the part of a stack: frames from the outermost to the innermost, between semicolons."""
    for part, pattern in BY_STACK:
        if pattern.search(stack):
            return part
    for frame in reversed(stack.split(";")):
        for part, pattern in BY_FRAME:
            if pattern.search(frame):
                return part
    return OTHER


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Return the share of each part in samples: lines of a stack and its number, as py-spy writes them.

    A sample without a stack is left out: the process went on while it was read.
    """
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, number = line.rstrip("\n").rpartition(" ")
        if stack:
            found[part_of(stack)] += int(number)
    total = found.total()
    return {part: count / total for part, count in found.items()}
