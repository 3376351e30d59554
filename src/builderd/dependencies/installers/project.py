"""Strict parser of ``pyproject.toml``, of the locks of uv, Poetry, pipenv and PEP 751, and of ``setup.py`` and
``setup.cfg``, which are hostile input and never run.

Only the dependencies are read, and rewritten as requirements; the versions of a lock become constraints. The URLs in a
lock are ignored: its author could put another package under a known name into the cache that all tenants share.
Packages of extras and of groups, such as those for development, are left out.

Formats: https://packaging.python.org/en/latest/specifications/pyproject-toml/ and …/pylock-toml/,
https://docs.astral.sh/uv/concepts/projects/layout/ ("The lockfile"),
https://python-poetry.org/docs/dependency-specification/ (``poetry.lock`` of Poetry 1 and 2) and
https://pipenv.pypa.io/en/latest/locking.html,
https://setuptools.pypa.io/en/latest/userguide/dependency_management.html and …/declarative_config.html.
"""

from __future__ import annotations

import ast
import configparser
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from builderd.code.model import Bundle
from builderd.core.errors import InstallFailed
from builderd.dependencies.installers.requirements import (
    MAX_LINES,
    MAX_QUOTED,
    Requirements,
    collect,
    parse_requirement,
    read_text,
)

FILE, UV_LOCK = "pyproject.toml", "uv.lock"
#: Source keys by which a lock marks the project itself, which is not installed: its files are the app's.
OWN_SOURCES = frozenset({"editable", "virtual", "directory"})


def read_project(bundle: Bundle) -> Requirements | None:
    """Parse the dependencies of ``pyproject.toml`` and ``uv.lock``; None without the file or without dependencies.

    Raises ``InstallFailed`` with the file, the key and the reason.
    """
    document = read_toml(bundle, FILE)
    project = document.get("project")
    if not isinstance(project, dict):
        return _of_poetry(bundle, _table(document, "tool", "poetry", "dependencies"))
    return collect(FILE, _dependencies(document, project), _locked(read_toml(bundle, UV_LOCK)))


def _of_poetry(bundle: Bundle, dependencies: dict[str, Any]) -> Requirements | None:
    """Return the dependencies of a project of Poetry; the versions of its lock become constraints."""
    try:
        lines = list(_poetry_lines(dependencies))
        constraints = {parse_requirement(line)[0] for line in _poetry_locked(read_toml(bundle, POETRY_LOCK))}
    except ValueError as error:
        raise InstallFailed(f"{FILE}: [tool.poetry.dependencies], or its lock: {error}.") from None
    if len(constraints) > MAX_LINES:
        raise InstallFailed(f"{POETRY_LOCK}: at most {MAX_LINES} packages are read.")
    return collect(f"{FILE}: [tool.poetry.dependencies]", lines, constraints)


