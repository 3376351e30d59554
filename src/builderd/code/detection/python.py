"""Python projects: the framework by what the modules make and call, and the command that serves it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from builderd.code.detection.model import Detected, Kind, Refusal, shown
from builderd.code.detection.modules import USUAL, Module, Modules
from builderd.code.detection.node import build_of
from builderd.code.detection.project import TABLE, WORDS, Project
from builderd.dependencies.requested import missing_list, table

FRAMEWORKS: Sequence[Mapping[str, Any]] = TABLE["python"]
APPS, FACTORIES = WORDS["apps"], WORDS["factories"]
OWN_OF_FLASK = next(str(one["own"]) for one in FRAMEWORKS if one["name"] == "Flask")
_LISTENS = re.compile(WORDS["listens"])
_SCRIPT = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*:\s*([A-Za-z_]\w*)", re.ASCII)
_SETTINGS = r"DJANGO_SETTINGS_MODULE['\"]\s*,\s*['\"]([A-Za-z_][\w.]{0,200})['\"]"
_NAMES = (name for one in FRAMEWORKS for name in (*one.get("makes", ()), *one.get("calls", ()), one.get("imports", "")))
_WORDS = frozenset(name.lstrip(".").split(".")[0] for name in _NAMES if name) | {"environ", "receive", *APPS}


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

    @property
    def rank(self) -> tuple[Any, ...]:
        return self.module.is_other, self.is_factory, self.module.rank, FRAMEWORKS.index(self.entry)

    @property
    def job_type(self) -> Kind:
        return "worker" if "job_type" in self.entry else "always_on"


def detect_python(project: Project, modules: Modules) -> Detected | Refusal | None:
    """Return the app that the Python files have, None without one that a framework or a server makes."""
    if (django := _django(project)) is not None:
        return _with_packages(project, "django", django)
    found = sorted(_candidates(modules), key=lambda one: (one.job_type == "worker", *one.rank))
    if not found:
        return None
    first = found[0]
    if "refused" in first.entry:
        return Refusal(f"{first.entry['refused']}.")
    apart = (one for one in found[1:] if one.job_type == "worker" and one.name not in ("Python", first.name))
    others = {one.name: one for one in apart if one.module.path != first.module.path and not one.module.is_other}
    notes = [
        f"{shown(one.module.path)} {_made(one)} too, which is not started: name its command in a Procfile."
        for one in list(others.values())[:3]
    ]
    return _with_packages(project, first.entry.get("package", ""), _started(project, modules, first, notes))


def _candidates(modules: Modules) -> Iterator[Found]:
    mentioned = modules.mentioning(_WORDS)
    # A file that another one imports is not the one to run.
    origins = [(name, one.path) for one in mentioned for name in one.imports.values()]
    inner = {modules.locate(name, by) for origin, by in origins for name in (origin, origin.rpartition(".")[0])}
    for module in mentioned:
        for entry in FRAMEWORKS:
            found = _match(entry, module, modules)
            if found is not None and (found.variable or module.path not in inner):
                yield found
                break


def _match(entry: Mapping[str, Any], module: Module, modules: Modules) -> Found | None:
    wanted = entry.get("imports")
    if wanted and not any(f"{one}.".startswith(f"{wanted}.") for one in module.imports.values()):
        return None
    if makes := frozenset(entry.get("makes", ())):
        origins = partial(modules.origins, by=module.path)
        objects = {**{name: [module.imports[name]] for name in APPS if name in module.imports}, **module.objects}
        for groups, usual in ((objects, APPS), (module.factories, FACTORIES)):
            made = [one for one, calls in groups.items() if any(makes.intersection(origins(call)) for call in calls)]
            if name := next((one for one in (*usual, *made) if one in made), ""):
                return Found(entry, module, name, groups is module.factories)
        return Found(entry, module) if makes & module.calls and entry.get("job_type") == "worker" else None
    # A page of Streamlit is no app by itself.
    called = any(one in module.calls for one in entry["calls"]) if "calls" in entry else "pages/" not in module.path
    return Found(entry, module) if called else None


def _made(found: Found) -> str:
    if found.job_type == "worker":
        return f"runs {found.name}"
    if found.variable:
        return f"makes an app of {found.name}"
    return "serves on a port of its own" if found.name == "Python" else f"is an app of {found.name}"


def _started(project: Project, modules: Modules, found: Found, notes: list[str]) -> Detected:
    entry, module, path = found.entry, found.module, found.module.path
    base, folder = modules.base(module), path.rpartition("/")[0]
    inner = path.removeprefix(f"{base}/" if base else "")
    dotted = inner.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    command, variable = entry.get("start") or "python3 {file}", found.variable
    added: tuple[str, ...] = ()
    if kind := entry.get("serve"):
        command, added = _server(project, entry, kind)
        notes += [f"{one} is in no list of packages: it is installed, since it serves the app." for one in added]
    elif found.name == "Dash" and ".server" in module.objects.get("server", ()):
        variable = "server"
        command, added = _server(project, {"own": OWN_OF_FLASK}, "wsgi")
    if found.name == "Celery" and re.search(r"beat_schedule|add_periodic", project.text(path)):
        command += " --beat"
    # A file that imports from its own package cannot be run by its path.
    if "python3 {file}" in command and base != folder and any(one.startswith(".") for one in module.imports.values()):
        command = command.replace("{file}", "-m {module}")
    here = folder if "{file}" in command else ""
    # Packages of a layout with src/ that a file beside it imports.
    names = {name for one in module.imports.values() for name in (one, one.rpartition(".")[0]) if name}
    is_beside = not base and any(modules.locate(one, path).startswith("src/") for one in names)
    prefix = f"PYTHONPATH={shlex.quote(base or '.')}{':src' * is_beside} " if base != here or is_beside else ""
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
        job_type=found.job_type,
        port=entry.get("port"),
        build=build_of(project),
        release=_release(project, found, prefix, words["app"]),
        notes=tuple(notes),
        added=added,
        protocol=entry.get("protocol", "http"),
    )


def _server(project: Project, entry: Mapping[str, Any], kind: str) -> tuple[str, tuple[str, ...]]:
    """Return the command of the server, and the packages that it needs and that the project does not ask for."""
    servers: Mapping[str, str] = TABLE["servers"][kind]
    packages = project.python_packages
    for server, command in servers.items():
        brings = TABLE["brings"].get(server, ())
        if server in packages or not packages.isdisjoint(brings):
            return command, ()
    return (servers["uvicorn"], ("uvicorn",)) if kind == "asgi" else (str(entry.get("own") or servers["own"]), ())


def _release(project: Project, found: Found, prefix: str, app: str) -> str:
    if found.name == "Flask" and "flask-migrate" in project.python_packages and "migrations" in project.folders:
        return f"{prefix}flask --app {app} db upgrade"
    return f"{prefix}alembic upgrade head" if "alembic.ini" in project.top and found.job_type != "worker" else ""


def _django(project: Project) -> Detected | None:
    below = sorted((one for one in project.paths if one.endswith("/manage.py")), key=lambda one: (one.count("/"), one))
    path = project.first("manage.py", *below[:1])
    manage = project.text(path)
    if "django" not in manage.lower():
        return None
    folder = path.rpartition("/")[0]
    prefix = f"PYTHONPATH={shlex.quote(folder)} " if folder else ""
    setting = served = re.search(_SETTINGS, manage)
    name = (setting[1] if setting else "settings").split(".settings")[0].split(".")[0]
    texts = [project.text(one) for one in sorted(project.paths) if re.search(r"settings(?:/[^/]*)?\.py$", one)][:10]
    text, packages = "\n".join(texts), project.python_packages
    named = dict(re.findall(r"(ASGI|WSGI)_APPLICATION\s*=\s*['\"]([\w.]+)\.\w+['\"]", text))
    notes, command = [], f"python3 {shlex.quote(path)} runserver --noreload 0.0.0.0:$PORT"
    kinds = ("asgi", "wsgi") if "ASGI" in named or "gunicorn" not in packages else ("wsgi", "asgi")
    servers = ((kind, server) for kind in kinds for server in TABLE["servers"][kind] if server in packages)
    if (first := next(servers, None)) is not None:
        app = f"{named.get(first[0].upper(), f'{name}.{first[0]}')}:application"
        command = TABLE["servers"][first[0]][first[1]].replace("{app}", app).replace("{made}", app)
        command = prefix + re.sub(r"\{\w+\}", "", command)
        module = project.text(project.first(f"{folder}/{app.partition(':')[0].replace('.', '/')}.py".lstrip("/")))
        served = re.search(_SETTINGS, module)
    elif re.search(r"(?m)^DEBUG\s*=\s*False", text):
        notes.append("Django's own server does not serve static files without DEBUG: add gunicorn and whitenoise.")
    if "celery" in packages:
        notes.append(f"Celery's worker is not started: name it in a Procfile (worker: celery -A {name} worker).")
    run = f"python3 {shlex.quote(path)}"
    if served and setting and served[1] != setting[1]:  # one database for both
        run = f"DJANGO_SETTINGS_MODULE=${{DJANGO_SETTINGS_MODULE:-{served[1]}}} {run}"
    collect = f"{run} collectstatic --noinput" if re.search(r"(?m)^\s*STATIC_ROOT\s*=", text) else ""
    build = " && ".join(filter(None, (build_of(project), collect)))
    release, reason = f"{run} migrate --noinput", f"{shown(path)}: a Django project"
    return Detected("Django", command, reason, build=build, release=release, notes=tuple(notes))


def _with_packages(project: Project, package: str, found: Detected) -> Detected | Refusal:
    """Return the app, or a refusal where no list that is read names its packages: it could not start."""
    is_here = package.replace("-", "_") in project.folders or f"{package}.py" in project.top
    cure = "" if not package or is_here else missing_list(project.paths, project.text, package)
    return Refusal(f"{found.reason}, but no list of its packages is there that is read: {cure}.") if cure else found


def detect_program(project: Project, modules: Modules) -> Detected | None:
    """Return the Python program that the code has, None without one that stands out."""
    usual = [
        path for path in modules.paths if not Module(path).is_other and not path.rpartition("/")[2].startswith("__")
    ]
    named = [path for path in usual if Module(path).rank[2] < len(USUAL) and Module(path).rank[1] <= 1]
    top = [path for path in usual if "/" not in path]
    packages = [path for path in modules.paths if path.endswith("/__main__.py") and Module(path).rank[1] == 1]
    if script := _script(project, WORDS["scripts"]) or (None if named else _script(project)):
        return _program(project, modules, *script)
    if not named and packages:
        base, _, package = packages[0].removesuffix("/__main__.py").rpartition("/")
        prefix = f"PYTHONPATH={shlex.quote(base)} " if base else ""
        reason = f"{shown(packages[0])}: a Python program"
        return _program(project, modules, f"{prefix}python3 -m {shlex.quote(package)}", reason)
    path = named[0] if named else top[0] if len(top) == 1 else ""
    reason = f"{shown(path)}: {'a' if named else 'the only'} Python program"
    return _program(project, modules, f"python3 {shlex.quote(path)}", reason) if path else None


def _program(project: Project, modules: Modules, command: str, reason: str) -> Detected:
    """Return a program with its kind: does it listen, does it go on without end, or does it end by itself."""
    paths, found = [one for one in modules.paths if not Module(one).is_other], Detected("Python", command, reason)
    if not any(_LISTENS.search(project.text(one)) for one in paths):
        loops = any(modules.parsed(one).loops for one in paths)
        why = ", with an endless loop and no port" if loops else " that ends by itself"
        found = replace(found, reason=reason + why, job_type="worker" if loops else "one_time")
    return replace(found, build=build_of(project))


def _script(project: Project, names: Sequence[str] = ()) -> tuple[str, str] | None:
    """Return command and reason of a script of ``pyproject.toml``: one of these names, or else the only one.

    The code is not installed, so its function is called.
    """
    document = project.document("pyproject.toml")
    scripts = table(document, "project", "scripts") or table(document, "tool", "poetry", "scripts")
    name = next((one for one in names or scripts if one in scripts and (names or len(scripts) == 1)), "")
    named = _SCRIPT.fullmatch(str(scripts.get(name, "")))
    if named is None:
        return None
    module = named[1].replace(".", "/")
    for folder, variables in (("", ""), ("src/", "PYTHONPATH=src ")):
        if project.first(f"{folder}{module}.py", f"{folder}{module}/__init__.py"):
            call = f"import sys; from {named[1]} import {named[2]}; sys.exit({named[2]}())"
            return f"{variables}python3 -c '{call}'", f"pyproject.toml has the script `{shown(name)}`"
    return None
