"""Parts of the service's work by the stacks of samples."""

from __future__ import annotations

import pytest
from benchmarks.profile_parts import OTHER, part_of, shares

THREAD = "Thread.run (threading.py:994);_WorkItem.run (concurrent/futures/thread.py:59)"
READ = f"{THREAD};Store._read (builderd/store/store.py:205)"
LOOP = "BaseEventLoop._run_once (asyncio/base_events.py:2042);Handle._run (asyncio/events.py:89)"


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        (
            f"{THREAD};Store._write (builderd/store/store.py:1);x (sqlalchemy/a.py:1)",
            "write transactions",
        ),
        (f"{READ};y (builderd/a.py:1);execute (sqlalchemy/engine/base.py:1)", "statements that read, with SQLAlchemy"),
        (f"{READ};_builder (builderd/store/builders.py:1);sub (re/__init__.py:2)", "rows to values"),
        (f"{READ};view (builderd/services/builders.py:1);dumps (json/__init__.py:1)", "view and JSON"),
        (f"{LOOP};Heartbeat._go_on (builderd/a.py:1);to_thread (asyncio/threads.py:25)", "jobs at their own time"),
        (f"{LOOP};app (fastapi/routing.py:1);submit (concurrent/futures/thread.py:1)", "changes of threads"),
        (LOOP, "event loop"),
        ("main (main.py:1)", OTHER),
    ],
)
def test_a_sample_counts_for_one_part_of_the_work(stack: str, part: str) -> None:
    assert part_of(stack) == part


@pytest.mark.parametrize("folder", ["builderd/doors/http", "builderd/api/server"])
def test_versions_before_and_after_a_move_of_folders_have_the_same_parts(folder: str) -> None:
    assert part_of(f"{LOOP};identify ({folder}/auth.py:1)") == "token and rate"
    assert part_of(f"{LOOP};RequestLog._record ({folder}/request_log.py:1)") == "log and counters"


def test_shares_leave_out_samples_whose_stack_could_not_be_read() -> None:
    assert shares([f"{LOOP} 3\n", "main (main.py:1) 1\n", " 96\n"]) == {"event loop": 0.75, OTHER: 0.25}
