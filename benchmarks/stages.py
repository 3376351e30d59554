"""The CPU time of a traced service by stage of a create (``benchmarks/traced.py``)."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.live_service import LiveService

_BACKGROUND = (
    "BackupSchedule|WebhookJob|DomainJob|Reporting|check_due|_check_spending|Store._write _take|_check >|"
    "Reconciler._due|Idleness|[Ss]ampl|Heartbeat|NetlinkWatch|ProcFiles.update|Pool|OwnedStore|RepeatedCall|"
    "Server.serve|desired_changes|Retention|StoreWatch|save_periodically|_watch_exits|BytecodeCompilation|"
    "Cgroups.counters|_disk_usage|^step every$|MonthToDate|DeferredSync|watch_visits|Evacuation|LostMembers"
)
#: Stages by what their steps are named; the first that matches counts.
STAGES = (
    ("jobs that run at their own time", _BACKGROUND),
    ("records: write transactions", "Store._write"),
    ("waiting for the port", "wait_until_listening|SystemClock.poll"),
    ("gate", "Gate|LocalTesters|testers|judge|Logs.read|last_lines"),
    (
        "HTTP: token, validation, view and answer",
        "Site|identi|RequestResponse|bundle_of|_follow|_view_of_outcome|TaskHandle",
    ),
    ("layer and review", "LayerInstalls|_review|report_of|Gate.review|LocalBundles|Scanner|passes"),
    ("disk", "FirstStart|Disks|LayerStore"),
    ("sandbox, network, launch", "Start|Runs|Creation|Launcher|Cgroups|Network|_make_root|prewarm|Claims|Process"),
    ("route", "Haproxy|Workers|_converse|set_entry|add_entry|_open_route"),
    ("worker: observe, choose, take", "Worker|Steps.perform|Claim|race|Reconciler"),
    ("reads of the store, with their thread", "Store._read|Store.read"),
    ("moves between threads", "^callback|to_thread|run_to_completion"),
)


class Traced(LiveService):
    """A service that counts the CPU time of its steps."""

    @property
    def _trace(self) -> Path:
        return self.data_dir.parent / "trace.json"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.traced", str(self._trace), *self.words(*words)]

    def environment(self, **more: str) -> dict[str, str]:
        own = super().environment(**more)
        return {**own, "PYTHONPATH": f"{own['PYTHONPATH']}:{Path(__file__).parents[1]}"}

    def totals(self) -> dict[str, tuple[float, int]]:
        """Return milliseconds and number by step so far."""
        assert self.process
        self._trace.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        while not self._trace.exists():
            time.sleep(0.005)
        found: dict[str, tuple[float, int]] = json.loads(self._trace.read_text())
        return found


def table(steps: Mapping[str, float], whole: float) -> str:
    """Return a table of stages; ``whole`` is the CPU time of the service's process for one create."""
    by_stage: defaultdict[str, float] = defaultdict(float)
    for name, took in steps.items():
        by_stage[next((stage for stage, pattern in STAGES if re.search(pattern, name)), "other")] += took
    by_stage["event loop and changes of threads"] = whole - sum(by_stage.values())
    rows = [f"| {name} | {took:.1f} |" for name, took in sorted(by_stage.items(), key=lambda stage: -stage[1])]
    return "\n".join(["| CPU of the service for one create | ms |", "|---|---|", *rows])
