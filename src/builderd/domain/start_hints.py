"""Hints for apps and commands that failed: the command, module or package that was missing, and where to add it.

Reads the last lines of the log or output and the version's files. The lines are hostile text: they are only searched,
and a name is repeated only if it looks like one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from builderd.domain.bundles import Bundle
from builderd.domain.script_hints import MAX_MANIFEST_BYTES, script_hint

_NAME = r"[A-Za-z0-9_@][A-Za-z0-9_.@/+-]{0,100}"
#: Messages of dash, bash and env(1) for a command that is not found.
_COMMAND = re.compile(
    rf"(?:(?:^|: )(?P<dash>{_NAME}): (?:command )?not found$"
    rf"|env: ['\u2018](?P<env>{_NAME})['\u2019]: No such file)"
)
_PYTHON = re.compile(r"ModuleNotFoundError: No module named '(?P<name>[A-Za-z0-9_]{1,100})[.A-Za-z0-9_]*'")
_NODE = re.compile(r"Cannot find (?:module|package) '(?P<name>[A-Za-z0-9_@./][A-Za-z0-9_.@/+-]{0,100})'")
_FULL = re.compile(r"No space left on device|Disk quota exceeded|\b(?:ENOSPC|EDQUOT)\b")
_IN_USE = re.compile(r"Address already in use|\bEADDRINUSE\b|address already in use")
_NOT_OWN = re.compile(r"Cannot assign requested address|\bEADDRNOTAVAIL\b|cannot assign requested address")
_VARIABLE = re.compile(r"^KeyError: '(?P<name>[A-Z][A-Z0-9_]{1,100})'$")

#: Package of a module or command whose name differs from the package's.
PYTHON_PACKAGES = {
    "Crypto": "pycryptodome",
    "MySQLdb": "mysqlclient",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "celery": "celery",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "discord": "discord.py",
    "django-admin": "django",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "google": "the Google package that brings it",
    "jose": "python-jose",
    "jupyter": "jupyterlab",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "mkdocs": "mkdocs",
    "multipart": "python-multipart",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socketio": "python-socketio",
    "telegram": "python-telegram-bot",
    "websocket": "websocket-client",
    "yaml": "pyyaml",
}
#: Commands that Python packages of the same name bring.
PYTHON_COMMANDS = frozenset(
    {
        "alembic",
        "bokeh",
        "celery",
        "daphne",
        "datasette",
        "django-admin",
        "fastapi",
        "flask",
        "gradio",
        "gunicorn",
        "huey",
    }
    | {
        "hypercorn",
        "jupyter",
        "marimo",
        "mkdocs",
        "nicegui",
        "panel",
        "rq",
        "streamlit",
        "uvicorn",
        "uwsgi",
        "waitress-serve",
    }
)
#: Commands of Node packages: name of the command → package.
NODE_COMMANDS = {
    "astro": "astro",
    "next": "next",
    "nodemon": "nodemon",
    "nuxt": "nuxt",
    "serve": "serve",
    "ts-node": "ts-node",
    "tsc": "typescript",
    "tsx": "tsx",
    "vite": "vite",
}
#: Installers that sandboxes lack, and the file that names packages instead.
INSTALLERS = {"pip": "requirements.txt", "pip3": "requirements.txt", "pipx": "requirements.txt"}
#: Tools that run scripts of package.json, as npm does, which is there.
SCRIPT_TOOLS = frozenset({"yarn", "pnpm", "bun"})
_COMPILED = "compile before the deployment, and send the program among the files (marked as executable)"
_EDITED = "edit the file where you deploy from, or write it with builderd cp"
#: Tools that many expect and that sandboxes lack, and what takes their place; "": nothing that is there.
ABSENT_TOOLS = {
    "apt": "packages of Debian cannot be added: look for one of Python or npm",
    "apt-get": "packages of Debian cannot be added: look for one of Python or npm",
    **dict.fromkeys(("cargo", "cc", "gcc", "g++", "go", "make", "rustc"), _COMPILED),
    **dict.fromkeys(("nano", "vi", "vim"), _EDITED),
    **dict.fromkeys(("deno", "docker", "java", "php", "psql", "redis-server", "ruby"), ""),
    "less": "more, head and tail are there",
    "sqlite3": "python3 -m sqlite3 FILE does the same",
    "sudo": "leave it out: the app may write to /app, its home and /tmp, and to nothing that needs more rights",
    "systemctl": "the platform starts the entrypoint and restarts it; more processes go into one script",
    "unzip": "python3 -m zipfile -e FILE FOLDER does the same",
    "wget": "curl -LO URL does the same",
}


def start_hint(lines: Sequence[str], bundle: Bundle | None, root: str = "") -> str:
    """Return a sentence that names what was missing and where to add it; empty if the lines do not tell.

    ``root`` is the app's folder within the code; the bundle has the files of that folder.
    """
    for line in reversed(lines):
        if found := _missing(line, bundle, root):
            return found
        if (match := _VARIABLE.search(line)) and bundle is not None and bundle.file(".env") is not None:
            return _for_variable(match["name"])
        if _FULL.search(line):
            return "Its disk is full: write less to /app and the home, or ask for more with resources.disk."
        if _NOT_OWN.search(line):
            return "It binds an address that the sandbox does not have: bind it to 0.0.0.0 and the port in $PORT."
        if _IN_USE.search(line):
            return "The app listens on that port already: start one server in it, or give each a port of its own."
    return ""


def build_hint(lines: Sequence[str], bundle: Bundle, root: str = "") -> str:
    """Return the hint for a build command, for missing programs and modules only: its disk is not the app's."""
    return next(filter(None, (_missing(line, bundle, root) for line in reversed(lines))), "")


