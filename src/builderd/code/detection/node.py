"""Node.js projects: the framework by the packages of package.json, and what builds, starts or serves it."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from builderd.code.detection.model import Detected, Kind, Refusal, shown
from builderd.code.detection.project import PACKAGE, Project, table
from builderd.code.detection.table import TABLE

FRAMEWORKS: Sequence[Mapping[str, Any]] = TABLE["node"]
SERVERS: Mapping[str, str] = dict(one.split("=") for one in TABLE["node_apps"]["servers"])
WORKERS: Mapping[str, str] = dict(one.split("=") for one in TABLE["node_apps"]["workers"])
NPM_BUILD = "npm run build"
#: Makes the packages for development available, where a start needs them and nothing is built.
NO_BUILD = "true"
#: Scripts that start an app, the likeliest first.
STARTS = ("start:prod", "start:production", "start", "serve:prod", "production", "prod", "server", "serve")
#: A script that serves sources, or pages that a server of ours serves.
_DEVELOPS = re.compile(
    r"\b(?:vite(?!-node)|react-scripts|react-app-rewired|craco|vue-cli-service|astro|gatsby|docusaurus|eleventy"
    r"|webpack|webpack-dev-server|parcel|rsbuild|http-server|live-server|browser-sync|expo|ionic|vitepress|vuepress"
    r"|slidev|hexo|stencil|quasar|ember|storybook|wrangler|electron|turbo|lerna)\b"
    r"|(?:^|&&|npx )\s*(?:ng|nx|serve)\b|\b(?:next|nuxt|nuxi|remix|react-router|svelte-kit|vinxi|nest|nitro|strapi)"
    r" (?:dev|preview|develop)\b|\bnest start\b|\bnodemon\b|\bts-node-dev\b|--watch\b|\bwatch\b|--hot\b|^echo\b"
)
_WATCHES = re.compile(
    r"(?:.*&&\s*)?(?:NODE_ENV=\w+\s+)?(?:nodemon|node\s+--watch|(?P<tsx>tsx)\s+watch|ts-node-dev)"
    r"(?:\s+(?:--?[\w-]+(?:=\S+)?))*\s+(?P<file>[\w./-]+\.[cm]?[jt]s)"
)
_BUN = re.compile(r"^(?:bun|bunx|deno)\b")
#: Files that are an app's, where package.json names none.
FILES = tuple(
    f"{folder}{name}.{ending}"
    for ending in ("js", "mjs", "cjs", "ts", "mts")
    for folder in ("", "src/")
    for name in ("server", "index", "app", "main")
)
#: A source of a page that a browser cannot read before it is built.
_SOURCE = re.compile(
    r"""<(?:script|link)\b[^>]{0,500}\b(?:src|href)\s*=\s*["']?(?P<path>[^"'\s>]{1,300}\.(?:tsx?|jsx|vue|svelte|scss|sass|less))\b"""
    r"|(?P<template>%PUBLIC_URL%|<%=?\s|%sveltekit\.|%VITE_\w+%)",
    re.IGNORECASE,
)


def detect_node(project: Project) -> Detected | Refusal | None:
    """Return the app that ``package.json`` describes, None without one that is known."""
    if not project.package:
        return None
    packages = project.node_packages
    served = next((name for name in SERVERS if name in packages), "")
    start = _start_script(project)
    for entry in FRAMEWORKS:
        if packages.keys().isdisjoint(entry["needs"]):
            continue
        is_site = "start" not in entry
        if is_site and served and start:
            break
        if is_site and entry["name"] in ("webpack", "Parcel", "Vite") and not _has_page(project):
            continue
        return _of_framework(project, entry, start)
    return _of_app(project, served, start)


def unbuilt(project: Project, page: str) -> str:
    """Return what the page asks for that a browser cannot read before it is built, else ""."""
    match = _SOURCE.search(project.text(page))
    return (match["path"] or match["template"]) if match else ""


