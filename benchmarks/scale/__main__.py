"""What a service costs beside many stopped builders of one tenant: nothing may grow with what is stored.

    script/bench scale [--rows 5,10000,100000] [--database sqlite,postgresql] [--rounds N] [--json FILE]

One real builder is made and stopped, and copied in the database while no service runs: with its version, its sandbox
that ended, its ledger, and a backup that is done. The copies have no disk and are never started; their next backup is
due in a day. The service of each number has a folder and a database of its own, and no pool of prepared sandboxes.

What a service costs from its start is measured while the others are stopped. Then all run side by side and take their
calls in turns, round by round in another order: a machine's speed changes within a minute by more than what is
looked for. The ratio to the fewest rows is the median of the rounds' ratios; ``--rows 5,5`` tells how exact it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from benchmarks.scale.figures import Row, compare, order, spread, table
from benchmarks.scale.subject import CALLS, LISTS, idle_cpu, prepared
from tests.postgres import PostgresServer, find_binaries, run_server


def measure(kind: str, numbers: Sequence[int], rounds: int) -> list[Row]:
    """Return the figures of the services of one database, by number of builders."""
    with ExitStack() as stack:
        server = stack.enter_context(postgres() if kind == "postgresql" else nullcontext())
        subjects = [stack.enter_context(prepared(number, server)) for number in numbers]
        for subject in subjects:
            subject.measure_alone()
        for subject in subjects:
            subject.warm_up()
        for number in range(rounds):
            for subject in order(subjects, number):
                subject.take_turn()
        results: list[Row] = [
            {"builders": number, "database": kind, **subject.figures(), "CPU of 10 idle s, s": idle}
            for number, subject, idle in zip(numbers, subjects, idle_cpu(subjects), strict=True)
        ]
    compare(results)
    return results


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        sys.exit("PostgreSQL is not installed: apt-get install postgresql")
    with run_server(binaries) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", "--builders", default="5,10000", help="numbers of stopped builders, a service each")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql, or both with a comma between")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    numbers = [int(number) for number in options.rows.split(",")]
    results = []
    for kind in options.database.split(","):
        results += measure(kind, numbers, options.rounds)
        for result in results[-len(numbers) :]:
            print(json.dumps(result), file=sys.stderr, flush=True)
    calls = f"{CALLS} starts, {CALLS} creates and {LISTS} lists of each service in a round"
    print(f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds, {calls}\n")
    print(table(results))
    print(f"\nleast and greatest ratio of a round:\n{spread(results)}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
