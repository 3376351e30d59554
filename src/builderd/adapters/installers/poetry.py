"""Dependencies in ``[tool.poetry]`` and ``poetry.lock``, which are hostile input, as requirements.

Formats: https://python-poetry.org/docs/dependency-specification/ and ``poetry.lock`` of Poetry 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LOCK = "poetry.lock"
_VERSION = re.compile(r"\d+(?:\.\d+)*")
#: Keys of a dependency's table by which it comes from elsewhere than the index.
_ELSEWHERE = ("path", "url", "file", "develop")


def lines(dependencies: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, requirement) of each dependency that is not optional. Raises ``ValueError`` with the reason."""
    for name, wanted in dependencies.items():
        if name.lower() == "python":
            continue
        for one in wanted if isinstance(wanted, list) else [wanted]:
            table = one if isinstance(one, dict) else {"version": one}
            if not table.get("optional"):
                yield name, _requirement(name, table)


def locked(lock: dict[str, Any]) -> Iterator[str]:
    """Yield ``name==version`` of each locked package of the index. Raises ``ValueError``."""
    packages = lock.get("package", [])
    if not isinstance(packages, list) or not all(isinstance(one, dict) for one in packages):
        raise ValueError("package must be an array of tables: run `poetry lock` again")
    for package in packages:
        name, version, source = package.get("name"), package.get("version"), package.get("source", {})
        is_of_index = not isinstance(source, dict) or source.get("type") in (None, "legacy")
        if isinstance(name, str) and isinstance(version, str) and is_of_index:
            yield f"{name}=={version}"


def _requirement(name: str, table: dict[str, Any]) -> str:
    for key in _ELSEWHERE:
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
