"""States of threads: of hostile names, of this test's own processes, and of threads that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from builderd.adapters.engines.oci.runtime import thread_states
from builderd.adapters.engines.oci.runtime.thread_states import any_works, state_of


@pytest.mark.parametrize(
    ("stat", "state"),
    [
        (b"7 (python3) S 1 7 7 0", b"S"),
        (b"7 (D) R (x) D 1 7 7 0", b"D"),
        (b"7 (a) R\n) S 1 7", b"S"),
        (b"7 (", b"X"),
        (b"", b"X"),
    ],
)
def test_state_stands_behind_the_last_parenthesis_of_any_name(stat: bytes, state: bytes) -> None:
    assert state_of(stat) == state


@contextmanager
def child(code: str) -> Iterator[int]:
    process = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def until(thread: str, works: bool) -> bool:
    deadline = time.monotonic() + 10
    while any_works([thread]) is not works and time.monotonic() < deadline:
        time.sleep(0.01)
    return any_works([thread]) is works


def test_process_that_computes_works_and_one_that_waits_does_not() -> None:
    with child("print(flush=True)\nwhile True: pass") as busy:
        assert until(str(busy), works=True)
        os.kill(busy, signal.SIGSTOP)
        assert until(str(busy), works=False), "stopped by its own tenant"
    with child("print(flush=True); import time; time.sleep(60)") as idle:
        assert until(str(idle), works=False)


#: clone(CLONE_VFORK | SIGCHLD): the parent waits, in state D, while its child sleeps.
VFORK = """
import ctypes, os, platform, time
number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
parent = os.getpid()
print(flush=True)
if ctypes.CDLL(None).syscall(number, 0x4000 | 17, 0, 0, 0, 0) == 0:
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(0)
"""


def test_process_that_waits_for_its_own_sleeping_child_does_not_work() -> None:
    with child(VFORK) as parent:
        deadline = time.monotonic() + 10
        # State D alone may be the disk, from which the parent reads a library before it makes its child.
        while thread_states._place(str(parent)) not in thread_states._VFORK and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread_states._state(str(parent)) == b"D"
        assert not any_works([str(parent)])


def test_threads_that_are_gone_do_not_work() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert not any_works([str(thread.native_id), "0"])


def test_only_the_first_threads_of_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def state(thread: str) -> bytes:
        looked.append(thread)
        return b"S"

    monkeypatch.setattr(thread_states, "_state", state)
    assert not any_works([str(number) for number in range(100_000)])
    assert len(looked) == thread_states.MOST_THREADS
