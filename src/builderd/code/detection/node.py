"""Node.js projects: the framework by the packages of package.json, and what builds, starts or serves it."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from builderd.code.detection.model import Detected, Kind, Refusal, shown
from builderd.code.detection.project import PACKAGE, TABLE, WORDS, Project
from builderd.dependencies.requested import table

FRAMEWORKS: Sequence[Mapping[str, Any]] = TABLE["node"]
SERVERS: Mapping[str, str] = dict(one.split("=") for one in TABLE["node_apps"]["servers"])
WORKERS: Mapping[str, str] = dict(one.split("=") for one in TABLE["node_apps"]["workers"])
#: Makes the packages for development available, where a start needs them and nothing is built.
NO_BUILD = "true"
_DEVELOPS, _WATCHES, _BUN = (re.compile(WORDS[name]) for name in ("develops", "watches", "bun"))
_LISTENS, MAX_SOURCES = re.compile(r"\blisten\(|createServer|\bserve\("), 200
_SOURCE = re.compile(WORDS["source"], re.IGNORECASE)


def detect_node(project: Project) -> Detected | Refusal | None:
    """Return the app that ``package.json`` describes, None without one that is known."""
    if not project.package and (PACKAGE in project.top or not project.top.intersection(WORDS["files"])):
        return None
    packages = project.node_packages
    served = next((name for name in SERVERS if name in packages), "")
    start = _start_script(project)
    for entry in FRAMEWORKS:
        if packages.keys().isdisjoint(entry["needs"]):
            continue
        if "start" not in entry and served and start:
            break
        # A bundler that has no page makes a part of a server, or a library.
        if entry.get("bundles") and not any(f"/{path}".endswith("/index.html") for path in project.paths):
            continue
        return _of_framework(project, entry, start)
    return _of_app(project, served, start)


def unbuilt(project: Project, page: str) -> str:
    """Return what the page asks for that a browser cannot read before it is built, else ""."""
    match = _SOURCE.search(project.text(page))
    return (match[1] or match[2]) if match else ""


def build_of(project: Project, default: str = "", script: str = "build") -> str:
    """Return the command that builds the project: its script ``build``, else the default."""
    return next((f"npm run {one}" for one in ("heroku-postbuild", script) if one in project.scripts), default)


def _start_script(project: Project) -> str:
    """Return the name of the script that starts a server, "" without one that is more than a tool to develop with."""
    named = (one for one in WORDS["starts"] if one in project.scripts)
    return next((one for one in named if not _DEVELOPS.search(project.scripts[one])), "")


def _npm(script: str) -> str:
    return "npm start" if script == "start" else f"npm run {script}"


def _of_framework(project: Project, entry: Mapping[str, Any], start: str) -> Detected | Refusal:
    name, config = entry["name"], "\n".join(project.config(one) for one in entry.get("config", ()))
    reason = f"package.json asks for {next(one for one in entry['needs'] if one in project.node_packages)}"
    used = re.findall(f"['\"]({entry['adapters']})['\"]", config) if "adapters" in entry else []
    if used and used[0] not in entry["fits"]:
        return Refusal(f"{reason}, and its adapter {shown(used[0])} is for another platform: use {entry['fits'][0]}.")
    folder = _script_match(project, entry.get("folder")) or ("docs" if "docs" in project.folders else ".")
    build = build_of(project, entry.get("build", "").replace("{folder}", folder), entry.get("script", "build"))
    output = _output(project, entry, config).replace("{folder}", folder)
    if name == "Angular" and (found := _angular(project, build, reason)) is not None:
        return found
    variant = entry.get("variant", {})
    if variant and bool(re.search(variant["when"], config)) is variant["is"]:
        command = variant["build"].replace("{build}", build)
        return Detected(name, variant["start"], reason, build=command, release=_prisma(project))
    if "output" in entry and _is_static(project, entry, config):
        single = bool(entry.get("pages") or ("single_page" in entry and re.search(entry["single_page"], config)))
        return static(name, reason, output, single_page=single, build=build)
    command = _npm(start) if start else entry["start"]
    return Detected(name, command, reason, build=build, release=_prisma(project))


def static(framework: str, reason: str, output: str, *, single_page: bool = False, build: str = "") -> Detected:
    """Return a static site that is served from a folder."""
    output = posixpath.normpath(output.lstrip("/") or ".")
    output = "." if output.startswith("..") else output
    entrypoint = f"serve-static {shlex.quote(output)}{' --single-page' if single_page else ''}"
    return Detected(framework, entrypoint, reason, "static", None, build, output, single_page)


def _is_static(project: Project, entry: Mapping[str, Any], config: str) -> bool:
    if "static_unless" in entry:
        return not re.search(entry["static_unless"], config)
    texts = ((entry.get("static"), config), (entry.get("static_script"), project.scripts.get("build", "")))
    return "start" not in entry or any(pattern and re.search(pattern, text) for pattern, text in texts)


def _script_match(project: Project, pattern: str | None) -> str:
    found = (re.search(pattern, text) for text in project.scripts.values()) if pattern else ()
    return next((match[1] for match in found if match), "").rstrip("/")


def _output(project: Project, entry: Mapping[str, Any], config: str) -> str:
    match = re.search(entry["output_from"], config) if "output_from" in entry else None
    named = _script_match(project, entry.get("output_script")) or (next(filter(None, match.groups())) if match else "")
    # "../dist" of a bundler whose sources lie in a folder is the folder beside them.
    return re.sub(r"^(?:\.\./)+", "", named) or str(entry.get("output", ""))


def _prisma(project: Project) -> str:
    has_migrations = any(path.startswith("prisma/migrations/") for path in project.paths)
    return "npx prisma migrate deploy" if has_migrations and "prisma" in project.node_packages else ""


def _angular(project: Project, build: str, reason: str) -> Detected | None:
    """Return the first application of ``angular.json``: its builders put the page into a folder of their output."""
    for name, one in table(project.document("angular.json"), "projects").items():
        target = table(one, "architect", "build") or table(one, "targets", "build")
        options, is_new = table(target, "options"), str(target.get("builder", "")).endswith(":application")
        if not target or table(one).get("projectType", "application") != "application":
            continue
        wanted = options.get("outputPath", f"dist/{name}")
        path = str(table(wanted).get("base", f"dist/{name}") if isinstance(wanted, dict) else wanted)
        if options.get("ssr") and options.get("outputMode") != "static":
            command = f"node {shlex.quote(posixpath.normpath(f'{path}/server/server.mjs'))}"
            return Detected("Angular", command, reason, port=4000, build=build)
        browser = f"/{table(wanted).get('browser', 'browser')}" if is_new else ""
        return static("Angular", reason, path + browser, single_page=True, build=build)
    return None


def _of_app(project: Project, served: str, start: str) -> Detected | Refusal | None:
    packages = project.node_packages
    worker = next((name for name in WORKERS if name in packages), "") if not served else ""
    name = SERVERS.get(served) or WORKERS.get(worker) or "Node.js"
    started = _command(project, served, start)
    if isinstance(started, Refusal):
        return started
    refused = next((one for one in TABLE["node_refused"] if one in packages), "")
    if refused and (started is None or refused == "elysia"):
        return Refusal(f"package.json asks for {refused}: {TABLE['node_refused'][refused]}.")
    if started is None:
        return None
    command, reason, text = started
    prefix = TABLE["node_apps"]["environment"].get(served, "") if command.startswith("np") else ""
    kind: Kind = "worker" if worker else "always_on"
    if not served and not start and kind == "always_on":
        sources = (one for one in sorted(project.paths)[:MAX_SOURCES] if re.search(r"\.[cm]?[jt]s$", one))
        texts = " ".join(map(project.text, sources))
        kind = "always_on" if _LISTENS.search(texts) else "worker" if "setInterval(" in texts else "one_time"
    build = _build(project, text)
    release = _prisma(project) if served else ""
    return Detected(name, f"{prefix} {command}".strip(), reason, kind, build=build, release=release)


def _build(project: Project, text: str) -> str:
    """Return what builds an app that is started with this command line."""
    if build := build_of(project):
        return build
    packages, development = project.node_packages, table(project.package, "devDependencies")
    compiled = re.search(r"\b(?:dist|build|lib|out)/[\w./-]+", text)
    if compiled and compiled[0] not in project.paths and "typescript" in packages and "tsconfig.json" in project.top:
        return "npx tsc"
    return NO_BUILD if any(word in development for word in re.findall(r"[\w@/-]+", text)) else ""


def _command(project: Project, served: str, start: str) -> tuple[str, str, str] | Refusal | None:
    """Return the command that starts it, the reason, and the command line that it runs."""
    own = TABLE["node_apps"]["start"].get(served, "")
    if start:
        text = project.scripts[start]
        if _BUN.match(text):
            cure = "start it with Node.js (of TypeScript: npx tsx FILE)"
            return Refusal(f"its script `{start}` runs `{shown(text)}`, and Bun and Deno are not there: {cure}.")
        return _npm(start), f"package.json has the script `{start}`: {shown(text)}", text
    if own:
        return own, f"package.json asks for {served}", own
    for script in (*WORDS["starts"], "dev", "develop"):
        match = _WATCHES.match(project.scripts.get(script, ""))
        if match and match[1] in project.paths and (found := _file(project, match[1])):
            return found, f"package.json has the script `{script}`: {shown(project.scripts[script])}", found
    main = str(project.package.get("main"))
    for path in (posixpath.normpath(main), f"{main}.js", *WORDS["files"]):
        if path in project.paths and (found := _file(project, path)):
            return found, f"{'package.json names the main file ' * (path == main)}{shown(path)}", found
    return None


def _file(project: Project, path: str) -> str:
    """Return the command that runs a file, "" for TypeScript without a program that runs it."""
    runners = (f"npx {one}" for one in ("tsx", "ts-node") if one in project.node_packages)
    runner = next(runners, "") if path.endswith("ts") else "node"
    return f"{runner} {shlex.quote(path)}" if runner else ""
