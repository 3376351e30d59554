"""Strict parser of ``pyproject.toml`` and ``uv.lock``, which are hostile input.

Only the dependencies are read, and rewritten as requirements; the versions of a lock become constraints. The URLs in a
lock are ignored: its author could put another package under a known name into the cache that all tenants share.

Formats: https://packaging.python.org/en/latest/specifications/pyproject-toml/ and
https://docs.astral.sh/uv/concepts/projects/layout/ ("The lockfile").
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from builderd.adapters.installers.requirements import MAX_LINES, Requirements, parse_requirement
from builderd.domain.bundles import MAX_CONTENT_BYTES, Bundle
from builderd.domain.errors import InstallFailed

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
    lines, foreign = _dependencies(document, project)
    if not lines:
        return None
    constraints = tuple(sorted(_locked(read_toml(bundle, UV_LOCK))))
    return Requirements(tuple(sorted(lines)), constraints, foreign)


def _of_poetry(bundle: Bundle, dependencies: dict[str, Any]) -> Requirements | None:
    """Return the dependencies of a project of Poetry; the versions of its lock become constraints."""
    lines, foreign = set(), False
    try:
        for name, text in poetry_lines(dependencies):
            written, is_foreign = parse_requirement(text)
            canonicalize_name(name, validate=True)
            lines.add(written)
            foreign = foreign or is_foreign
        constraints = {parse_requirement(line)[0] for line in poetry_locked(read_toml(bundle, POETRY_LOCK))}
    except ValueError as error:
        raise InstallFailed(f"{FILE}: [tool.poetry.dependencies], or its lock: {error}.") from None
    if max(len(lines), len(constraints)) > MAX_LINES:
        raise InstallFailed(f"{FILE}: at most {MAX_LINES} dependencies are read.")
    return Requirements(tuple(sorted(lines)), tuple(sorted(constraints)), foreign) if lines else None


def _dependencies(document: dict[str, Any], project: dict[str, Any]) -> tuple[set[str], bool]:
    if "dependencies" in (project.get("dynamic") or ()):
        raise InstallFailed(f"{FILE}: dynamic dependencies are known only to the build: list them in {FILE} itself.")
    listed = project.get("dependencies", [])
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise InstallFailed(f"{FILE}: project.dependencies must be an array of strings.")
    if len(listed) > MAX_LINES:
        raise InstallFailed(f"{FILE}: at most {MAX_LINES} dependencies are read.")
    sources = {canonicalize_name(name) for name in _table(document, "tool", "uv", "sources")}
    lines, foreign = set(), False
    for index, text in enumerate(listed):
        try:
            written, is_foreign = parse_requirement(text.strip())
        except ValueError as error:
            raise InstallFailed(f"{FILE}: project.dependencies[{index}]: {error}.") from None
        if canonicalize_name(Requirement(written).name) in sources:
            raise InstallFailed(
                f"{FILE}: {text!r} has a source in [tool.uv.sources], which is not read: "
                "write its address into the dependency itself, as in 'name @ git+https://…'."
            )
        lines.add(written)
        foreign = foreign or is_foreign
    return lines, foreign


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
    file = bundle.file(path)
    if file is None:
        return {}
    if file.size > MAX_CONTENT_BYTES:
        raise InstallFailed(f"{path} has {file.size} bytes: at most {MAX_CONTENT_BYTES} are read.")
    try:
        return tomllib.loads(file.content.decode("utf-8-sig").replace("\r\n", "\n"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
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
        return _requirements(PYLOCK, _of_pylock(read_toml(bundle, PYLOCK)))
    if bundle.file(PIPFILE_LOCK) is not None:
        return _requirements(PIPFILE_LOCK, _of_pipfile(_json(bundle)))
    return None


def _requirements(path: str, packages: Iterator[tuple[str, str]]) -> Requirements | None:
    lines: set[str] = set()
    foreign = False
    for name, text in packages:
        if len(lines) >= MAX_LINES:
            raise InstallFailed(f"{path}: at most {MAX_LINES} packages are read.")
        try:
            written, is_foreign = parse_requirement(text)
        except ValueError as error:
            raise InstallFailed(f"{path}: {name}: {error}.") from None
        lines.add(written)
        foreign = foreign or is_foreign
    return Requirements(tuple(sorted(lines)), (), foreign) if lines else None


def _of_pylock(lock: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for package in _list(lock.get("packages", []), PYLOCK, "packages"):
        name, version, marker = (package.get(key) for key in ("name", "version", "marker"))
        if not isinstance(name, str):
            raise InstallFailed(f"{PYLOCK}: a package has no name: make the lock again.")
        if isinstance(marker, str) and _OF_A_GROUP.search(marker):
            continue
        if isinstance(package.get("directory"), dict) and package["directory"].get("path", ".") in (".", "./"):
            continue  # the project itself
        if any(key in package for key in _ELSEWHERE) or not isinstance(version, str):
            raise InstallFailed(f"{PYLOCK}: {name} is not a package of the index with a version.")
        yield name, _line(name, f"=={version}", marker)


def _of_pipfile(lock: dict[str, Any]) -> Iterator[tuple[str, str]]:
    packages = lock.get("default", {})
    if not isinstance(packages, dict):
        raise InstallFailed(f"{PIPFILE_LOCK}: default must be an object: run `pipenv lock` again.")
    for name, package in packages.items():
        if not isinstance(package, dict) or not isinstance(package.get("version"), str):
            raise InstallFailed(f"{PIPFILE_LOCK}: {name} is not a package of the index with a version.")
        extras = package.get("extras", [])
        wanted = f"[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else ""
        yield name, _line(f"{name}{wanted}", package["version"], package.get("markers"))


def _line(name: str, version: str, marker: Any) -> str:
    bare, bracket, extras = name.partition("[")
    return f"{canonicalize_name(bare)}{bracket}{extras}{version}" + (f" ; {marker}" if isinstance(marker, str) else "")


def _list(value: Any, path: str, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InstallFailed(f"{path}: {key} must be an array of tables: make the lock again.")
    return value


def _json(bundle: Bundle) -> dict[str, Any]:
    file = bundle.file(PIPFILE_LOCK)
    assert file is not None, "it was looked up before"
    if file.size > MAX_CONTENT_BYTES:
        raise InstallFailed(f"{PIPFILE_LOCK} has {file.size} bytes: at most {MAX_CONTENT_BYTES} are read.")
    try:
        document = json.loads(file.content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InstallFailed(f"{PIPFILE_LOCK} is not JSON: {error}: make it anew (pipenv lock).") from None
    if not isinstance(document, dict):
        raise InstallFailed(f"{PIPFILE_LOCK} must hold a JSON object.")
    return document


POETRY_LOCK = "poetry.lock"
_VERSION = re.compile(r"\d+(?:\.\d+)*")
#: Keys of a dependency's table by which it comes from elsewhere than the index.
_FOREIGN_KEYS = ("path", "url", "file", "develop")


def poetry_lines(dependencies: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, requirement) of each dependency that is not optional. Raises ``ValueError`` with the reason."""
    for name, wanted in dependencies.items():
        if name.lower() == "python":
            continue
        for one in wanted if isinstance(wanted, list) else [wanted]:
            table = one if isinstance(one, dict) else {"version": one}
            if not table.get("optional"):
                yield name, _poetry_requirement(name, table)


