"""JavaScript: syntax check by Node.js without running any code, and references to other files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from builderd.domain.reach import References

#: Compiles each file as the kind of module that its ending says, or as either; nothing of it is executed.
CHECKER = r"""
const vm = require('vm'), fs = require('fs');
const names = ['exports', 'require', 'module', '__filename', '__dirname'];
const attempt = (make) => { try { make(); return null; } catch (error) { return error; } };
const fault = (number, path) => {
  const source = fs.readFileSync(process.argv[1] + '/' + number, 'utf8').replace(/^#!.*/, '');
  const script = () => vm.compileFunction(source, names, { filename: 'file' });
  const module = () => new vm.SourceTextModule(source, { identifier: 'file' });
  const kinds = path.endsWith('.mjs') ? [module] : path.endsWith('.cjs') ? [script] : [script, module];
  const errors = kinds.map(attempt);
  if (errors.includes(null)) return null;
  const error = /\b(import|export|await)\b/.test(String(errors[0].message)) ? errors.at(-1) : errors[0];
  const line = /^file:(\d+)/m.exec(String(error.stack));
  return [path, line ? Number(line[1]) : 0, String(error.message).slice(0, 300), error instanceof SyntaxError];
};
const files = JSON.parse(fs.readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(files.map(([path, number]) => fault(number, path)).filter(Boolean)));
"""
OPTIONS = ("--experimental-vm-modules", "--no-warnings", "--max-old-space-size=512", "--no-addons", "--jitless")

IMPORTS = re.compile(r"""\b(?:from\s*|import\s*\(?\s*|require(?:\.resolve)?\s*\(\s*)["'`](\.{1,2}/[^"'`\n]*)["'`]""")
STRINGS = re.compile(r"""["'`]([^"'`\n]{2,200})["'`]""")


class SyntaxProblem(NamedTuple):
    path: str
    line: int
    message: str
    syntax: bool


def syntax_problems(
    node: Sequence[str], folder: Path, files: Sequence[tuple[str, int]], seconds: float
) -> Sequence[SyntaxProblem]:
    """Return the files that do not parse.

    Raises ``OSError``, ``subprocess.SubprocessError`` or ``ValueError`` if Node.js fails.
    """
    done = subprocess.run(
        [*node, *OPTIONS, "-e", CHECKER, str(folder)],
        input=json.dumps(files).encode(),
        capture_output=True,
        env={"OPENSSL_CONF": "/dev/null"},
        check=True,
        timeout=seconds,
    )
    return [SyntaxProblem(*problem) for problem in json.loads(done.stdout)]


def references(text: str, basenames: Mapping[str, Sequence[str]]) -> References:
    """Return the relative imports of a script, and the files of the bundle whose names it contains."""
    mentioned = {path for found in STRINGS.finditer(text) for path in _named(found[1], basenames)}
    return References(
        scripts=tuple(sorted({found[1] for found in IMPORTS.finditer(text)})),
        paths=tuple(sorted(mentioned)),
    )


def _named(text: str, basenames: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield from basenames.get(text.rpartition("/")[2], ())
