"""The lock files contain everything that the project names and imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(lock: str) -> dict[str, str]:
    """Versions by name."""
    found = re.findall(r"(?m)^([A-Za-z0-9_.-]+)==([^\s;]+)", (ROOT / "requirements" / lock).read_text())
    return {canonicalize_name(name): version for name, version in found}


def named(group: str) -> list[Requirement]:
    entries = (
        PROJECT["project"]["dependencies"]
        + PROJECT["project"]["optional-dependencies"]["server"]
        + PROJECT["dependency-groups"][group]
    )
    return [Requirement(one) for one in entries if isinstance(one, str)]


@pytest.mark.parametrize(("lock", "group"), [("runtime.lock", "build"), ("dev.lock", "dev")])
def test_a_lock_has_what_the_project_names_in_a_version_that_it_takes(lock: str, group: str) -> None:
    pins = pinned(lock)
    unmet = [str(one) for one in named(group) if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))]
    assert not unmet, f"run script/lock: {lock} lacks {unmet}"


def test_locked_versions_are_those_installed() -> None:
    assert pinned("runtime.lock").items() <= pinned("dev.lock").items()


def test_every_import_is_installed_by_the_runtime_lock() -> None:
    pins, sources = pinned("runtime.lock"), packages_distributions()
    imported: dict[str, Path] = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: file for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported[node.module.partition(".")[0]] = file
    # Of types alone, and nowhere to be had.
    known = {*sys.stdlib_module_names, "builderd", "_typeshed"}
    foreign = {name: file for name, file in imported.items() if name not in known}
    assert foreign
    lacking = {
        name: file
        for name, file in foreign.items()
        if not any(canonicalize_name(one) in pins for one in sources.get(name, ()))
    }
    assert not lacking
