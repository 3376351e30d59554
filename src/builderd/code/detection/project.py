"""Files of a project: their names, their texts, and the packages that they ask for.

All of it is hostile: texts are read up to a limit, and a manifest that cannot be read is an empty one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import resources
from typing import Any

from builderd.code.model import Bundle
from builderd.dependencies.requested import MAX_DOTS, encoding_of, python_packages, table

TABLE: dict[str, Any] = tomllib.loads(resources.files(__package__).joinpath("frameworks.toml").read_text("utf-8"))
WORDS = TABLE["words"]
#: Bytes of one text, and of all texts together.
MAX_TEXT, MAX_TEXTS = 200_000, 3_000_000
PACKAGE, PROCFILE = "package.json", "Procfile"
Reader = Callable[[str, int], bytes]

_PROCESS = re.compile(r"(?P<name>[^\s:]+)\s*:\s*(?P<command>\S.*?)\s*")


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
            self._texts[path] = found.decode(encoding_of(found), "replace").replace("\r\n", "\n")
        return self._texts[path]

    def document(self, path: str) -> dict[str, Any]:
        """Return the object of a JSON or a TOML file; empty where it cannot be read."""
        text, is_json = self.text(path), path.endswith(".json")
        # A TOML key of very many parts takes the square of their number.
        if not is_json and any(line.count(".") > MAX_DOTS for line in text.split("\n")):
            return {}
        try:
            return table(json.loads(text) if is_json else tomllib.loads(text))
        except (ValueError, RecursionError, MemoryError):
            return {}

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
        text = self.text(self.first(*(f"{stem}.{one}" for one in ("js", "ts", "mjs", "mts", "cjs", "cts"))))
        # One without an end reaches to the file's: else each beginning would look through the rest of the text.
        return re.sub(r"(?m)(?:^|(?<=\s))//[^\n]*|/\*(?s:.*?)(?:\*/|\Z)", "", text)

    @cached_property
    def python_packages(self) -> frozenset[str]:
        """Names of the Python packages that the manifests ask for."""
        return python_packages(self.text, self.document("pyproject.toml"), self.paths)

    @cached_property
    def package(self) -> dict[str, Any]:
        """The object of ``package.json``; empty without one that can be read."""
        return self.document(PACKAGE)

    @cached_property
    def scripts(self) -> Mapping[str, str]:
        """Scripts of ``package.json`` by name."""
        named = table(self.package, "scripts").items()
        return {name: text.strip() for name, text in named if isinstance(text, str) and text.strip()}

    @cached_property
    def node_packages(self) -> Mapping[str, Any]:
        """Packages of ``package.json`` with their versions, those for development too."""
        return {**table(self.package, "devDependencies"), **table(self.package, "dependencies")}

    @cached_property
    def processes(self) -> Mapping[str, str]:
        """Commands of the Procfile by process, in the file's order."""
        return self.procfile[0]

    @cached_property
    def procfile(self) -> tuple[Mapping[str, str], Sequence[str]]:
        """Commands of the Procfile by process, the first of each, and what is wrong with which line."""
        commands: dict[str, str] = {}
        errors = []
        for number, line in enumerate(self.text(PROCFILE).splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _PROCESS.fullmatch(line)
            if match is None:
                errors.append(f"line {number}: must be NAME: COMMAND")
            elif match["name"] in commands:
                errors.append(f"line {number}: the process {match['name'][:40]} stands there already")
            else:
                commands[match["name"]] = match["command"]
        return commands, errors


def project_of(bundle: Bundle) -> Project:
    """Return the project that a bundle has."""
    files = {file.path: file for file in bundle.files}
    return Project(files, lambda path, limit: files[path].head(limit))
