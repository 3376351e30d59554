"""What the files of a project say: their names, texts, and the packages that they ask for.

All of it is hostile: texts are read up to a limit, and a manifest that cannot be read is an empty one.
Formats: https://packaging.python.org/en/latest/specifications/pyproject-toml/,
https://python-poetry.org/docs/pyproject/, https://pipenv.pypa.io/en/latest/pipfile.html,
https://docs.npmjs.com/cli/configuring-npm/package-json and https://devcenter.heroku.com/articles/procfile
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from builderd.code.model import Bundle

#: Bytes of one text that are read, and of all texts together.
MAX_TEXT, MAX_TEXTS = 400_000, 6_000_000
MAX_INCLUDES = 20
PACKAGE, PROCFILE = "package.json", "Procfile"
#: Reads the first bytes of a file of the project: path, bytes at most.
Reader = Callable[[str, int], bytes]

_NAME = re.compile(r"\s*[\"']?([A-Za-z0-9][A-Za-z0-9._-]{0,100})")
_INCLUDE = re.compile(r"\s*(?:-r|--requirement)[ =]?\s*([^\s#]{1,200})")
_INSTALL_REQUIRES = re.compile(r"install_requires\s*=\s*(\[[^\]]*\]|(?:[^\n]*\n(?:[ \t]+[^\n]*\n?)*))")
_PROCESS = re.compile(r"(?P<process>[A-Za-z0-9_-]{1,63})\s*:\s*(?P<command>\S.*?)\s*")


class Project:
    """Files of a project by path with their sizes, and texts that are read when they are asked for."""

    def __init__(self, paths: Iterable[str], read: Reader) -> None:
        self.paths = frozenset(paths)
        self._read = read
        self._texts: dict[str, str] = {}
        self._left = MAX_TEXTS

    def text(self, path: str) -> str:
        """Return the beginning of a file as text; "" without the file, and where enough was read."""
        if path not in self._texts:
            found = self._read(path, min(MAX_TEXT, self._left)) if path in self.paths and self._left > 0 else b""
            self._left -= len(found)
            self._texts[path] = found.decode("utf-8-sig", "replace").replace("\r\n", "\n")
        return self._texts[path]

    def json(self, path: str) -> dict[str, Any]:
        """Return the object of a JSON file; empty where it cannot be read."""
        return _table_of(lambda: json.loads(self.text(path) or "null"))

    def toml(self, path: str) -> dict[str, Any]:
        """Return the document of a TOML file; empty where it cannot be read."""
        return _table_of(lambda: tomllib.loads(self.text(path)))

    def below(self, root: str) -> Project:
        """Return the project in one of its folders."""
        above = f"{root}/"
        inner = (path.removeprefix(above) for path in self.paths if path.startswith(above))
        return Project(inner, lambda path, limit: self._read(above + path, limit))

    @cached_property
    def top(self) -> frozenset[str]:
        """Names of the files that lie in no folder."""
        return frozenset(path for path in self.paths if "/" not in path)

    @cached_property
    def folders(self) -> frozenset[str]:
        """All folders, without a slash at their end."""
        above = (path.split("/")[:-1] for path in self.paths)
        return frozenset("/".join(parts[:depth]) for parts in above for depth in range(1, len(parts) + 1))

    def first(self, *paths: str) -> str:
        """Return the first of these paths that is a file, else ""."""
        return next((path for path in paths if path in self.paths), "")

    def config(self, stem: str) -> str:
        """Return the text of a JavaScript or TypeScript configuration such as ``vite.config``, without comments."""
        endings = (".js", ".ts", ".mjs", ".mts", ".cjs", ".cts")
        return without_comments(self.text(self.first(*(f"{stem}{one}" for one in endings))))

    # Python

    @cached_property
    def python_manifests(self) -> tuple[str, ...]:
        """Files that list Python packages."""
        names = ("requirements.txt", "pyproject.toml", "pylock.toml", "Pipfile.lock", "Pipfile", "setup.py")
        others = ("setup.cfg", "environment.yml", "environment.yaml", "uv.lock", "poetry.lock", "pdm.lock")
        return tuple(one for one in (*names, *others) if one in self.top)

    @cached_property
    def python_packages(self) -> frozenset[str]:
        """Names of the packages that the manifests ask for, in lower case with hyphens."""
        found = [*self._requirements("requirements.txt", set()), *self._of_pyproject(), *self._of_others()]
        return frozenset(re.sub(r"[-_.]+", "-", name).lower() for name in found)

    def _requirements(self, path: str, known: set[str]) -> Iterator[str]:
        if path in known or len(known) >= MAX_INCLUDES:
            return
        known.add(path)
        folder = path.rpartition("/")[0]
        for line in self.text(path).splitlines():
            if match := _INCLUDE.match(line):
                yield from self._requirements(f"{folder}/{match[1]}".lstrip("/"), known)
            elif match := _NAME.match(line):
                yield match[1]
                # ``fastapi[standard]`` brings a server.
                yield from _extras(line, match)

    def _of_pyproject(self) -> Iterator[str]:
        document = self.toml("pyproject.toml")
        listed = table(document, "project").get("dependencies")
        for line in listed if isinstance(listed, list) else ():
            if isinstance(line, str) and (match := _NAME.match(line)):
                yield match[1]
                yield from _extras(line, match)
        for name, wanted in table(document, "tool", "poetry", "dependencies").items():
            yield name
            extras = wanted.get("extras") if isinstance(wanted, dict) else None
            yield from (f"{name}-{one}" for one in extras or () if isinstance(extras, list) and isinstance(one, str))

    def _of_others(self) -> Iterator[str]:
        yield from table(self.toml("Pipfile"), "packages")
        yield from table(self.json("Pipfile.lock"), "default")
        for line in self.text(self.first("environment.yml", "environment.yaml")).splitlines():
            if (match := re.match(r"\s*-\s+([A-Za-z0-9._-]+)", line)) is not None:
                yield match[1]
        for path in ("setup.cfg", "setup.py"):
            if (listed := _INSTALL_REQUIRES.search(self.text(path))) is not None:
                yield from (m[1] for one in re.split(r"[\n,\[]", listed[1]) if (m := _NAME.match(one)))
        for path in ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml"):
            yield from re.findall(r'(?m)^name = "([A-Za-z0-9._-]{1,100})"$', self.text(path))

    # Node

    @cached_property
    def package(self) -> dict[str, Any]:
        """The object of ``package.json``; empty without one that can be read."""
        return self.json(PACKAGE)

    @cached_property
    def scripts(self) -> Mapping[str, str]:
        """Scripts of ``package.json`` by name."""
        return {name: text.strip() for name, text in _texts(table(self.package, "scripts")) if text.strip()}

    @cached_property
    def node_packages(self) -> Mapping[str, str]:
        """Packages of ``package.json`` with their versions, those for development too."""
        groups = (table(self.package, name) for name in ("devDependencies", "dependencies"))
        return {name: text for group in groups for name, text in _texts(group)}

    # Procfile

    @cached_property
    def processes(self) -> Mapping[str, str]:
        """Commands of the Procfile by process, in the file's order; the first line of a process counts."""
        commands: dict[str, str] = {}
        for line in self.text(PROCFILE).splitlines():
            if (match := _PROCESS.fullmatch(line)) is not None:
                commands.setdefault(match["process"], match["command"])
        return commands


def project_of(bundle: Bundle) -> Project:
    """Return the project that a bundle has."""
    files = {file.path: file for file in bundle.files}
    return Project(files, lambda path, limit: files[path].head(limit))


def table(document: Any, *path: str) -> dict[str, Any]:
    """Return the object below these keys; empty where there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def without_comments(text: str) -> str:
    """Return JavaScript without the comments that a line begins with or ends with after a blank."""
    return re.sub(r"(?m)(?:^|(?<=\s))//[^\n]*|/\*(?:[^*]|\*(?!/)){0,5000}\*/", "", text)


def _table_of(parse: Callable[[], Any]) -> dict[str, Any]:
    try:
        document = parse()
    except (ValueError, RecursionError, MemoryError):
        return {}
    return document if isinstance(document, dict) else {}


def _texts(group: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in group.items() if isinstance(text, str))


def _extras(line: str, name: re.Match[str]) -> Iterator[str]:
    """Yield ``fastapi-standard`` for ``fastapi[standard]``."""
    extras = re.match(r"\[([\w,. -]{1,100})\]", line[name.end(1) :])
    yield from (f"{name[1]}-{one.strip()}" for one in (extras[1].split(",") if extras else ()))
