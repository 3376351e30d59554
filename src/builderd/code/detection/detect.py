"""Find the kind of a project and its commands: one answer for the service and the command line."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from builderd.code.detection.model import Detected, Refusal, shown
from builderd.code.detection.modules import Modules
from builderd.code.detection.node import build_of, detect_node, static, unbuilt
from builderd.code.detection.project import PACKAGE, PROCFILE, TABLE, WORDS, Project
from builderd.code.detection.python import detect_program, detect_python
from builderd.dependencies.requested import requirements_file

_BUILDS, _NO_APPS, MANIFESTS = re.compile(WORDS["builds"]), re.compile(WORDS["no_apps"]), tuple(WORDS["manifests"])
MAX_ROOTS, MAX_TRIED, MAX_NOTES = 5, 30, 8


def detect(project: Project, kind: str | None = None) -> Detected | Refusal:
    """Return what the code is and what starts it, or why nothing does.

    ``kind`` is the job type that is asked for: it chooses the line of a Procfile.
    """
    if not project.paths:
        return Refusal("the folder has no files that are sent.")
    if (named := _of_procfile(project, kind)) is not None:
        return _with_notes(project, named)
    found = None if _is_monorepo(project) else _at_top(project)
    if not isinstance(found, Detected):
        found = _below(project, found)
    return _with_notes(project, found) if isinstance(found, Detected) else found


def build_for(project: Project, entrypoint: str) -> str:
    """Return the build command of a project whose start is given; empty where the start builds by itself."""
    return "" if _BUILDS.search(entrypoint) else build_of(project)


def _of_procfile(project: Project, kind: str | None = None) -> Detected | None:
    """Return the app of a Procfile: its line ``web``, else ``worker``, else the first; None without one."""
    commands = {name: text for name, text in project.processes.items() if name != "release"}
    wanted = ("worker", "web") if kind == "worker" else ("web", "worker")
    name = next((one for one in (*wanted, *commands) if one in commands), "")
    if not name:
        return None
    entrypoint = commands.pop(name)
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
    is_strong = foreign is not None and foreign[0] not in WORDS["weak"]
    node = detect_node(project)
    if (python := detect_python(project, modules)) is not None:
        return python
    pages = _static(project)
    ends = "one_time" if isinstance(pages, Detected) else ""  # a script that ends is the page's own
    if isinstance(node, Detected) and node.job_type not in ("static" if is_strong else "", ends):
        return node
    program = detect_program(project, modules)
    if is_strong and foreign and (program is None or program.job_type == "one_time"):
        return foreign[2]
    notebooks = _notebooks(project)
    others = (node, _site(project), program, notebooks, pages, foreign[2] if foreign else None, _by_package(project))
    return next((one for one in others if one and not (isinstance(one, Detected) and one.job_type == ends)), None)


def _foreign(project: Project) -> tuple[str, str, Refusal] | None:
    """Return name, file and refusal of the first language that is not run."""
    for entry in TABLE["refused"]:
        for pattern in entry["files"]:
            paths = project.paths if "/" in pattern else project.top
            if "*" not in pattern and pattern not in paths:
                continue
            if path := next((one for one in sorted(paths) if fnmatchcase(one, pattern)), ""):
                name, instead = entry["name"], entry["instead"]
                return name, path, Refusal(f"{shown(path)}: {name} is not run yet: {instead}.")
    return None


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


def _notebooks(project: Project) -> Detected | None:
    books = sorted(path for path in project.paths if path.endswith(".ipynb"))
    if not books or "voila" in project.python_packages:
        return None
    reason, lab = f"{shown(books[0])}: a folder of notebooks", TABLE["notebooks"]
    lacks = project.python_packages.isdisjoint(lab["packages"])
    notes, added = (lab["note"], lab["added_note"])[: 1 + lacks], (lab["added"],) * lacks
    return Detected("JupyterLab", lab["start"], reason, is_private=True, notes=notes, added=added)


def _by_package(project: Project) -> Detected | None:
    """Return the app of a package that has a command of its own."""
    for package, entry in TABLE["commands"].items():
        if package in project.python_packages and entry.get("file", ".") in (".", *project.top):
            books = [one for one in project.top if one.endswith(".ipynb")]
            start = entry["start"].replace("{book}", shlex.quote(books[0]) if len(books) == 1 else ".")
            return Detected(package, start, f"{package} is among its packages", entry.get("job_type", "always_on"))
    return None


def _static(project: Project) -> Detected | Refusal | None:
    page = project.first("index.html", *(f"{folder}/index.html" for folder in WORDS["pages"]))
    if not page:
        return None
    if source := unbuilt(project, page):
        cure = "send the package.json that builds it, or the folder that its build makes"
        return Refusal(f"{page} asks for {shown(source)}, which a browser cannot read before a build: {cure}.")
    folder = page.rpartition("/")[0]
    return static("static", f"{page}: a static site", folder or ".")


def _is_monorepo(project: Project) -> bool:
    """Return True where the folder itself is no app: it only has the folders of apps."""
    lists = (requirements_file(project.paths), *(name for name in MANIFESTS if name != PACKAGE))
    if not project.paths.isdisjoint(lists):
        return False
    is_workspace = "workspaces" in project.package or "pnpm-workspace.yaml" in project.top
    if PACKAGE in project.top:
        return is_workspace and not project.package.get("dependencies")
    return any(path.count("/") == 1 and path.endswith(MANIFESTS) for path in project.paths) and not any(
        path.endswith(".py") for path in project.top
    )


def _folders(project: Project, *, manifests: bool = True) -> Sequence[str]:
    """Return folders, at most two deep, that may have an app: those with a manifest, or with any file."""
    found = {path.rpartition("/")[0] for path in project.paths if not manifests or path.rpartition("/")[2] in MANIFESTS}
    usual = [one for one in found if one and one.count("/") <= 1 and not _NO_APPS.search(one)]
    return sorted(usual, key=lambda one: (one.count("/"), one))[:MAX_TRIED]


def _below(project: Project, top: Refusal | None) -> Detected | Refusal:
    """Return the only app of a folder, or a refusal that names the folders of all."""
    for manifests in (True, False):
        tried = {root: _app_below(project, root) for root in _folders(project, manifests=manifests)}
        found = {root: one for root, one in tried.items() if isinstance(one, Detected)}
        apps = {root: one for root, one in found.items() if one.job_type != "one_time"} or found
        if len(apps) == 1 and manifests:
            ((root, one),) = apps.items()
            one = replace(one, build=one.build and _built_first(project, root) + one.build)
            return replace(one, root=root, reason=f"{one.reason}, in {shown(root)}")
        if apps and not (top and not manifests):
            named = ", ".join(f"{shown(root)} ({one.framework})" for root, one in list(apps.items())[:MAX_ROOTS])
            cure = "deploy each with its folder as root"
            return Refusal(f"the apps of this code lie in folders: {named}: {cure}.", list(apps)[:MAX_ROOTS])
    return top or Refusal(WORDS["nothing"])


def _built_first(project: Project, root: str) -> str:
    """Return the commands that build the packages beside an app that it uses, the innermost first; "" for none."""
    beside = {folder: project.below(folder) for folder in _folders(project) if folder != root}
    waiting, command = [project.below(root)], ""
    for user in waiting:
        for folder, one in beside.items():
            if str(one.package.get("name")) in user.node_packages and one not in waiting:
                waiting.append(one)
                up = shlex.quote(posixpath.relpath(f"/{folder}", f"/{root}"))
                command = f"(cd {up} && npm run build) && {command}" if "build" in one.scripts else command
    return command


def _app_below(project: Project, root: str) -> Detected | Refusal | None:
    inner = project.below(root)
    return _of_procfile(inner) or _at_top(inner)


def _with_notes(project: Project, found: Detected) -> Detected:
    notes = [*found.notes, *_notes(project, found)]
    return replace(found, notes=tuple(dict.fromkeys(notes))[:MAX_NOTES])


def _notes(project: Project, found: Detected) -> Iterator[str]:
    inner = project.below(found.root) if found.root else project
    for name, why in TABLE["unread"].items():
        if name in project.top:
            yield f"{name} is not read: {why}."
    foreign = _foreign(inner)
    if foreign and foreign[0] not in WORDS["weak"] and found.framework != PROCFILE:
        yield f"{shown(foreign[1])} is not used: {foreign[0]} is not run."
    commands = " ".join((found.entrypoint, found.build, *project.scripts.values()))
    others = [one for one in _folders(project) if one.split("/")[-1] not in commands]
    for root in others[: 0 if found.root or found.framework == PROCFILE else 3]:
        if isinstance(one := _app_below(project, root), Detected) and one.job_type != "one_time":
            yield f"{shown(root)} has an app of its own ({one.framework}), which is not started: deploy it too."
    example = inner.first(".env.example", ".env.sample", ".env.template", "env.example")
    names = re.findall(r"(?m)^(?:export )?([A-Z][A-Z0-9_]{1,60})=", inner.text(example))
    if names and ".env" not in inner.top:
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        yield f"{example} names variables that the app may need: set them in env ({listed})."