def poetry_locked(lock: dict[str, Any]) -> Iterator[str]:
    """Yield ``name==version`` of each locked package of the index. Raises ``ValueError``."""
    packages = lock.get("package", [])
    if not isinstance(packages, list) or not all(isinstance(one, dict) for one in packages):
        raise ValueError("package must be an array of tables: run `poetry lock` again")
    for package in packages:
        name, version, source = package.get("name"), package.get("version"), package.get("source", {})
        is_of_index = not isinstance(source, dict) or source.get("type") in (None, "legacy")
        if isinstance(name, str) and isinstance(version, str) and is_of_index:
            yield f"{name}=={version}"


def _poetry_requirement(name: str, table: dict[str, Any]) -> str:
    for key in _FOREIGN_KEYS:
        if key in table:
            raise ValueError(
                f"{name} has {key}, which is refused: only packages of the index and git+https:// are read"
            )
    extras = table.get("extras", [])
    wanted = f"{name}[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else name
    if "git" in table:
        at = next((f"@{table[key]}" for key in ("rev", "tag", "branch") if key in table), "")
        text = f"{wanted} @ git+{table['git']}{at}"
    else:
        text = f"{wanted}{_specifier(str(table.get('version', '*')))}"
    marker = table.get("markers")
    return f"{text} ; {marker}" if isinstance(marker, str) else text


def _specifier(version: str) -> str:
    """Return Poetry's version constraint as one of PEP 440. Raises ``ValueError`` for alternatives."""
    if "||" in version or " | " in version:
        raise ValueError(f"{version!r} has alternatives, which PEP 508 cannot say: choose one of them")
    return ",".join(filter(None, (_part(part.strip()) for part in version.split(","))))


def _part(part: str) -> str:
    if part in ("", "*"):
        return ""
    operator, rest = part[:1], part[1:].strip()
    if operator == "^":
        return f">={rest},<{_next(rest, _first_not_zero(rest))}"
    if operator == "~" and not part.startswith("~="):
        return f">={rest},<{_next(rest, min(1, _count(rest) - 1))}"
    return part if operator in "<>=!~" else f"=={part}"


def _numbers(version: str) -> list[int]:
    found = _VERSION.match(version)
    if found is None:
        raise ValueError(f"{version!r} is no version")
    return [int(number) for number in found[0].split(".")]


def _count(version: str) -> int:
    return len(_numbers(version))


def _first_not_zero(version: str) -> int:
    numbers = _numbers(version)
    return next((index for index, number in enumerate(numbers) if number), len(numbers) - 1)


def _next(version: str, index: int) -> str:
    """Return the version that follows all that agree up to this number."""
    numbers = _numbers(version)
    return ".".join(str(number) for number in (*numbers[:index], numbers[index] + 1))
