"""One limit against hanging for all tests that wait for a state: it follows from the speed of the machine.

A machine that is emulated runs everything ten times slower or more, and nothing on it hangs. The speed is measured in
CPU time, so work beside the tests changes no limit, and on an ordinary machine each is what it says. On an emulated
one, what its host gives to others counts as CPU time too: its limits are longer while that host is busy.
"""

from __future__ import annotations

import time

#: CPU seconds that ``_work`` takes on the machine for which the limits are written.
_USUAL = 0.0016


def patience(seconds: float) -> float:
    """Return the limit for what takes less than ``seconds``, by the clock or of CPU, on an ordinary machine."""
    return seconds * SLOWNESS


def slowness(taken: float) -> float:
    """Return the factor for a machine on which ``_work`` takes so many CPU seconds: 1 unless it is far slower."""
    return max(1.0, taken / _USUAL) if taken > 2 * _USUAL else 1.0


def _measure() -> float:
    """Return the CPU seconds of the fastest of some rounds."""
    rounds = []
    for _ in range(5):
        begun = time.thread_time()
        _work()
        rounds.append(time.thread_time() - begun)
    return min(rounds)


def _work() -> None:
    kept = {}
    for number in range(20_000):
        kept[number % 97] = str(number)


SLOWNESS = slowness(_measure())
