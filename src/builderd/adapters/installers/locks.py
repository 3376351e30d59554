"""Strict parser of ``pylock.toml`` (PEP 751) and ``Pipfile.lock``, which are hostile input.

Each package is rewritten as a requirement with its version and marker; addresses, hashes and indexes are ignored, as
those of a ``uv.lock``. Packages of extras and of groups, such as those for development, are left out.

Formats: https://packaging.python.org/en/latest/specifications/pylock-toml/ and
https://pipenv.pypa.io/en/latest/locking.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from packaging.utils import canonicalize_name

from builderd.adapters.installers.project import read_toml
from builderd.adapters.installers.requirements import MAX_LINES, Requirements, parse_requirement
from builderd.domain.bundles import MAX_CONTENT_BYTES, Bundle
from builderd.domain.errors import InstallFailed

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
