"""What a folder of code is, and what starts it: the one answer of the service and of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from builderd.code.detection.model import Detected, Refusal, shown
from builderd.code.detection.modules import Modules
from builderd.code.detection.node import build_of, detect_node, lock_notes, static, unbuilt
from builderd.code.detection.project import PACKAGE, PROCFILE, Project
from builderd.code.detection.python import detect_program, detect_python
from builderd.code.detection.table import TABLE

#: Entrypoints that build at each start, as they had to before there was a build step.
_BUILDS = re.compile(r"\b(?:npm|yarn|pnpm|bun)\s+(?:run\s+)?build\b|\b(?:next|vite|astro|nuxt|nuxi)\s+build\b")
#: Files that make a folder a project of its own.
MANIFESTS = (PACKAGE, "requirements.txt", "pyproject.toml", "Pipfile", "setup.py", PROCFILE, "manage.py")
#: Folders in which a site may lie that is built already.
PAGES = ("public", "dist", "build", "site", "www", "html", "static", "docs", "_site", "out", "src")
MAX_ROOTS, MAX_TRIED, MAX_NOTES = 5, 30, 8
#: Refused tools that say how the code is run, and not what it is.
_WEAK = ("Docker", "Docker Compose", "Nix")
NOTHING = (
    "nothing was found that starts the code: name the command (entrypoint), or add a file named Procfile with the line "
    "`web: COMMAND`"
)


def detect(project: Project) -> Detected | Refusal:
    """Return what the code is and what starts it, or why nothing does."""
    if not project.paths:
        return Refusal("the folder has no files that are sent.")
    if project.processes:
        return _with_notes(project, _of_procfile(project))
    found = None if _is_monorepo(project) else _at_top(project)
    if not isinstance(found, Detected):
        found = _below(project, found)
    return _with_notes(project, found) if isinstance(found, Detected) else found


def build_for(project: Project, entrypoint: str) -> str:
    """Return the build command of a project whose start is given; empty where the start builds by itself."""
    return "" if _BUILDS.search(entrypoint) else build_of(project)


def _of_procfile(project: Project) -> Detected:
    commands = {name: text for name, text in project.processes.items() if name != "release"}
    name = next((one for one in ("web", "worker") if one in commands), next(iter(commands), ""))
    entrypoint = commands.pop(name, "")
    rest = _at_top(project)
    build = rest.build if isinstance(rest, Detected) else build_of(project)
    return Detected(
        PROCFILE,
        entrypoint,
        f"Procfile has a line `{name}:`",
        "always_on" if name == "web" else "worker",
        build="" if _BUILDS.search(entrypoint) else build,
        release=project.processes.get("release", ""),
        processes=commands,
    )


def _at_top(project: Project) -> Detected | Refusal | None:
    """Return the app of the folder itself. A language that is not run wins over pages that lie beside it."""
    modules = Modules(project)
    foreign = _foreign(project)
    is_strong = foreign is not None and foreign[0] not in _WEAK
    node = detect_node(project)
    if (python := detect_python(project, modules)) is not None:
        has_build = isinstance(python, Detected) and isinstance(node, Detected) and node.build not in ("", "true")
        return _with_build(python, node) if has_build else python
    if isinstance(node, Detected) and not (is_strong and node.job_type == "static"):
        return node
    program = detect_program(project, modules)
    if is_strong and foreign and (program is None or program.job_type == "one_time"):
        return _refused(*foreign)
    for found in (node, _site(project), program, _notebooks(project), _static(project)):
        if found is not None:
            return found
    return _refused(*foreign) if foreign else None


def _with_build(python: Detected, node: Detected) -> Detected:
    """Return the app in Python, with the build of the page that is made beside it."""
    return replace(python, build=" && ".join(filter(None, (node.build, python.build))))


def _foreign(project: Project) -> tuple[str, str, str] | None:
    """Return name, file and what to send instead of the first language that is not run."""
    for entry in TABLE["refused"]:
        for pattern in entry["files"]:
            paths = project.paths if "/" in pattern else project.top
            if "*" not in pattern and pattern not in paths:
                continue
            if path := next((one for one in sorted(paths) if fnmatchcase(one, pattern)), ""):
                return entry["name"], path, entry["instead"]
    return None


def _refused(name: str, path: str, instead: str) -> Refusal:
    return Refusal(f"{shown(path)}: {name} is not run yet: {instead}.")


def _site(project: Project) -> Detected | Refusal | None:
    for entry in TABLE["site"]:
        path = project.first(*entry["files"])
        if not path or not re.search(entry.get("holds", ""), project.text(path)):
            continue
        names = {entry["package"], *entry.get("or", ())}
        reason = f"{shown(path)}: a site of {entry['name']}"
        if names.isdisjoint(project.python_packages):
            return Refusal(f"{reason}, but {entry['package']} is in no requirements.txt: add it.")
        build = entry["build"].replace("{folder}", path.rpartition("/")[0] or ".")
        return static(entry["name"], reason, entry["output"], build=build)
    return None


def _notebooks(project: Project) -> Detected | Refusal | None:
    books = sorted(path for path in project.paths if path.endswith(".ipynb"))
    if not books:
        return None
    reason = f"{shown(books[0])}: a folder of notebooks"
    if project.python_packages.isdisjoint({"jupyterlab", "jupyter", "notebook"}):
        return Refusal(f"{reason}, but jupyterlab is in no requirements.txt: add it, and it is served as a lab.")
    program = "notebook" if project.python_packages.isdisjoint({"jupyterlab", "jupyter"}) else "lab"
    # Without a token of its own: its preview is private, and asks who comes.
    command = (
        f"jupyter {program} --ip 0.0.0.0 --port $PORT --no-browser --IdentityProvider.token='' "
        "--ServerApp.allow_remote_access=True"
    )
    note = "Its preview must stay private: JupyterLab asks for no token of its own, and runs what a visitor writes."
    return Detected("JupyterLab", command, reason, is_private=True, notes=(note,))


def _static(project: Project) -> Detected | Refusal | None:
    page = project.first("index.html", *(f"{folder}/index.html" for folder in PAGES))
    if not page:
        return None
    if source := unbuilt(project, page):
        cure = "send the package.json that builds it, or the folder that its build makes"
        return Refusal(f"{page} asks for {shown(source)}, which a browser cannot read before a build: {cure}.")
    folder = page.rpartition("/")[0]
    return static("static", f"{page}: a static site", folder or ".")


# Monorepos


def _is_monorepo(project: Project) -> bool:
    """Return True where the folder itself is no app: it only has the folders of apps."""
    if any(name in project.top for name in MANIFESTS if name != PACKAGE):
        return False
    is_workspace = "workspaces" in project.package or "pnpm-workspace.yaml" in project.top
    if PACKAGE in project.top:
        return is_workspace and not project.package.get("dependencies")
    return any(path.count("/") == 1 and path.endswith(MANIFESTS) for path in project.paths) and not any(
        path.endswith(".py") for path in project.top
    )


def _folders_of_apps(project: Project) -> Sequence[str]:
    """Return folders, at most two deep, that are projects of their own."""
    found = {path.rpartition("/")[0] for path in project.paths if path.rpartition("/")[2] in MANIFESTS}
    usual = [one for one in found if one and one.count("/") <= 1 and not re.search(r"(?:^|/)(?:node_modules|tests?|docs|examples?|\.)", one)]
    return sorted(usual, key=lambda one: (one.count("/"), one))[:MAX_TRIED]


def _below(project: Project, top: Refusal | None) -> Detected | Refusal:
    """Return the only app of a folder, or a refusal that names the folders of all."""
    found = {root: detected for root in _folders_of_apps(project) if isinstance(detected := _app_below(project, root), Detected)}
    apps = {root: one for root, one in found.items() if one.job_type != "one_time"} or found
    if len(apps) == 1:
        ((root, one),) = apps.items()
        return replace(one, root=root, reason=f"{one.reason}, in {shown(root)}")
    if apps:
        named = ", ".join(f"{shown(root)} ({one.framework})" for root, one in list(apps.items())[:MAX_ROOTS])
        return Refusal(f"the code has several apps: {named}: deploy each with its folder as root.", list(apps)[:MAX_ROOTS])
    return top or Refusal(f"{NOTHING}.")


def _app_below(project: Project, root: str) -> Detected | Refusal | None:
    inner = project.below(root)
    return _of_procfile(inner) if inner.processes else _at_top(inner)


# Notes


def _with_notes(project: Project, found: Detected) -> Detected:
    inner = project.below(found.root) if found.root else project
    notes = [*found.notes, *_notes(project, inner, found)]
    return replace(found, notes=tuple(dict.fromkeys(notes))[:MAX_NOTES])


def _notes(project: Project, inner: Project, found: Detected) -> Iterator[str]:
    for name, why in TABLE["unread"].items():
        if name in project.top:
            yield f"{name} is not read: {why}."
    foreign = _foreign(inner)
    if foreign and foreign[0] not in _WEAK and found.framework != PROCFILE:
        yield f"{shown(foreign[1])} is not used: {foreign[0]} is not run."
    yield from lock_notes(inner)
    if not found.root and found.framework != PROCFILE:
        others = [root for root in _folders_of_apps(project) if root not in found.entrypoint and root not in found.build]
        scripts = " ".join(project.scripts.values())
        for root in [one for one in others if one.split("/")[-1] not in scripts][:3]:
            if isinstance(one := _app_below(project, root), Detected) and one.job_type != "one_time":
                yield f"{shown(root)} has an app of its own ({one.framework}), which is not started: deploy it with root."
    example = inner.first(".env.example", ".env.sample", ".env.template", "env.example")
    if example and ".env" not in inner.top:
        names = re.findall(r"(?m)^(?:export )?([A-Z][A-Z0-9_]{1,60})=", inner.text(example))
        if names:
            listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            yield f"{example} names variables that the app may need: set them in env ({listed})."
