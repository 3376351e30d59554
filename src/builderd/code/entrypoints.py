"""Files that a command runs. Commands are read, never run; a project's files are untrusted."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from builderd.code.model import BundleFile

#: Only this many bytes of a manifest are read.
MAX_BYTES = 1_000_000


def read_manifest(file: BundleFile | None) -> dict[str, Any] | None:
    """Return the object of a ``package.json``; None without one that can be read, or for one of over 1 MB."""
    try:
        document = json.loads(file.content) if file is not None and file.size <= MAX_BYTES else None
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


@dataclass(frozen=True, slots=True)
class Package:
    """``main`` is the file that an import of the folder runs; ``scripts`` are command lines by their names."""

    main: str | None = None
    scripts: Mapping[str, str] = field(default_factory=dict)


def read_package(file: BundleFile | None) -> Package | None:
    """Return what a ``package.json`` runs; None if there is none that can be read."""
    document = read_manifest(file)
    if document is None:
        return None
    main, scripts = document.get("main"), document.get("scripts")
    named = scripts.items() if isinstance(scripts, dict) else ()
    return Package(main if isinstance(main, str) else None, {k: v for k, v in named if isinstance(v, str)})


#: Shell syntax beyond one program with its arguments; such commands are not analyzed.
SHELL = re.compile(r"[;&|<>`\n(){}]|\$\(|(?:^|\s)(?:cd|source|if|for|while|eval|set|trap|export)\s|^\s*\.\s")
#: ``${PORT:-8000}``: a value, not a program.
VALUE = re.compile(r"\$\{\w+(?::?[-=]\w*)?\}")
VARIABLE = re.compile(r"[A-Za-z_]\w*=")
PYTHON = re.compile(r"python[\d.]*")
SHELLS = frozenset({"sh", "bash", "dash"})
#: Runtimes that find a script without its ending, and the ``main`` file of a folder's package.
SCRIPTED = frozenset({"node", "nodejs", "deno", "bun", "tsx", "ts-node"})
#: Interpreters whose first argument that is no option is a file.
INTERPRETERS = SHELLS | SCRIPTED | {"ruby", "perl", "php"}
#: Options that take the next word with them.
WITH_VALUE = frozenset({"-X", "-W", "-r", "--require", "--import", "--loader", "--env-file", "-I"})
WITH_VALUE_OF_PHP = WITH_VALUE | {"-S", "-t", "-d", "-z"}
#: Letters of options that take code or a module in place of a file.
PYTHON_CODE, SHELL_CODE, CODE = "cm", "c", "cep"
#: Option of a shell that is followed by a command line.
COMMAND_OPTION = re.compile(r"-[a-z]*c")
#: Words before a file, of those that have commands of their own.
COMMANDS = frozenset({"run", "serve", "task", "install", "test", "eval"})
#: Words before the program that do not change which program starts.
WRAPPERS = frozenset({"exec", "nohup", "time", "tini", "--"})
#: Tools that run the scripts of the package file.
PACKAGE_TOOLS, PACKAGE = frozenset({"npm", "yarn", "pnpm", "npx"}), "package.json"
MODULE = re.compile(r"([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)(?::[\w.()]+)?")
HOME = "/app/"
#: Where one command ends and the next begins; what a shell takes out of a word.
ENDS, QUOTES = re.compile(r"[;&|()<>`\n{}]+"), re.compile(r"['\"\\]")
#: In the order in which they are tried.
SCRIPT_ENDINGS = ("", ".js", ".mjs", ".cjs", ".ts", ".tsx", ".jsx", ".json", "/index.js", "/index.mjs", "/index.ts")

#: Variables by which an interpreter, a loader or a tool runs more than its command names.
INTERPRETED = re.compile(
    r"PYTHON(?:PATH|STARTUP|HOME|USERBASE|WARNINGS|BREAKPOINT)|NODE_(?:OPTIONS|PATH)|LD_(?:PRELOAD|LIBRARY_PATH|AUDIT)"
    r"|BASH_ENV|PERL5(?:OPT|LIB|DB)|RUBY(?:OPT|LIB)|PHPRC|PROMPT_COMMAND|GIT_\w*(?:COMMAND|DIFF|PAGER|EDITOR)"
    r"|(?:npm_config|NPM_CONFIG|PIP|UV)_\w+|JAVA_TOOL_OPTIONS"
)
#: Variables with a file that a program runs at its start, and options of Node.js with one.
STARTED = {"BASH_ENV": ".", "PYTHONSTARTUP": "python3"}
REQUIRED = re.compile(r"(?:--require|-r|--import)[= ](\S+)")
#: Files that a tool runs in a folder that it is given: Python's start, Sphinx, pytest, a package's main module.
CONVENTIONAL = ("sitecustomize.py", "usercustomize.py", "conf.py", "conftest.py", "__main__.py", "noxfile.py")
#: What a program that runs all tests runs.
TESTS = re.compile(r"(?:^|/)(?:conftest|test_\w+|\w+_test|noxfile)\.py$")

#: The package of a folder (``""`` for the app's own), or None.
PackageAt = Callable[[str], Package | None]
NO_PACKAGES: Mapping[str, Package] = {}


def exports(variables: Mapping[str, str]) -> str:
    """Return the variables of these that run code, as a line of a shell; empty without one."""
    found = [f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items()) if INTERPRETED.fullmatch(name)]
    runs = [(program, variables[name]) for name, program in STARTED.items() if name in variables]
    runs += [("node", one[1]) for one in REQUIRED.finditer(variables.get("NODE_OPTIONS", ""))]
    words = [f"export {' '.join(found)}", *(f"{one} {shlex.quote(file)}" for one, file in runs)]
    return "; ".join(words) if found else ""


@dataclass(frozen=True, slots=True)
class Entry:
    """``roots`` are the files of the bundle that the command names or imports.

    ``missing`` is the file that a simple command would run and that is not there. ``complete`` is True if the roots
    are everything that it runs.
    """

    roots: tuple[str, ...]
    missing: str | None = None
    complete: bool = False


def entry_of(command: str, paths: Collection[str], package_at: PackageAt = NO_PACKAGES.get) -> Entry:
    """Return the files of the bundle that the command, or each line of it, runs."""
    if below := _split_folder(command, paths, package_at):
        entry = entry_of(*below.rest)
        missing = None if entry.missing is None else below.prefix + entry.missing
        # What they import may lie above the folder: never complete.
        return Entry(tuple(below.prefix + root for root in entry.roots), missing)
    entries = {line: _entry_of_line(line, paths, package_at) for line in command.splitlines() if line.strip()}
    if not entries:
        return Entry(())
    roots = tuple(dict.fromkeys(root for entry in entries.values() for root in entry.roots))
    # A later line's file may be made by an earlier one, such as a build; variables alone run the files that they name.
    own = (one for line, one in entries.items() if ENDS.search(line) or not line.startswith("export "))
    return Entry(roots, next(iter(entries.values())).missing, complete=all(entry.complete for entry in own))


class _Below(NamedTuple):
    """Commands that run in a folder: its path with a slash, and the arguments that judge them from there."""

    prefix: str
    rest: tuple[str, Collection[str], PackageAt]


def _split_folder(command: str, paths: Collection[str], package_at: PackageAt) -> _Below | None:
    """Return the commands after a first line that only goes to a folder of the bundle."""
    first, _, rest = command.strip().partition("\n")
    try:
        words = shlex.split(first)
    except ValueError:
        return None
    folder = _inside(words[1]) if len(words) == 2 and words[0] == "cd" else None
    if not rest.strip() or folder in (None, "."):
        return None
    prefix = f"{folder}/"
    inner = frozenset(path.removeprefix(prefix) for path in paths if path.startswith(prefix))
    return _Below(prefix, (rest, inner, lambda at: package_at(posixpath.normpath(prefix + at))))


def _entry_of_line(line: str, paths: Collection[str], package_at: PackageAt) -> Entry:
    line = VALUE.sub("$VALUE", line)
    try:
        words = shlex.split(line)
    except ValueError:
        return Entry(tuple(_named(line.split(), paths)))
    if SHELL.search(line):
        return Entry(tuple(_named(words, paths)))
    program = _program_of(words)
    if not program:
        return Entry(())
    name = posixpath.basename(program[0])
    runs_script = name in SCRIPTED and any(word == "--run" or word.startswith("--run=") for word in program)
    if PACKAGE in paths and (name in PACKAGE_TOOLS or runs_script):
        return Entry((PACKAGE,), complete=True)
    target = None
    if PYTHON.fullmatch(name) or name in INTERPRETERS:
        target = _first_argument(name, program[1:])
    elif program[0].startswith(("./", HOME)):
        target = program[0]
    if target is None or target in COMMANDS:
        roots = tuple(_named(program, paths))
        return Entry(roots, complete=bool(roots))
    path = _inside(target)
    found = path and _find_file(path, name, paths, package_at)
    if found:
        # PHP's own web server runs any file that is asked for.
        return Entry((found,), complete="-S" not in program)
    if path is None or path == "." or any(one.startswith(f"{path}/") for one in paths):
        return Entry(tuple(_named(program, paths)))
    return Entry((), missing=path)


def _find_file(path: str, name: str, paths: Collection[str], package_at: PackageAt) -> str | None:
    """Return the file that this interpreter runs for the path, or None."""
    candidates = [path]
    if PYTHON.fullmatch(name):
        candidates.append(f"{path}/__main__.py")
    elif name in SCRIPTED:
        package = package_at("" if path == "." else path)
        candidates = [path + ending for ending in SCRIPT_ENDINGS if not ending.startswith("/")]
        if package is not None and package.main:
            candidates += [posixpath.normpath(f"{path}/{package.main}") + ending for ending in SCRIPT_ENDINGS]
        candidates += [path + ending for ending in SCRIPT_ENDINGS if ending.startswith("/")]
    return next((one for one in map(posixpath.normpath, candidates) if one in paths), None)


def interpreted(
    command: str, paths: Collection[str], package_at: PackageAt = NO_PACKAGES.get
) -> Iterator[tuple[str, str]]:
    """Yield (file, program) for each file that the command passes to a program; program ``""``: run directly.

    For a package tool, follows every script of the package. A word that only looks like a program counts as one.
    """
    if below := _split_folder(command, paths, package_at):
        yield from ((below.prefix + file, name) for file, name in interpreted(*below.rest))
    tools = {posixpath.basename(word) for word in QUOTES.sub(" ", command).split()} & (PACKAGE_TOOLS | {"bun"})
    if PACKAGE in paths and (tools or "--run" in command) and (package := package_at("")):
        for script in package.scripts.values():
            yield from interpreted(script, paths)
    folder = ""
    for part in ENDS.split(QUOTES.sub("", VALUE.sub("$VALUE", command))):
        words = part.split()
        if words[:1] == ["cd"]:
            folder = posixpath.join(folder, _inside("".join(words[1:2])) or "")
        for name, target in _script_arguments(words):
            path = _inside(target)
            found = path and _find_file(posixpath.normpath(posixpath.join(folder, path)), name, paths, package_at)
            if found:
                yield found, name


def _script_arguments(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (program, file) for each program in one command without quotes."""
    start = len(words) - len(_program_of(words))
    for index, word in enumerate(words):
        name = posixpath.basename(word)
        rest = [one for one in words[index + 1 :] if one not in COMMANDS]
        if PYTHON.fullmatch(name) or name in INTERPRETERS:
            target = _first_argument(name, rest)
            if target is not None:
                yield name, target
        elif word in (".", "source") and rest:
            yield "sh", rest[0]
        elif name == "make":
            yield "make", "Makefile"
        elif "/" in word and (index == start or COMMAND_OPTION.fullmatch(words[index - 1])):
            yield "", word