def build_of(project: Project, default: str = "", script: str = "build") -> str:
    """Return the command that builds the project: its script ``build``, else the default."""
    name = next((one for one in ("heroku-postbuild", script) if one in project.scripts), "")
    return f"npm run {name}" if name else default


def _start_script(project: Project) -> str:
    """Return the name of the script that starts a server, "" without one that is more than a tool to develop with."""
    named = (one for one in STARTS if one in project.scripts)
    return next((one for one in named if not _DEVELOPS.search(project.scripts[one])), "")


def _npm(script: str) -> str:
    return "npm start" if script == "start" else f"npm run {script}"


def _has_page(project: Project) -> bool:
    """Return True where a bundler's pages are the project, rather than a part of a server or a library."""
    return any(path.rpartition("/")[2] == "index.html" for path in project.paths) or any(
        re.search(r"\bwebpack(?:-dev-server)? serve|html-webpack-plugin", text)
        for text in (*project.scripts.values(), *project.node_packages)
    )


def _of_framework(project: Project, entry: Mapping[str, Any], start: str) -> Detected | Refusal:
    name, config = entry["name"], "\n".join(project.config(one) for one in entry.get("config", ()))
    reason = f"package.json asks for {next(one for one in entry['needs'] if one in project.node_packages)}"
    if "adapters" in entry and (refused := _other_adapter(project, entry, config)):
        return Refusal(f"{reason}, and {refused}")
    folder = _script_match(project, entry.get("folder")) or ("docs" if "docs" in project.folders else ".")
    build = build_of(project, entry.get("build", "").replace("{folder}", folder), entry.get("script", "build"))
    output = _output(project, entry, config).replace("{folder}", folder)
    notes: tuple[str, ...] = ()
    special = SPECIAL.get(name)
    if special is not None and (found := special(project, build, start, config, reason)) is not None:
        return found
    if "output" in entry and _is_static(project, entry, config):
        single = bool(entry.get("pages") or ("single_page" in entry and re.search(entry["single_page"], config)))
        return static(name, reason, output, single_page=single, build=build)
    command = _npm(start) if start else entry["start"]
    return Detected(name, command, reason, build=build, release=_prisma(project), notes=notes)


def static(
    framework: str, reason: str, output: str, *, single_page: bool = False, build: str = "", notes: Sequence[str] = ()
) -> Detected:
    """Return a static site that is served from a folder."""
    output = posixpath.normpath(output.lstrip("/") or ".")
    output = "." if output.startswith("..") else output
    entrypoint = f"serve-static {shlex.quote(output)}{' --single-page' if single_page else ''}"
    return Detected(
        framework, entrypoint, reason, "static", None, build, output, single_page, notes=tuple(notes)
    )


def _is_static(project: Project, entry: Mapping[str, Any], config: str) -> bool:
    if "start" not in entry:
        return True
    if "static_unless" in entry:
        return not re.search(entry["static_unless"], config)
    in_script = entry.get("static_script")
    if in_script and re.search(in_script, project.scripts.get("build", "")):
        return True
    return bool("static" in entry and re.search(entry["static"], config))


def _script_match(project: Project, pattern: str | None) -> str:
    found = (re.search(pattern, text) for text in project.scripts.values()) if pattern else ()
    return next((match[1] for match in found if match), "").rstrip("/")


def _output(project: Project, entry: Mapping[str, Any], config: str) -> str:
    match = re.search(entry["output_from"], config) if "output_from" in entry else None
    named = _script_match(project, entry.get("output_script")) or (next(filter(None, match.groups())) if match else "")
    # "../dist" of a bundler whose sources lie in a folder is the folder beside them.
    return re.sub(r"^(?:\.\./)+", "", named) or str(entry.get("output", ""))


def _other_adapter(project: Project, entry: Mapping[str, Any], config: str) -> str:
    """Return why the adapter that is used does not run here, "" for one that does or that chooses by itself."""
    used = [one for one in project.node_packages if re.match(entry["adapters"], one) and one in config]
    fits = (entry["adapter"], "@sveltejs/adapter-static", "@sveltejs/adapter-auto")
    other = next((one for one in used if one not in fits), "")
    return f"its adapter {shown(other)} is for another platform: use {entry['adapter']}." if other else ""


