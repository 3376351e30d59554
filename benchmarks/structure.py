"""Figures of the source tree: sizes, function lengths, parameters, docstring openings, import cycles.

``script/bench structure`` prints them for src/builderd; ``--source DIR`` for another tree, such as that of an earlier
revision (``git archive``), without the checks that have rules of their own there. A length counts lines from ``def`` to
the end; parameters are without self and cls.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_LINES, MAX_PARAMETERS = 400, 6


@dataclass(frozen=True, slots=True)
class Function:
    """``where`` is ``path:name``."""

    where: str
    length: int
    parameters: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT / "src" / "builderd")
    source: Path = parser.parse_args().source
    files = {path.relative_to(source): path.read_text() for path in sorted(source.rglob("*.py"))}
    functions = [function for path, text in files.items() for function in functions_of(path, ast.parse(text))]
    # A migration is never changed once it has landed, and is read once.
    changeable = [function for function in functions if "migrations/versions" not in function.where]
    lengths = sorted(function.length for function in changeable)
    long_files = sorted(
        ((text.count("\n"), str(path)) for path, text in files.items() if text.count("\n") > MAX_LINES), reverse=True
    )
    wide = sorted(
        ((function.parameters, function.where) for function in changeable if function.parameters > MAX_PARAMETERS),
        reverse=True,
    )
    print(f"files {len(files)}, lines {sum(text.count(chr(10)) for text in files.values())}")
    print(
        f"functions {len(lengths)}: length median {statistics.median_low(lengths)}, "
        f"p95 {percentile(lengths, 0.95)}, max {lengths[-1]}"
    )
    listed(f"files over {MAX_LINES} lines", long_files)
    listed(f"functions with more than {MAX_PARAMETERS} parameters", wide)
    if source.samefile(ROOT / "src" / "builderd"):
        print(f"docstrings, log lines and test names against the rules: {len(language_faults())}")
        print(f"import contracts: {import_contracts()}")


def functions_of(path: Path, tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parameters = sum(argument.arg not in {"self", "cls"} for argument in arguments)
            yield Function(f"{path}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1, parameters)


def percentile(ordered: Sequence[int], part: float) -> int:
    return ordered[int(len(ordered) * part)]


def listed(title: str, rows: Sequence[tuple[int, str]]) -> None:
    print(f"{title}: {len(rows)}")
    for number, where in rows:
        print(f"  {number:4} {where}")


def language_faults() -> Sequence[str]:
    script = [sys.executable, str(ROOT / "script" / "language.py")]
    return subprocess.run(script, capture_output=True, text=True, check=False).stdout.splitlines()


def import_contracts() -> str:
    """Return the last line that import-linter prints, such as ``Contracts: 8 kept, 0 broken.``"""
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return next((line for line in answer.splitlines() if line.startswith("Contracts:")), "not checked")


if __name__ == "__main__":
    main()