def _missing(line: str, bundle: Bundle | None, root: str) -> str:
    if match := _COMMAND.search(line):
        return _for_command(match["dash"] or match["env"], bundle)
    if match := _PYTHON.search(line):
        return _for_module(match["name"], bundle)
    if match := _NODE.search(line):
        return _for_package(match["name"], bundle)
    return script_hint(line, bundle, root)


def _for_variable(name: str) -> str:
    return (
        f"If {name} is a variable of the environment, it is not set, since .env is not read by itself: deploy with "
        '"env_file": ".env", or set it in "env".'
    )


def _for_command(name: str, bundle: Bundle | None) -> str:
    if _is_development(name, bundle) or _is_development(NODE_COMMANDS.get(name, ""), bundle):
        package = name if _is_development(name, bundle) else NODE_COMMANDS[name]
        return _of_development(f"The command {name}", package)
    if name in NODE_COMMANDS:
        return f'The command {name} is missing: add "{NODE_COMMANDS[name]}" to the dependencies of package.json.'
    if name in PYTHON_COMMANDS:
        package = PYTHON_PACKAGES.get(name, name).replace("waitress-serve", "waitress")
        return f"The command {name} is missing: {_add_python(package, bundle)}"
    if name in INSTALLERS:
        return (
            f"Sandboxes have no {name}: add the package to {INSTALLERS[name]} and deploy again, which installs it for "
            "every start."
        )
    if name in SCRIPT_TOOLS:
        return (
            f"Sandboxes have no {name}: npm run NAME runs the same scripts of package.json (npm start, npm run build)."
        )
    if name in ABSENT_TOOLS:
        instead = ABSENT_TOOLS[name] or "do without it, or bring a program of yours among the files"
        return f"Sandboxes have no {name}: {instead}."
    return f"The command {name} was not found: check its name and the dependencies."


def _for_module(name: str, bundle: Bundle | None) -> str:
    if (folder := _folder_of(name, bundle)) is not None:
        return (
            f"The module {name} lies in the folder {folder}: run the app from there (cd {folder} && …), "
            f"or set PYTHONPATH to /app/{folder}."
        )
    return f"The module {name} is missing: {_add_python(PYTHON_PACKAGES.get(name, name), bundle)}"


def _for_package(name: str, bundle: Bundle | None) -> str:
    if name.startswith((".", "/")):
        return f"The file {name} is not among the files: send it, or correct the path."
    package = "/".join(name.split("/")[: 2 if name.startswith("@") else 1])
    if _is_development(package, bundle):
        return _of_development(f"The package {package}", package)
    return f'The package {package} is missing: add "{package}" to the dependencies of package.json.'


def _of_development(subject: str, package: str) -> str:
    return (
        f'{subject} belongs to "{package}", which package.json has in devDependencies; these are not installed: '
        "move it to dependencies."
    )


def _add_python(package: str, bundle: Bundle | None) -> str:
    """Return where to add a Python package: the manifest that is read, or the one that lies where it is not read."""
    if bundle is not None and bundle.file("requirements.txt") is None and bundle.file("pyproject.toml") is not None:
        return f"add {package} to project.dependencies of pyproject.toml."
    ignored = _first(bundle, ("Pipfile", "environment.yml"))
    deeper = next((path for path in _paths(bundle) if path.endswith("/requirements.txt")), None)
    unread = ignored or (deeper if bundle is not None and bundle.file("requirements.txt") is None else None)
    if unread is not None:
        return f"{unread} is not read; add {package} to a requirements.txt at the top of the files."
    return f"add {package} to requirements.txt."


def _folder_of(module: str, bundle: Bundle | None) -> str | None:
    """Return the folder below the top that holds a module of this name, or None."""
    for path in _paths(bundle):
        folder, _, rest = path.partition(f"/{module}")
        if rest in (".py", "/__init__.py") and folder:
            return folder
    return None


def _is_development(package: str, bundle: Bundle | None) -> bool:
    """Return True if ``package.json`` names the package among devDependencies alone."""
    file = bundle.file("package.json") if bundle is not None else None
    if file is None or not package:
        return False
    try:
        manifest = json.loads(file.head(MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError):
        return False
    if not isinstance(manifest, dict):
        return False
    development, needed = manifest.get("devDependencies"), manifest.get("dependencies")
    is_needed = isinstance(needed, dict) and package in needed
    return isinstance(development, dict) and package in development and not is_needed


def _first(bundle: Bundle | None, paths: Iterable[str]) -> str | None:
    return next((path for path in paths if bundle is not None and bundle.file(path) is not None), None)


def _paths(bundle: Bundle | None) -> list[str]:
    return [file.path for file in bundle.files] if bundle is not None else []
