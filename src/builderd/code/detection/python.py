"""Python projects: the framework by what the modules make and call, and the command that serves it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from builderd.code.detection.model import Detected, Refusal, shown
from builderd.code.detection.modules import Module, Modules, is_other
from builderd.code.detection.project import Project, table
from builderd.code.detection.table import TABLE

FRAMEWORKS: Sequence[Mapping[str, Any]] = TABLE["python"]
#: Variables that are an app where a module only imports them.
APPS = ("application", "app", "server", "api", "asgi", "wsgi", "demo")
#: Functions that make an app, the likeliest first.
FACTORIES = ("create_app", "make_app", "build_app", "get_app", "app_factory", "create_application", "get_application")
OWN_OF_FLASK = next(str(one["own"]) for one in FRAMEWORKS if one["name"] == "Flask")
#: Words of a file that listens on a port, or that goes on without one.
_LISTENS = re.compile(r"\bsocket\b|http\.server|\.listen\(|start_server|\bserve\(|\.run\(|socketserver|tornado|twisted")
_SCRIPT = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*:\s*([A-Za-z_]\w*)", re.ASCII)
#: Scripts of pyproject.toml that start an app; of other names, the only one does.
SCRIPTS = ("start", "serve", "server", "web", "main", "app")
_WORDS = frozenset(
    word.split(".")[0].strip(".")
    for entry in FRAMEWORKS
    for word in (*entry.get("makes", ()), *entry.get("calls", ()), entry.get("imports", ""))
) | {"environ", "receive", *APPS, *FACTORIES}


@dataclass(frozen=True, slots=True)
class Found:
    """An app in a module: the variable or the function that makes it, "" where the file is run."""

    entry: Mapping[str, Any]
    module: Module
    variable: str = ""
    is_factory: bool = False

    @property
    def name(self) -> str:
        return str(self.entry["name"])


def detect_python(project: Project, modules: Modules) -> Detected | Refusal | None:
    """Return the app that the Python files have, None without one that a framework or a server makes."""
    if (django := _django(project)) is not None:
        return _with_packages(project, "django", django)
    found = sorted(_candidates(modules), key=_order)
    if not found:
        return None
    first = found[0]
    if "refused" in first.entry:
        return Refusal(f"{first.entry['refused']}.")
    others = {one.name: one for one in found[1:] if _is_apart(first, one)}
    notes = [
        f"{shown(one.module.path)} {_made(one)} too, which is not started: name its command in a Procfile."
        for one in list(others.values())[:3]
    ]
    return _with_packages(project, first.entry.get("package", ""), _started(project, modules, first, notes))


def _order(found: Found) -> tuple[bool, bool, tuple[Any, ...], int]:
    is_worker = found.entry.get("job_type") == "worker"
    return is_worker, found.module.rank[0], (found.is_factory, *found.module.rank), FRAMEWORKS.index(found.entry)


def _is_apart(first: Found, other: Found) -> bool:
    """Return True for an app of another framework that the first does not include, as far as names tell."""
    is_plain = other.name in ("Python", "ASGI", "WSGI", "Starlette", first.name) or is_other(other.module.path)
    return not is_plain and other.module.path != first.module.path and other.entry.get("job_type") == "worker"


def _candidates(modules: Modules) -> Iterator[Found]:
    mentioned = modules.mentioning(_WORDS)
    # A file that another one imports is not the one to run.
    inner = {modules.locate(name, one.path) for one in mentioned for name in _import_names(one)}
    for module in mentioned:
        for entry in FRAMEWORKS:
            if (found := _match(entry, module, modules)) is None:
                continue
            if found.variable or module.path not in inner:
                yield found
                break


def _import_names(module: Module) -> Iterator[str]:
    for name in module.imports.values():
        yield from (name, name.rpartition(".")[0])


def _match(entry: Mapping[str, Any], module: Module, modules: Modules) -> Found | None:
    wanted = entry.get("imports")
    if wanted and not any(f"{one}.".startswith(f"{wanted}.") for one in module.imports.values()):
        return None
    if makes := frozenset(entry.get("makes", ())):
        apps = [name for name, calls in module.objects.items() if _makes(calls, makes, module, modules)]
        apps += [
            name
            for name in APPS
            if name in module.imports and _makes([module.imports[name]], makes, module, modules)
        ]
        if apps:
            return Found(entry, module, min(apps, key=lambda one: (APPS.index(one) if one in APPS else 99)))
        made = [name for name, calls in module.factories.items() if _makes(calls, makes, module, modules)]
        if made:
            name = min(made, key=lambda one: (FACTORIES.index(one) if one in FACTORIES else 99))
            return Found(entry, module, name, is_factory=True)
        return Found(entry, module) if makes & module.calls and entry.get("job_type") == "worker" else None
    calls = entry.get("calls")
    is_called = calls is None or any(one in module.calls for one in calls)
    if is_called and "/pages/" in f"/{module.path}" and calls is None:
        return None
    return Found(entry, module) if is_called else None


def _makes(calls: Sequence[str], makes: frozenset[str], module: Module, modules: Modules) -> bool:
    return any(one in makes for call in calls for one in modules.origins(call, module.path))


def _made(found: Found) -> str:
    if found.entry.get("job_type") == "worker":
        return f"runs {found.name}"
    if found.variable:
        return f"makes a {found.name} app" if found.name[0] not in "AEIO" else f"makes an app of {found.name}"
    return "serves on a port of its own" if found.name == "Python" else f"is an app of {found.name}"


def _started(project: Project, modules: Modules, found: Found, notes: list[str]) -> Detected:
    entry, module, path = found.entry, found.module, found.module.path
    base, folder = modules.base(module), path.rpartition("/")[0]
    inner = path.removeprefix(f"{base}/" if base else "")
    dotted = inner.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    command, variable = entry.get("start") or "python3 {file}", found.variable
    if kind := entry.get("serve"):
        command = _server(project, entry, kind, notes)
    elif found.name == "Dash" and ".server" in module.objects.get("server", ()):
        variable = "server"
        command = _server(project, {"own": OWN_OF_FLASK}, "wsgi", notes)
    if found.name == "Celery" and re.search(r"beat_schedule|add_periodic", project.text(path)):
        command += " --beat"
    # A file that imports from its own package cannot be run by its path.
    if "python3 {file}" in command and base != folder and any(one.startswith(".") for one in module.imports.values()):
        command = command.replace("{file}", "-m {module}")
    here = folder if "{file}" in command else ""
    prefix = f"PYTHONPATH={shlex.quote(base or '.')} " if base != here else ""
    words = {
        "app": shlex.quote(f"{dotted}:{variable}"),
        "made": shlex.quote(f"{dotted}:{variable}{'()' if found.is_factory else ''}"),
        "run": variable + "()" * found.is_factory,
        "factory": " --factory" * found.is_factory,
        "call": "--call " * found.is_factory,
        "file": shlex.quote(path),
        "module": dotted,
        "variable": variable,
    }
    for name, value in words.items():
        command = command.replace(f"{{{name}}}", value)
    return Detected(
        found.name,
        prefix + command,
        f"{shown(path)} {_made(found)}",
        job_type=entry.get("job_type", "always_on"),
        port=entry.get("port"),
        release=_release(project, found, prefix, words["app"]),
        notes=tuple(notes),
    )


def _server(project: Project, entry: Mapping[str, Any], kind: str, notes: list[str]) -> str:
    servers: Mapping[str, str] = TABLE["servers"][kind]
    packages = project.python_packages
    for server, command in servers.items():
        brings = TABLE["brings"].get(server, ())
        if server in packages or not packages.isdisjoint(brings):
            return command
    if kind == "wsgi":
        return str(entry.get("own") or servers["own"])
    if packages:
        notes.append("No server for it is among its packages: if it does not start, add uvicorn to them.")
    return servers["uvicorn"]


def _release(project: Project, found: Found, prefix: str, app: str) -> str:
    if "flask-migrate" in project.python_packages and found.name == "Flask" and "migrations" in project.folders:
        return f"{prefix}flask --app {app} db upgrade"
    if "alembic.ini" in project.top and found.entry.get("job_type") != "worker":
        return f"{prefix}alembic upgrade head"
    return ""


# Django


def _django(project: Project) -> Detected | None:
    manage = project.text("manage.py")
    if "django" not in manage.lower():
        return None
    named = re.search(r"DJANGO_SETTINGS_MODULE['\"]\s*,\s*['\"]([A-Za-z_][\w.]{0,200})['\"]", manage)
    settings = named[1] if named else "settings"
    name = settings.split(".settings")[0].split(".")[0]
    texts = [project.text(one) for one in sorted(project.paths) if re.search(r"settings(?:/[^/]*)?\.py$", one)][:10]
    text, packages = "\n".join(texts), project.python_packages
    asgi, wsgi = (re.search(rf"{kind}_APPLICATION\s*=\s*['\"]([\w.]+)\.(\w+)['\"]", text) for kind in ("ASGI", "WSGI"))
    notes, serve = [], "python3 manage.py runserver --noreload 0.0.0.0:$PORT"
    if asgi and "daphne" in packages:
        serve = f"daphne -b 0.0.0.0 -p $PORT {asgi[1]}:{asgi[2]}"
    elif (asgi or "gunicorn" not in packages) and "uvicorn" in packages:
        serve = f"uvicorn {asgi[1] if asgi else f'{name}.asgi'}:{asgi[2] if asgi else 'application'} --host 0.0.0.0 --port $PORT"
    elif "gunicorn" in packages:
        serve = f"gunicorn {wsgi[1] if wsgi else f'{name}.wsgi'}:{wsgi[2] if wsgi else 'application'} --bind 0.0.0.0:$PORT"
    elif "waitress" in packages:
        serve = f"waitress-serve --listen=0.0.0.0:$PORT {wsgi[1] if wsgi else f'{name}.wsgi'}:application"
    elif re.search(r"(?m)^DEBUG\s*=\s*False", text):
        notes.append("Django's own server does not serve static files without DEBUG: add gunicorn and whitenoise.")
    if "celery" in packages:
        notes.append(f"Celery's worker is not started: a Procfile with `worker: celery -A {name} worker` starts it too.")
    build = "python3 manage.py collectstatic --noinput" if re.search(r"(?m)^\s*STATIC_ROOT\s*=", text) else ""
    release = "python3 manage.py migrate --noinput"
    reason = "manage.py: a Django project"
    return Detected("Django", serve, reason, build=build, release=release, notes=tuple(notes))


def _with_packages(project: Project, package: str, found: Detected) -> Detected | Refusal:
    """Return the app, or a refusal where no list that is read names its packages: it could not start."""
    manifests = set(project.python_manifests)
    requirements = sorted(one for one in project.paths if re.search(r"requirements[^/]*(?:/[^/]*)?\.(?:txt|in)$", one))
    if not package or manifests & {"requirements.txt", "pyproject.toml", "pylock.toml", "Pipfile.lock", "setup.py", "setup.cfg"}:
        return found
    if package.replace("-", "_") in project.folders or f"{package}.py" in project.top:
        return found
    cure = f"add a requirements.txt with the line {package}, and its other packages"
    if "Pipfile" in manifests:
        cure = "run `pipenv lock`, and deploy Pipfile.lock too"
    elif other := next((one for one in manifests if one.startswith("environment")), ""):
        cure = f"{other} of Conda is not read: write its packages into a requirements.txt"
    elif requirements:
        cure = f"add a requirements.txt with the line -r {shown(requirements[0])}"
    return Refusal(f"{found.reason}, but no list of its packages is there that is read: {cure}.")


# Programs without a framework


def detect_program(project: Project, modules: Modules) -> Detected | None:
    """Return the Python program that the code has, None without one that stands out."""
    usual = [path for path in modules.paths if not is_other(path) and modules.parsed(path).rank[2] < 90]
    named = [path for path in usual if Module(path).rank[2] < len(_USUAL) and Module(path).depth <= 1]
    packages = [path for path in modules.paths if path.endswith("/__main__.py") and Module(path).depth == 1]
    if (script := _script(project, SCRIPTS)) or (not named and (script := _script(project))):
        return _program(project, modules, *script)
    if named:
        path = named[0]
        return _program(project, modules, f"python3 {shlex.quote(path)}", f"{shown(path)}: a Python program", path)
    if packages:
        folder = packages[0].removesuffix("/__main__.py")
        base, _, package = folder.rpartition("/")
        prefix = f"PYTHONPATH={shlex.quote(base)} " if base else ""
        command = f"{prefix}python3 -m {shlex.quote(package)}"
        return _program(project, modules, command, f"{shown(packages[0])}: a Python program", packages[0])
    top = [path for path in usual if "/" not in path]
    if len(top) == 1:
        path = top[0]
        reason = f"{shown(path)}: the only Python program"
        return _program(project, modules, f"python3 {shlex.quote(path)}", reason, path)
    return None


def _program(project: Project, modules: Modules, command: str, reason: str, path: str) -> Detected:
    """Return a program with its kind: does it listen, does it go on without end, or does it end by itself."""
    texts = [project.text(one) for one in modules.paths if not is_other(one)]
    if any(_LISTENS.search(text) for text in texts):
        return Detected("Python", command, reason)
    if any(modules.parsed(one).loops for one in modules.paths if not is_other(one)):
        return Detected("Python", command, f"{reason}, with an endless loop and no port", job_type="worker")
    return Detected("Python", command, f"{reason} that ends by itself", job_type="one_time")


def _script(project: Project, names: Sequence[str] = ()) -> tuple[str, str, str] | None:
    """Return command, reason and file of a script of ``pyproject.toml``: one of these names, or else the only one.

    The code is not installed, so its function is called.
    """
    document = project.toml("pyproject.toml")
    scripts = table(document, "project", "scripts") or table(document, "tool", "poetry", "scripts")
    name = next((one for one in names or scripts if one in scripts and (names or len(scripts) == 1)), "")
    named = _SCRIPT.fullmatch(str(scripts.get(name, "")))
    if named is None:
        return None
    module = named[1].replace(".", "/")
    for folder, variables in (("", ""), ("src/", "PYTHONPATH=src ")):
        if path := project.first(f"{folder}{module}.py", f"{folder}{module}/__init__.py"):
            call = f"import sys; from {named[1]} import {named[2]}; sys.exit({named[2]}())"
            return f"{variables}python3 -c '{call}'", f"pyproject.toml has the script `{shown(name)}`", path
    return None