def _program_of(words: Sequence[str]) -> list[str]:
    rest = list(words)
    while rest and (rest[0] in WRAPPERS or VARIABLE.match(rest[0]) or rest[0] == "env"):
        rest.pop(0)
    return rest


def _first_argument(name: str, words: Sequence[str]) -> str | None:
    with_value = WITH_VALUE_OF_PHP if name == "php" else WITH_VALUE
    code = SHELL_CODE if name in SHELLS else PYTHON_CODE if PYTHON.fullmatch(name) else CODE
    rest = iter(words)
    for word in rest:
        if word in with_value:
            next(rest, None)
        elif word.startswith("--"):
            if word in ("--eval", "--print", "--check", "--run"):
                return None
        elif word.startswith("-"):
            if word == "-" or (word[:2] not in with_value and any(letter in word for letter in code)):
                return None
        else:
            return word
    return None


def _inside(target: str) -> str | None:
    """Return the path within the bundle, or None if it leads outside or contains a variable."""
    if "$" in target or "*" in target or "?" in target:
        return None
    target = target.removeprefix(HOME)
    if target.startswith(("/", "~", "..")):
        return None
    return posixpath.normpath(target)


def _named(words: Sequence[str], paths: Collection[str]) -> Iterator[str]:
    """Yield the files that any word names, as a path or as a module (``main:app``, ``pkg.main``)."""
    for word in words:
        for part in re.split(r"[=,;&|()\s]+", word):
            path = _inside(part) if part else None
            if path in paths:
                assert path is not None
                yield path
            elif (module := MODULE.fullmatch(part)) is not None:
                yield from module_files(module[1], paths)
            for folder in part.split(":"):
                conventional = (posixpath.normpath(posixpath.join(_inside(folder) or "", one)) for one in CONVENTIONAL)
                yield from (one for one in conventional if folder and one in paths)
            if part in ("pytest", "py.test", "tox", "nox", "unittest"):
                yield from (one for one in paths if TESTS.search(one))


def module_files(module: str, paths: Collection[str], folders: Sequence[str] = ("", "src/")) -> Iterator[str]:
    """Yield the files that an import of this dotted name runs, packages first."""
    parts = module.split(".")
    for folder in folders:
        for count in range(1, len(parts) + 1):
            stem = folder + "/".join(parts[:count])
            for path in (f"{stem}.py", f"{stem}/__init__.py", f"{stem}/__main__.py" if count == len(parts) else ""):
                if path in paths:
                    yield path
