"""What the gates find, miss and cost.

    script/bench gates [--only packages|shapes|verdicts|creations] [--package NAME] [--patience N] [--rounds N] …

The packages come from PyPI and npm by pip and npm, as pinned; nothing of them is installed or run. Ends with 1 when a
benign app is blocked for what ``reasons.txt`` does not name.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.gates import latency, table
from benchmarks.gates.packages import fetch, read_list
from tests.gate import bundle_of
from tests.malware_shapes import SHAPES
from tests.reverse_shells import REVERSE_SHELLS

from builderd.bootstrap.review import make_review_policy, make_scanner
from builderd.settings import Settings

PARTS = ("packages", "shapes", "verdicts", "creations")
SMALL = {"main.py": latency.APP.format("hello"), "requirements.txt": "flask"}
#: 200 files of some 60 lines each.
LARGE = {
    f"app/m{n}.py": f"import os\n\nN = {n}\n" + "\n\ndef f(x):\n    return [x, N, os.getpid()]\n" * 12
    for n in range(199)
}
GOALS = {"a small app": 0.05, "200 files": 4.0}


async def judge(parts: list[str], options: argparse.Namespace) -> list[str]:
    """What is printed; complaints go to standard error."""
    scanner = make_scanner(Settings())
    policy = make_review_policy(Settings())
    limits = replace(policy.limits, wall_seconds=policy.limits.wall_seconds * options.patience)
    reviewer = table.Reviewer(scanner, replace(policy, limits=limits))
    told: list[str] = []
    try:
        await scanner.prepare()
        rows = {}
        if "packages" in parts:
            wanted = [one for one in read_list() if not options.package or one.name in options.package]
            found = await table.judge_packages(reviewer, fetch(wanted, options.cache))
            rows[f"benign: apps of {len({row.package for row in found})} packages"] = found
        if "shapes" in parts:
            for name, cases in (("shapes of malware", SHAPES), ("reverse shells", REVERSE_SHELLS)):
                rows[name] = [await reviewer.judge(title, "", bundle_of(f), e) for title, (f, e) in cases.items()]
        if rows:
            told += [table.HEAD, *(table.line_of(name, of) for name, of in rows.items()), ""]
        if options.details:
            options.details.write_text("\n".join(line for of in rows.values() for line in table.details(of)) + "\n")
        if "verdicts" in parts:
            told += ["| verdict, warm | ms, median | most | goal |", "|---|---|---|---|"]
            for (name, goal), files in zip(GOALS.items(), (SMALL, {"main.py": "import app.m1", **LARGE}), strict=True):
                some = [
                    await reviewer.judge(name, "", bundle_of(files), "python3 main.py") for _ in range(options.rounds)
                ]
                ms = [row.seconds * 1000 for row in some]
                told.append(f"| {name} | {statistics.median(ms):.0f} | {max(ms):.0f} | ≤ {goal * 1000:,.0f} |")
            told.append("")
    finally:
        await scanner.close()
    complaints = table.unexplained(
        [row for name, of in rows.items() if "benign" in name for row in of], table.read_reasons()
    )
    for complaint in complaints:
        print(f"blocked without a reason: {complaint}", file=sys.stderr)
    options.failed = bool(complaints)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--cache", type=Path, default=Path("/var/cache/builderd-bench"))
    parser.add_argument("--package", action="append", help="Only this one.")
    parser.add_argument("--patience", type=float, default=1, help="Times the policy's wall time, on a busy machine.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--details", type=Path, help="Where to write what stopped each app.")
    options = parser.parse_args()
    parts = options.only or list(PARTS)
    print("\n".join(asyncio.run(judge(parts, options))))
    if "creations" in parts:
        print("\n".join(latency.lines(latency.measure(options.rounds))))
    if options.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
