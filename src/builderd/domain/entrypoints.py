"""Entrypoints: which of a bundle's files a command starts, as far as that can be told without running it."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

#: What makes a command more than one program with its arguments; such commands are not judged.
SHELL = re.compile(r"[;&|<>`\n(){}]|\$\(|(?:^|\s)(?:cd|source|\.|if|for|while|eval|set|trap|export)\s")
#: ``${PORT:-8000}``: a value, and no program.
VALUE = re.compile(r"\$\{\w+(?::?[-=]\w*)?\}")
VARIABLE = re.compile(r"[A-Za-z_]\w*=")
PYTHON = re.compile(r"python[\d.]*")
#: Interpreters whose first argument that is no option is a file.
INTERPRETERS = frozenset(
    {"node", "nodejs", "sh", "bash", "dash", "ruby", "perl", "php", "deno", "bun", "tsx", "ts-node"}
)
#: Options that take the next word with them.
WITH_VALUE = frozenset({"-X", "-W", "-r", "--require", "--import", "--loader", "--env-file", "-I"})
#: Words before the program that change nothing of what it starts.
WRAPPERS = frozenset({"exec", "nohup", "time", "tini", "--"})
#: They run what the package file says.
PACKAGE_TOOLS, PACKAGE = frozenset({"npm", "yarn", "pnpm", "npx"}), "package.json"
MODULE = re.compile(r"([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)(?::[\w.()]+)?")
HOME = "/app/"


@dataclass(frozen=True, slots=True)
class Entry:
    """``roots`` are the files of the bundle that the command names or imports.

    ``missing`` is the file that a simple command would run and that is not there. ``known`` tells whether the roots
    are all that it starts.
    """

    roots: tuple[str, ...]
    missing: str | None = None
    known: bool = False


def entry_of(command: str, paths: Collection[str]) -> Entry:
    """What the command starts."""
    command = VALUE.sub("$VALUE", command)
    words = _words(command)
    if SHELL.search(command) or words is None:
        return Entry(tuple(_named(words or command.split(), paths)))
    program = _program_of(words)
    if not program:
        return Entry(())
    target = _file_of(program)
    if target is None:
        if program[0] in PACKAGE_TOOLS and PACKAGE in paths:
            return Entry((PACKAGE,), known=True)
        roots = tuple(_named(program, paths))
        return Entry(roots, known=bool(roots))
    return _entry_of_file(target, program, paths)


def _entry_of_file(target: str, program: Sequence[str], paths: Collection[str]) -> Entry:
    path = _inside(target)
    if path is None:
        return Entry(tuple(_named(program, paths)))
    found = [one for one in (path, f"{path}/__main__.py") if one in paths]
    return Entry((found[0],), known=True) if found else Entry((), missing=path)


def _words(command: str) -> list[str] | None:
    try:
        return shlex.split(command)
    except ValueError:
        return None


def _program_of(words: Sequence[str]) -> list[str]:
    rest = list(words)
    while rest and (rest[0] in WRAPPERS or VARIABLE.match(rest[0]) or rest[0] == "env"):
        rest.pop(0)
    return rest


def _file_of(program: Sequence[str]) -> str | None:
    """The file that an interpreter is told to run, or that is a program itself; None for any other command."""
    name = posixpath.basename(program[0])
    if PYTHON.fullmatch(name) or name in INTERPRETERS:
        return _first_argument(program[1:])
    if program[0].startswith(("./", HOME)):
        return program[0]
    return None


def _first_argument(words: Sequence[str]) -> str | None:
    rest = iter(words)
    for word in rest:
        if word in WITH_VALUE:
            next(rest, None)
        elif word.startswith("-"):
            if word.lstrip("-")[:1] in ("c", "m", "e", "p") or word in ("--eval", "--print", "--check", "-"):
                return None
        else:
            return word if word not in ("run", "serve", "task", "install", "test", "eval") else None
    return None


def _inside(target: str) -> str | None:
    """The path within the bundle, or None when it leads elsewhere or depends on a variable."""
    if "$" in target or "*" in target or "?" in target:
        return None
    if target.startswith(HOME):
        target = target.removeprefix(HOME)
    if target.startswith(("/", "~", "..")):
        return None
    return posixpath.normpath(target)


def _named(words: Sequence[str], paths: Collection[str]) -> Iterator[str]:
    """Files that any word names, as a path or as a module (``main:app``, ``pkg.main``)."""
    for word in words:
        for part in re.split(r"[=,;&|()\s]+", word):
            path = _inside(part) if part else None
            if path in paths:
                assert path is not None
                yield path
            elif (module := MODULE.fullmatch(part)) is not None:
                yield from module_files(module[1], paths)


def module_files(module: str, paths: Collection[str], folders: Sequence[str] = ("", "src/")) -> Iterator[str]:
    """The files that importing this module by its dotted name would run, packages first."""
    parts = module.split(".")
    for folder in folders:
        for count in range(1, len(parts) + 1):
            stem = folder + "/".join(parts[:count])
            for path in (f"{stem}.py", f"{stem}/__init__.py", f"{stem}/__main__.py" if count == len(parts) else ""):
                if path in paths:
                    yield path
