"""Names of the packages that a project asks for, by all manifests and locks that people use, installed or not.

They are only compared with known names. The manifests are hostile: what cannot be read names nothing.
"""

from __future__ import annotations

import re
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Iterator
from typing import Any

MAX_INCLUDES, MAX_SCRIPTS, MAX_HEAD, MAX_DOTS = 20, 20, 10_000, 500
REQUIREMENTS = "requirements.txt"
_NAME = re.compile(r"\s*[\"']?([A-Za-z0-9][A-Za-z0-9._-]{0,100})(?:\[([\w,. -]{1,100})\])?")
_INCLUDE = re.compile(r"\s*(?:-r|--requirement)[ =]?\s*([^\s#]{1,200})")
#: Where other files have names.
_OTHERS = {
    **dict.fromkeys(("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml"), r'(?m)^name = "([A-Za-z0-9._-]{1,100})"$'),
    **dict.fromkeys(("environment.yml", "environment.yaml"), r"(?m)^\s*-\s+([A-Za-z0-9._-]{1,100})"),
    **dict.fromkeys(("setup.py", "setup.cfg"), r"(?m)(?:[\"']|^\s+)([A-Za-z][A-Za-z0-9._-]{1,100})"),
    "Pipfile": r"(?m)^[\"']?([A-Za-z0-9._-]{1,100})[\"']?\s*=",
    "Pipfile.lock": r'"([A-Za-z0-9._-]{1,100})"\s*:\s*\{',
}
#: Lists of other names, the likeliest first; those for development are none.
_LISTS = re.compile(r"(?:requirements/[\w.-]+|requirements[\w.-]+|[\w.-]+[-_.]requirements)\.txt")
_DEVELOPS = re.compile(r"dev|test|doc|lint|\bci\b|local|build|optional|extra", re.IGNORECASE)
_LIKELY = re.compile(r"prod|\b(?:base|common|main|requirements)\.txt$")
#: Returns the text of a file, "" without it.
Text = Callable[[str], str]


def python_packages(text: Text, pyproject: dict[str, Any], paths: Collection[str] = ()) -> frozenset[str]:
    """Return the names in lower case with hyphens; ``fastapi-standard`` for ``fastapi[standard]``."""
    found = [*_of_requirements(text, requirements_file(paths), set()), *_of_pyproject(pyproject)]
    found += [name for line in script_list(paths, text)[1] for name in _names(line)]
    found += [name for path, pattern in _OTHERS.items() for name in re.findall(pattern, text(path))]
    return frozenset(re.sub(r"[-_.]+", "-", name).lower() for name in found)


def encoding_of(content: bytes) -> str:
    """Return the encoding of a text: UTF-16 with its mark, as PowerShell writes lists, else UTF-8."""
    return "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"


def requirements_file(paths: Collection[str]) -> str:
    """Return the list of Python packages that is read: ``requirements.txt``, or the likeliest of another name."""
    others = [one for one in paths if _LISTS.fullmatch(one) and not _DEVELOPS.search(one)]
    likely = [REQUIREMENTS] if REQUIREMENTS in paths or not others else others
    return min(likely, key=lambda one: ("prod" not in one, not _LIKELY.search(one), one))


def script_list(paths: Collection[str], text: Text) -> tuple[str, list[str]]:
    """Return the only script at the top whose head names its packages (PEP 723), and these; "" without one."""
    scripts = sorted(one for one in paths if one.endswith(".py") and "/" not in one)[:MAX_SCRIPTS]
    found = [(path, listed) for path in scripts if (listed := _of_script(text(path)))]
    return found[0] if len(found) == 1 else ("", [])


def _of_script(text: str) -> list[str]:
    code = "\n" + text.replace("\r\n", "\n")
    head, end, _ = code.partition("\n# /// script\n")[2].partition("\n# ///\n")
    # A TOML key of very many parts takes the square of their number.
    if not end or len(head) > MAX_HEAD or any(line.count(".") > MAX_DOTS for line in head.split("\n")):
        return []
    try:
        listed = tomllib.loads("\n".join(line[2:] for line in head.split("\n"))).get("dependencies")
    except (ValueError, RecursionError):
        return []
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []


def table(document: Any, *path: str) -> dict[str, Any]:
    """Return the object below these keys; empty where there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def _of_requirements(text: Text, path: str, known: set[str]) -> Iterator[str]:
    if path in known or len(known) >= MAX_INCLUDES:
        return
    known.add(path)
    for line in text(path).splitlines():
        if match := _INCLUDE.match(line):
            yield from _of_requirements(text, f"{path.rpartition('/')[0]}/{match[1]}".lstrip("/"), known)
        else:
            yield from _names(line)


def _of_pyproject(document: dict[str, Any]) -> Iterator[str]:
    listed = table(document, "project").get("dependencies")
    for line in listed if isinstance(listed, list) else ():
        yield from _names(line) if isinstance(line, str) else ()
    for name, wanted in table(document, "tool", "poetry", "dependencies").items():
        yield name
        extras = wanted.get("extras") if isinstance(wanted, dict) else None
        yield from (f"{name}-{one}" for one in extras or () if isinstance(extras, list) and isinstance(one, str))


def _names(line: str) -> Iterator[str]:
    if (match := _NAME.match(line)) is not None:
        yield from (match[1], *(f"{match[1]}-{one.strip()}" for one in (match[2] or "").split(",")))


def missing_list(paths: frozenset[str], text: Text, package: str) -> str:
    """Return what to send where no list of Python packages is there that is read, "" with one."""
    lists = (requirements_file(paths), "pyproject.toml", "pylock.toml", "Pipfile.lock", "setup.py", "setup.cfg")
    if not paths.isdisjoint(lists) or script_list(paths, text)[0]:
        return ""
    if "Pipfile" in paths:
        return "run `pipenv lock`, and deploy Pipfile.lock too"
    if other := next((one for one in ("environment.yml", "environment.yaml") if one in paths), ""):
        return f"{other} of Conda is not read: write its packages into a requirements.txt"
    listed = sorted(one for one in paths if re.fullmatch(r"[\w.-]*requirements[\w.-]*(?:/[\w.-]*)?\.(?:txt|in)", one))
    lines = f"-r {listed[0]}" if listed else f"{package}, and its other packages"
    return f"add a requirements.txt with the line {lines}"
