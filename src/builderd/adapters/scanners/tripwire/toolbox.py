"""The programs that scan, where they lie on this host and in the worker's root, and their versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from builderd.adapters.scanners.tripwire.analysis import Tools

RUFF, TARGET = "/opt/ruff", "/opt/target"
#: The vendored rules (see ``rules/``).
RULES = {"gitleaks rules": "8.30.1", "GuardDog rules": "3.2.0"}
PACKAGES = ("google-re2", "ruff", "yara-python")
LOADERS = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}
OWN_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """``versions`` stand in each report."""

    tools: Tools
    versions: Mapping[str, str]


def find_toolbox(target: Path | None, node: Path | None = None, ruff: Path | None = None) -> Toolbox:
    """``target`` is the root file system that apps see: its own Python and Node.js then judge the syntax.

    Without one, this process's Python does, and the given ``node``, if any.
    """
    ruff = ruff or Path(sys.executable).with_name("ruff")
    binds = [(prefix, prefix) for prefix in _prefixes(node)]
    if ruff.is_file():
        binds.append((str(ruff), RUFF))
    python = OWN_PYTHON
    script: tuple[str, ...] | None = (str(node),) if node else None
    if target is not None:
        # Debian's Node.js reads a part of itself from there; nothing else of the worker reads anything there.
        binds += [(str(target), TARGET), (str(target / "usr/share"), "/usr/share")]
        python = _python_of(target) or OWN_PYTHON
        script = _foreign(target, "usr/bin/node") or script
    other = None if python == OWN_PYTHON or target is None else _foreign(target, f"usr/bin/python{python}")
    tools = Tools(RUFF if ruff.is_file() else None, script, other, tuple(binds))
    return Toolbox(tools, _versions(python, target))


def _prefixes(node: Path | None) -> list[str]:
    """Folders of programs that do not lie in /usr, which is there anyway."""
    wanted = {sys.base_prefix, *((str(node.parent),) if node else ())}
    return sorted(prefix for prefix in wanted if not Path(prefix).is_relative_to("/usr"))


def _python_of(target: Path) -> str | None:
    """``3.13``: what the target's ``python3`` leads to."""
    try:
        return str((target / "usr/bin/python3").readlink()).removeprefix("python")
    except OSError:
        return None


def _foreign(target: Path, program: str) -> tuple[str, ...] | None:
    """A program of another root file system, run by the loader and with the libraries of that one."""
    loader, triplet = LOADERS[platform.machine()], f"{platform.machine()}-linux-gnu"
    if not (target / program).exists():
        return None
    return (f"{TARGET}/usr/{loader}", "--library-path", f"{TARGET}/usr/lib/{triplet}", f"{TARGET}/{program}")


def _versions(python: str, target: Path | None) -> Mapping[str, str]:
    found = {"python": python, **RULES}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not on this machine, so left out"
    if target is not None:
        found["base"] = target.parent.name
    return found
