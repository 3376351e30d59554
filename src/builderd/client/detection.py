"""Detection of the command that starts a folder of code, with the reason. Reads names and texts; runs nothing."""

from __future__ import annotations

import json
import keyword
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from builderd.client.folders import Folder

#: The usual names of a Python app's first file, the likeliest first.
PYTHON_NAMES = ("main.py", "app.py", "server.py", "wsgi.py", "asgi.py", "run.py", "streamlit_app.py", "index.py")
MOST_BYTES = 200_000
#: Scripts of pyproject.toml that start an app, before other files; the only script, of any name, does after them.
SCRIPTS = ("start", "serve", "server", "web", "main")
#: What a script of pyproject.toml names: a function of a module.
OBJECT = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*:\s*([A-Za-z_]\w*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Start:
    """A command that starts the code, and why. ``entrypoint`` None: the service reads the Procfile itself."""

    entrypoint: str | None
    reason: str
    shown: str = ""

    @property
    def command(self) -> str:
        return self.entrypoint or self.shown


def detect(folder: Folder) -> Start | None:
    """Return the likeliest start, None where nothing is known."""
    return next(_starts(_Code(folder)), None)


def roots_with_a_start(folder: Folder, most: int = 5) -> list[str]:
    """Return folders of the code, at most two deep, in which a start is found: the apps of a monorepo."""
    above = [file.path.split("/")[:-1] for file in folder.files]
    folders = {"/".join(parts[:depth]) for parts in above for depth in range(1, min(len(parts), 2) + 1)}
    return [root for root in sorted(folders) if detect(folder.below(root)) is not None][:most]


class _Code:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.paths = {file.path for file in folder.files}
        packages = self.text("requirements.txt") + self.text("pyproject.toml")
        self._packages = packages.lower()

    def text(self, path: str) -> str:
        if path not in self.paths:
            return ""
        with (self._folder.root / path).open("rb") as opened:
            return opened.read(MOST_BYTES).decode(errors="replace")

    def needs(self, package: str) -> bool:
        return re.search(rf"(?m)(^|[\"'\s]){re.escape(package)}\b", self._packages) is not None

    def python(self) -> list[str]:
        """Python files in which an app may be, the usual names first."""
        usual = [path for path in PYTHON_NAMES if path in self.paths]
        usual += [
            f"{base}/{name}" for base in ("app", "src") for name in PYTHON_NAMES if f"{base}/{name}" in self.paths
        ]
        others = sorted(path for path in self.paths if path.endswith(".py") and "/" not in path and path not in usual)
        return [*usual, *others]


def _starts(code: _Code) -> Iterator[Start]:
    line, python = re.search(r"(?m)^web:[ \t]*(\S.*)$", code.text("Procfile")), code.python()
    if line:
        yield Start(None, "Procfile has a line `web:`", line[1].strip())
    yield from _django(code)
    yield from _python_framework(code)
    yield from _node(code)
    if python and python[0] in PYTHON_NAMES:
        yield Start(f"python3 {python[0]}", f"{python[0]}: a Python program")
    yield from _python_script(code, SCRIPTS)
    programs = [path for path in python if path != "setup.py"]
    if len(programs) == 1:
        yield Start(f"python3 {programs[0]}", f"{programs[0]}: the only Python program")
    if "index.html" in code.paths:
        yield Start("python3 -m http.server $PORT", "index.html: a static site")
    yield from _python_script(code)


def _django(code: _Code) -> Iterator[Start]:
    if "manage.py" not in code.paths or "django" not in code.text("manage.py").lower():
        return
    project = re.search(r"['\"]([\w.]+)\.settings", code.text("manage.py"))
    if project and code.needs("gunicorn"):
        serve = f"python3 -m gunicorn {project[1]}.wsgi --bind 0.0.0.0:$PORT"
    else:
        serve = "python3 manage.py runserver --noreload 0.0.0.0:$PORT"
    yield Start(f"python3 manage.py migrate --noinput && {serve}", "manage.py: a Django project")


def _python_framework(code: _Code) -> Iterator[Start]:
    for path in code.python():
        text, module = code.text(path), path.removesuffix(".py").replace("/", ".")
        if re.search(r"^\s*(import|from) streamlit\b", text, re.MULTILINE):
            flags = "--server.address 0.0.0.0 --server.port $PORT --server.headless true"
            yield Start(f"python3 -m streamlit run {path} {flags}", f"{path} imports Streamlit")
        asgi = re.search(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*(FastAPI|Starlette)\(", text, re.MULTILINE)
        if asgi:
            serve = f"python3 -m uvicorn {module}:{asgi[1]} --host 0.0.0.0 --port $PORT"
            yield Start(serve, f"{path} makes a {asgi[2]} app")
        flask = re.search(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*Flask\(", text, re.MULTILINE)
        if flask and code.needs("gunicorn"):
            serve = f"python3 -m gunicorn {module}:{flask[1]} --bind 0.0.0.0:$PORT"
            yield Start(serve, f"{path} makes a Flask app, and gunicorn is required")
        elif flask:
            serve = f"python3 -m flask --app {module}:{flask[1]} run --host 0.0.0.0 --port $PORT"
            yield Start(serve, f"{path} makes a Flask app")


def _node(code: _Code) -> Iterator[Start]:
    try:
        package = json.loads(code.text("package.json") or "null")
    except ValueError:
        return
    if not isinstance(package, dict):
        return
    scripts = package.get("scripts")
    if isinstance(scripts, dict) and "start" in scripts:
        yield Start("npm start", f"package.json has the script `start`: {scripts['start']}")
    elif isinstance(package.get("main"), str) and package["main"] in code.paths:
        yield Start(f"node {package['main']}", f"package.json names the main file {package['main']}")
    elif "server.js" in code.paths:
        yield Start("node server.js", "package.json and server.js: a Node app")


def _python_script(code: _Code, names: Sequence[str] = ()) -> Iterator[Start]:
    """Yield the script of ``[project.scripts]`` of one of the names, or else the only one.

    The code is not installed, so its function is called.
    """
    try:
        project = tomllib.loads(code.text("pyproject.toml")).get("project")
    except (ValueError, RecursionError):
        return
    scripts = project.get("scripts") if isinstance(project, dict) else None
    if not isinstance(scripts, dict):
        return
    name = next((one for one in names or scripts if one in scripts and (names or len(scripts) == 1)), None)
    named = OBJECT.fullmatch(str(scripts.get(name)))
    if named is None or any(map(keyword.iskeyword, re.findall(r"\w+", named[0]))):
        return
    module = named[1].replace(".", "/")
    for folder, variables in (("", ""), ("src/", "PYTHONPATH=src ")):
        if {f"{folder}{module}.py", f"{folder}{module}/__init__.py"} & code.paths:
            call = f"import sys; from {named[1]} import {named[2]}; sys.exit({named[2]}())"
            yield Start(f"{variables}python3 -c '{call}'", f"pyproject.toml has the script `{name}`")
