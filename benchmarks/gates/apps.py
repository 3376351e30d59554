"""Apps in packages: files that serve, as one would copy them out of the examples, with what lies beside them."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gates.packages import Member, Package

from builderd.code.model import Bundle, BundleFile, make_bundle, path_error

#: Folders in which packages keep what shows how they are used.
SHOWN = re.compile(r"(?:^|/)(?:[\w-]*examples?|[\w-]*demos?|samples?|tutorials?|docs_src|cookbook|recipes)(?:/|$)")
#: What a web app does or makes.
SERVES = {
    ".py": re.compile(
        r"\.run\(|run_app\(|uvicorn\.run|serve_forever\(|\.listen\(|make_server\(|run_simple\(|WSGIServer\(|\.launch\("
        r"|quickstart\(|\bserve\(|\bstart(?:_server)?\(|^import streamlit|execute_from_command_line\("
        r"|=\s*(?:\w+\.)?(?:Flask|FastAPI|Starlette|Litestar|Quart|Sanic|APIFlask|Application|Dash|App|Klein|FastHTML)\(",
        re.MULTILINE,
    ),
    ".js": re.compile(r"\.listen\(|createServer\(|\bserve\("),
    ".mjs": re.compile(r"\.listen\(|createServer\("),
}
STARTED = {".py": "python3", ".js": "node", ".mjs": "node"}
#: So that no package outweighs the others.
MAX_APPS = 10
MAX_FILES = 2_000


@dataclass(frozen=True, slots=True)
class App:
    """``path`` is where it lies in its package, empty for the package as a whole."""

    package: Package
    path: str
    bundle: Bundle
    entrypoint: str

    @property
    def title(self) -> str:
        return f"{self.package.title}: {self.path or 'itself'}"


def find_apps(package: Package, files: Mapping[str, Member]) -> Sequence[App]:
    """The package, or up to ``MAX_APPS`` of its examples, evenly over all that there are."""
    if package.entrypoint is not None:
        return [App(package, "", _bundle(files, "", files), package.entrypoint)]
    serving = [path for path, member in sorted(files.items()) if _serves(path, member)]
    step = max(1.0, len(serving) / MAX_APPS)
    chosen = dict.fromkeys(serving[int(number * step)] for number in range(min(MAX_APPS, len(serving))))
    return [_app(package, files, path, serving) for path in chosen]


def _serves(path: str, member: Member) -> bool:
    folder, name = posixpath.split(path)
    pattern = SERVES.get(posixpath.splitext(name)[1])
    shown = SHOWN.search(folder) and not name.startswith(("test_", "conftest"))
    return bool(shown and pattern and pattern.search(member.content.decode(errors="replace")))


def _app(package: Package, files: Mapping[str, Member], path: str, serving: Sequence[str]) -> App:
    """The file and what lies beside and below it; in a folder of several apps, only what it speaks of."""
    folder, name = posixpath.split(path)
    below = [one for one in files if one.startswith(f"{folder}/")]
    if any(posixpath.dirname(one) == folder and one != path for one in serving):
        text = files[path].content.decode(errors="replace")
        below = [one for one in below if one == path or _speaks_of(text, one[len(folder) + 1 :])]
    command = f"{STARTED[posixpath.splitext(name)[1]]} {shlex.quote(name)}"
    return App(package, path, _bundle(files, folder, below), command)


def _speaks_of(text: str, path: str) -> bool:
    """Whether it names the file, imports it as a module, or names the folder that it is in."""
    first, slash, _ = path.partition("/")
    if slash:
        return first in ("templates", "static") or re.search(rf"\b{re.escape(first)}\b", text) is not None
    module = first.removesuffix(".py")
    imported = module != first and re.search(
        rf"\bimport\b.*\b{re.escape(module)}\b|\b{re.escape(module)}\b.*\bimport\b", text
    )
    return first in text or bool(imported)


def _bundle(files: Mapping[str, Member], folder: str, paths: Iterable[str]) -> Bundle:
    start = len(folder) + 1 if folder else 0
    taken = [path for path in paths if path_error(path[start:]) is None][:MAX_FILES]
    return make_bundle(BundleFile(path[start:], files[path].content, files[path].executable) for path in taken)