def _prisma(project: Project) -> str:
    has_migrations = any(path.startswith("prisma/migrations/") for path in project.paths)
    return "npx prisma migrate deploy" if has_migrations and "prisma" in project.node_packages else ""


# Frameworks that need more than a line of the table


def _next(project: Project, build: str, start: str, config: str, reason: str) -> Detected | None:
    if not re.search(r"output\s*:\s*['\"]standalone", config):
        return None
    copies = "cp -r .next/static .next/standalone/.next/ && if [ -d public ]; then cp -r public .next/standalone/; fi"
    command = "HOSTNAME=0.0.0.0 node .next/standalone/server.js"
    return Detected("Next.js", command, reason, build=f"{build} && {copies}", release=_prisma(project))


def _sveltekit(project: Project, build: str, start: str, config: str, reason: str) -> Detected | None:
    if re.search(r"@sveltejs/adapter-(?:node|static)", config):
        return None
    # adapter-auto takes adapter-node where it finds itself on a platform that runs containers, and installs it.
    return Detected("SvelteKit", "node build", reason, build=f"GCP_BUILDPACKS=1 {build}", release=_prisma(project))


def _angular(project: Project, build: str, start: str, config: str, reason: str) -> Detected | None:
    projects = table(project.json("angular.json"), "projects")
    for name, one in projects.items():
        for group in ("architect", "targets"):
            target = table(one, group, "build")
            if not target or table(one).get("projectType", "application") != "application":
                continue
            options, path = table(target, "options"), f"dist/{name}"
            wanted, browser = options.get("outputPath"), "browser"
            if isinstance(wanted, dict):
                path, browser = str(wanted.get("base", path)), str(wanted.get("browser", "browser"))
            elif isinstance(wanted, str):
                path = wanted
            if options.get("ssr") and options.get("outputMode") != "static":
                command = f"node {shlex.quote(posixpath.normpath(f'{path}/server/server.mjs'))}"
                return Detected("Angular", command, reason, port=4000, build=build)
            is_new = str(target.get("builder", "")).endswith(":application")
            output = f"{path}/{browser}" if is_new else path
            return static("Angular", reason, output, single_page=True, build=build)
    return None


SPECIAL = {"Next.js": _next, "SvelteKit": _sveltekit, "Angular": _angular}


# Apps without a framework of the table


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
    for script in (*STARTS, "dev", "develop"):
        match = _WATCHES.match(project.scripts.get(script, ""))
        if match and match["file"].removeprefix("./") in project.paths:
            found = _file(project, match["file"].removeprefix("./"))
            if found:
                return found, f"package.json has the script `{script}`: {shown(project.scripts[script])}", found
    main = project.package.get("main")
    named = [main] if isinstance(main, str) else []
    for path in (*(posixpath.normpath(one) for one in named), *(f"{one}.js" for one in named), *FILES):
        if path in project.paths and (found := _file(project, path)):
            is_main = path in named
            return found, f"package.json {'names the main file ' if is_main else 'and '}{shown(path)}", found
    return None


def _file(project: Project, path: str) -> str:
    """Return the command that runs a file, "" for TypeScript without a program that runs it."""
    quoted = shlex.quote(path)
    if not path.endswith(("ts", "tsx")):
        return f"node {quoted}"
    runner = next((one for one in ("tsx", "ts-node") if one in project.node_packages), "")
    return f"npx {runner} {quoted}" if runner else ""


def lock_notes(project: Project) -> Iterator[str]:
    """Yield a sentence for each lock that npm does not read."""
    if PACKAGE in project.top and not project.top & {"package-lock.json", "npm-shrinkwrap.json"}:
        for name in ("pnpm-lock.yaml", "yarn.lock", "bun.lock", "bun.lockb"):
            if name in project.top:
                yield f"{name} is not read: npm installs the newest versions that package.json allows."
