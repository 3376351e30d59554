"""Strict parser of ``pyproject.toml`` and ``uv.lock``, which are hostile input.

Only the dependencies are read, and rewritten as requirements; the versions of a lock become constraints. The URLs in a
lock are ignored: its author could put another package under a known name into the cache that all tenants share.

Formats: https://packaging.python.org/en/latest/specifications/pyproject-toml/ and
https://docs.astral.sh/uv/concepts/projects/layout/ ("The lockfile").
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from builderd.adapters.installers import poetry
from builderd.adapters.installers.requirements import MAX_LINES, Requirements, parse_requirement
from builderd.domain.bundles import MAX_CONTENT_BYTES, Bundle
from builderd.domain.errors import InstallFailed

FILE, LOCK = "pyproject.toml", "uv.lock"
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
    constraints = tuple(sorted(_locked(read_toml(bundle, LOCK))))
    return Requirements(tuple(sorted(lines)), constraints, foreign)


def _of_poetry(bundle: Bundle, dependencies: dict[str, Any]) -> Requirements | None:
    """Return the dependencies of a project of Poetry; the versions of its lock become constraints."""
    lines, foreign = set(), False
    try:
        for name, text in poetry.lines(dependencies):
            written, is_foreign = parse_requirement(text)
            canonicalize_name(name, validate=True)
            lines.add(written)
            foreign = foreign or is_foreign
        constraints = {parse_requirement(line)[0] for line in poetry.locked(read_toml(bundle, poetry.LOCK))}
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
        raise InstallFailed(f"{LOCK}: package must be an array of tables: run `uv lock` again.")
    for package in packages:
        name, version, source = _package(package)
        if OWN_SOURCES & source.keys():
            continue
        if "registry" not in source:
            kind = next(iter(source), "no source")
            raise InstallFailed(f"{LOCK}: {name} comes from {kind}: only packages of the index can be locked.")
        versions[name].add(version)
    for name, locked in versions.items():
        if len(locked) == 1:
            yield f"{name}=={locked.pop()}"


def _package(package: Any) -> tuple[str, str, dict[str, Any]]:
    try:
        name, source = canonicalize_name(package["name"], validate=True), package["source"]
        version = "" if OWN_SOURCES & source.keys() else str(Version(package["version"]))
    except (KeyError, TypeError, AttributeError, ValueError, InvalidVersion):
        raise InstallFailed(f"{LOCK}: a package lacks its name, version or source: run `uv lock` again.") from None
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