def _dependencies(document: dict[str, Any], project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "dependencies" in (project.get("dynamic") or ()):
        raise InstallFailed(f"{FILE}: dynamic dependencies are known only to the build: list them in {FILE} itself.")
    listed = project.get("dependencies", [])
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise InstallFailed(f"{FILE}: project.dependencies must be an array of strings.")
    sources = {canonicalize_name(name): one for name, one in _table(document, "tool", "uv", "sources").items()}
    for index, text in enumerate(listed):
        name = re.match(r"[A-Za-z0-9._-]+", text.strip())
        if name and canonicalize_name(name[0]) in sources:
            cure, source = "write its address here, as in 'name @ git+https://…'", sources[canonicalize_name(name[0])]
            if isinstance(source, dict) and {"workspace", "path"} & source.keys():
                cure = "name what that package needs in its place, and set PYTHONPATH to its folder in the entrypoint"
            raise InstallFailed(f"{FILE}: {text!r} has a source in [tool.uv.sources], which is not read: {cure}.")
        yield f"project.dependencies[{index}]", text.strip()


def _locked(lock: dict[str, Any]) -> Iterator[str]:
    """Yield ``name==version`` of each locked package; one with several versions is left to the resolver."""
    versions: defaultdict[str, set[str]] = defaultdict(set)
    packages = lock.get("package", [])
    if not isinstance(packages, list):
        raise InstallFailed(f"{UV_LOCK}: package must be an array of tables: run `uv lock` again.")
    for package in packages:
        name, version, source = _package(package)
        if OWN_SOURCES & source.keys():
            continue
        if "registry" not in source:
            kind = next(iter(source), "no source")
            raise InstallFailed(f"{UV_LOCK}: {name} comes from {kind}: only packages of the index can be locked.")
        versions[name].add(version)
    for name, locked in versions.items():
        if len(locked) == 1:
            yield f"{name}=={locked.pop()}"


def _package(package: Any) -> tuple[str, str, dict[str, Any]]:
    try:
        name, source = canonicalize_name(package["name"], validate=True), package["source"]
        version = "" if OWN_SOURCES & source.keys() else str(Version(package["version"]))
    except (KeyError, TypeError, AttributeError, ValueError, InvalidVersion):
        raise InstallFailed(f"{UV_LOCK}: a package lacks its name, version or source: run `uv lock` again.") from None
    return name, version, source


def read_toml(bundle: Bundle, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(bundle, path).replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        why = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        raise InstallFailed(f"{path} is not TOML: {why}.") from None


def _table(document: dict[str, Any], *path: str) -> dict[str, Any]:
    table: Any = document
    for name in path:
        table = table.get(name) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


PYLOCK, PIPFILE_LOCK = "pylock.toml", "Pipfile.lock"
#: Where a package may come from that is not in the index.
_ELSEWHERE = ("vcs", "directory", "archive")
_OF_A_GROUP = re.compile(r"\b(?:extras|dependency_groups)\b")


def read_locks(bundle: Bundle) -> Requirements | None:
    """Return the packages of ``pylock.toml``, else of ``Pipfile.lock``; None without any.

    Raises ``InstallFailed`` with the file, the package and the reason.
    """
    if bundle.file(PYLOCK) is not None:
        return collect(PYLOCK, _of_pylock(read_toml(bundle, PYLOCK)))
    if bundle.file(PIPFILE_LOCK) is not None:
        return collect(PIPFILE_LOCK, _of_pipfile(bundle))
    return None


def _of_pylock(lock: dict[str, Any]) -> Iterator[tuple[str, str]]:
    packages = lock.get("packages", [])
    if not _is_list_of_tables(packages):
        raise InstallFailed(f"{PYLOCK}: packages must be an array of tables: make the lock again.")
    for package in packages:
        name, version, marker = (package.get(key) for key in ("name", "version", "marker"))
        if not isinstance(name, str):
            raise InstallFailed(f"{PYLOCK}: a package has no name: make the lock again.")
        if isinstance(marker, str) and _OF_A_GROUP.search(marker):
            continue
        if isinstance(package.get("directory"), dict) and package["directory"].get("path", ".") in (".", "./"):
            continue  # the project itself
        if any(key in package for key in _ELSEWHERE) or not isinstance(version, str):
            raise InstallFailed(f"{PYLOCK}: {name} is not a package of the index with a version.")
        yield name, _with_marker(f"{canonicalize_name(name)}=={version}", marker)


def _of_pipfile(bundle: Bundle) -> Iterator[tuple[str, str]]:
    try:
        document = json.loads(read_text(bundle, PIPFILE_LOCK))
    except (ValueError, RecursionError) as error:
        raise InstallFailed(f"{PIPFILE_LOCK} is not JSON: {error}: make it anew (pipenv lock).") from None
    packages = document.get("default", {}) if isinstance(document, dict) else None
    if not isinstance(packages, dict):
        raise InstallFailed(f"{PIPFILE_LOCK}: default must be an object: run `pipenv lock` again.")
    for name, package in packages.items():
        if not isinstance(package, dict) or not isinstance(package.get("version"), str):
            raise InstallFailed(f"{PIPFILE_LOCK}: {name} is not a package of the index with a version.")
        text = f"{canonicalize_name(name)}{_extras(package)}{package['version']}"
        yield name, _with_marker(text, package.get("markers"))


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _extras(table: dict[str, Any]) -> str:
    extras = table.get("extras", [])
    return f"[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else ""


def _with_marker(text: str, marker: Any) -> str:
    return f"{text} ; {marker}" if isinstance(marker, str) else text


POETRY_LOCK = "poetry.lock"
_VERSION = re.compile(r"\d+(?:\.\d+)*")
#: Keys of a dependency's table by which it comes from elsewhere than the index.
_FOREIGN_KEYS = ("path", "url", "file", "develop")


def _poetry_lines(dependencies: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, requirement) of each dependency that is not optional. Raises ``ValueError`` with the reason."""
    for name, wanted in dependencies.items():
        if name.lower() == "python":
            continue
        for one in wanted if isinstance(wanted, list) else [wanted]:
            table = one if isinstance(one, dict) else {"version": one}
            if not table.get("optional"):
                yield name, _poetry_requirement(name, table)


def _poetry_locked(lock: dict[str, Any]) -> Iterator[str]:
    """Yield ``name==version`` of each locked package of the index. Raises ``ValueError``."""
    packages = lock.get("package", [])
    if not _is_list_of_tables(packages):
        raise ValueError("package must be an array of tables: run `poetry lock` again")
    for package in packages:
        name, version, source = package.get("name"), package.get("version"), package.get("source", {})
        is_of_index = not isinstance(source, dict) or source.get("type") in (None, "legacy")
        if isinstance(name, str) and isinstance(version, str) and is_of_index:
            yield f"{name}=={version}"


def _poetry_requirement(name: str, table: dict[str, Any]) -> str:
    canonicalize_name(name, validate=True)
    for key in _FOREIGN_KEYS:
        if key in table:
            raise ValueError(
                f"{name} has {key}, which is refused: only packages of the index and git+https:// are read"
            )
    wanted = f"{name}{_extras(table)}"
    if "git" in table:
        at = next((f"@{table[key]}" for key in ("rev", "tag", "branch") if key in table), "")
        text = f"{wanted} @ git+{table['git']}{at}"
    else:
        text = f"{wanted}{_specifier(str(table.get('version', '*')))}"
    return _with_marker(text, table.get("markers"))


def _specifier(version: str) -> str:
    """Return Poetry's version constraint as one of PEP 440. Raises ``ValueError`` for alternatives."""
    if "||" in version or " | " in version:
        raise ValueError(f"{version!r} has alternatives, which PEP 508 cannot say: choose one of them")
    found = []
    for part in (part.strip() for part in version.split(",")):
        operator, rest = part[:1], part[1:].strip()
        if operator == "^":
            numbers = _numbers(rest)
            first = next((index for index, number in enumerate(numbers) if number), len(numbers) - 1)
            found.append(f">={rest},<{_next(rest, first)}")
        elif operator == "~" and not part.startswith("~="):
            found.append(f">={rest},<{_next(rest, min(1, len(_numbers(rest)) - 1))}")
        elif part not in ("", "*"):
            found.append(part if operator in "<>=!~" else f"=={part}")
    return ",".join(found)


def _numbers(version: str) -> list[int]:
    found = _VERSION.match(version)
    if found is None:
        raise ValueError(f"{version!r} is no version")
    return [int(number) for number in found[0].split(".")]


def _next(version: str, index: int) -> str:
    """Return the version that follows all that agree up to this number."""
    numbers = _numbers(version)
    return ".".join(str(number) for number in (*numbers[:index], numbers[index] + 1))


SETUP_PY, SETUP_CFG = "setup.py", "setup.cfg"
#: Much more than such files have.
MAX_BYTES = 100_000
KEY = "install_requires"
CURE = "list them in requirements.txt"
#: configparser takes time in the square of the number of lines that it cannot read: 0.05 s for these.
MAX_CFG_LINES = 5_000
#: Two blanks or more behind a text of the same line; configparser takes time in the square of their number.
_RUN = re.compile(r"(?<=\S)([^\S\n])[^\S\n]+")


def read_setup(bundle: Bundle) -> Requirements | None:
    """Return the ``install_requires`` of ``setup.py``, else of ``setup.cfg``; None without any.

    Raises ``InstallFailed`` with the file and the reason, also where only running ``setup.py`` would tell.
    """
    for path, read in ((SETUP_PY, _of_setup_py), (SETUP_CFG, _of_setup_cfg)):
        text = read_text(bundle, path, MAX_BYTES)
        if found := read(text) if text else []:
            return collect(path, [(KEY, one) for one in found])
    return None


def _of_setup_cfg(text: str) -> list[str]:
    if (lines := text.count("\n")) > MAX_CFG_LINES:
        raise InstallFailed(f"{SETUP_CFG} has {lines} lines: at most {MAX_CFG_LINES} are read; {CURE}.")
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(_RUN.sub(r"\1", text))
    except configparser.Error as error:
        reason = " ".join(str(error)[:MAX_QUOTED].split())
        raise InstallFailed(f"{SETUP_CFG} is not readable: {reason}.") from None
    value = parser.get("options", KEY, fallback="").strip()
    if value.startswith(("file:", "attr:")):
        raise _computed(SETUP_CFG, value.split("\n")[0][:MAX_QUOTED])
    parts = (part.strip() for line in value.splitlines() for part in line.split(" #")[0].split(";;"))
    return [part for part in parts if part and not part.startswith("#")]


def _of_setup_py(text: str) -> list[str]:
    if KEY not in text:
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InstallFailed(f"{SETUP_PY} is not Python: {str(error)[:MAX_QUOTED]}.") from None
    nodes = list(ast.walk(tree))
    given = [one.value for node in nodes if isinstance(node, ast.Call) for one in node.keywords if one.arg == KEY]
    if not given and _values(tree, KEY):
        given = [ast.Name(KEY)]  # handed on by ``setup(**locals())``
    if not given and not any(KEY in _words(node) for node in nodes):
        return []  # a comment or a text about it
    if len(given) != 1:
        raise _computed(SETUP_PY, f"it is given {len(given)} times")
    value = given[0]
    if isinstance(value, ast.Name):
        value = _assigned(tree, nodes, value.id)
    if not isinstance(value, ast.List | ast.Tuple):
        raise _computed(SETUP_PY, f"its value in line {value.lineno} is no list")
    texts = [one.value for one in value.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if len(texts) < len(value.elts):
        raise _computed(SETUP_PY, f"its list in line {value.lineno} has more than texts")
    return texts


def _values(tree: ast.Module, name: str) -> list[ast.expr]:
    """Return what statements at the top of the file assign to the name."""
    found = []
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                found.append(node.value)
    return found


def _assigned(tree: ast.Module, nodes: Sequence[ast.AST], name: str) -> ast.expr:
    """Return the value that the file assigns to the name, once. Raises ``InstallFailed`` if it may have another one."""
    values, stores = _values(tree, name), 0
    if len(values) != 1:
        raise _computed(SETUP_PY, f"{name} is assigned {len(values)} times")
    for node in nodes:
        match node:
            case ast.Name(id=found, ctx=ast.Store() | ast.Del()) if found == name and stores == 0:
                stores = 1  # this is the assignment at the top
            case (
                ast.Name(id=found, ctx=ast.Store() | ast.Del())
                | ast.Attribute(value=ast.Name(id=found))
                | ast.Subscript(value=ast.Name(id=found))
                | ast.FunctionDef(name=found)
                | ast.AsyncFunctionDef(name=found)
                | ast.ClassDef(name=found)
                | ast.alias(asname=str(found))
                | ast.alias(name=found, asname=None)
            ) if found == name:
                raise _computed(SETUP_PY, f"{name} is changed in line {node.lineno}")
    return values[0]


def _words(node: ast.AST) -> list[Any]:
    return [getattr(node, field, None) for field in ("id", "arg", "attr", "value")]


def _computed(path: str, why: str) -> InstallFailed:
    return InstallFailed(
        f"{path}: {KEY} is not a plain list of texts ({why}), and builderd does not run {path}: {CURE}."
    )
