"""npm: plans the layer for a bundle's ``package.json``.

Install scripts are off unless the builder asks for them. But a registry package may depend on one from git, which npm
prepares with the package's own scripts despite ``--ignore-scripts`` (``lib/git.js``, ``lib/dir.js`` of pacote). This
is known only once npm has asked the registry, so every npm plan may run code and waits for the review.

npm is a large program and a lock is hostile input, so npm never sees the cache that all tenants share: it gets an
empty one that is discarded after each build.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from builderd.code.model import Bundle
from builderd.core.errors import InstallFailed
from builderd.core.ids import TenantId
from builderd.credentials.model import NPM_TOKEN, PackageSources
from builderd.dependencies.model import APP, CACHE, INPUT, LAYER, BuildStep, Cache, LayerPlan
from builderd.dependencies.requested import table as table_of

#: Part of every key: increment it when the steps change the content of a layer.
RECIPE = 1
FOLDER = "npm"
MAX_EXPLAINED_LINES = 30

PREFIX = re.compile(r"npm (?:ERR!|error|WARN|warn)\s?")
#: Lines of npm's output that do not explain a failure.
NOISE = re.compile(
    r"npm (?:WARN|warn)|A complete log of this run|^\s*/tmp/|^\s*\S*/_logs/\S+$|^(?:code|errno|syscall) \S+$"
)
#: Where npm begins to print its manual.
USAGE = re.compile(r"^(?:Clean install a project|Install a package|Usage:)$")

ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 -- the sandbox's own
    "npm_config_userconfig": "/dev/null",
    "npm_config_globalconfig": "/nowhere/npmrc",
    **{f"npm_config_{name}": "false" for name in ("audit", "fund", "update_notifier", "progress")},
    "npm_config_cache": f"{CACHE}/npm",
}


@dataclass(frozen=True, slots=True)
class NpmInstaller:
    """``registry``: URL of the package registry, None for npm's default. npm is part of the base image."""

    registry: str | None = None

    def plan(
        self, bundle: Bundle, base_id: str, tenant: TenantId, *, install_scripts: bool = False, dev: bool = False
    ) -> LayerPlan | None:
        """Return the plan, or None without dependencies. Raises ``InstallFailed``."""
        packages = read_packages(bundle, self.registry, dev=dev)
        if packages is None:
            return None
        foreign = packages.foreign or install_scripts
        inputs = {f"{FOLDER}/package.json": packages.manifest}
        if packages.lock is not None:
            inputs[f"{FOLDER}/package-lock.json"] = packages.lock
        lock = hashlib.sha256(packages.lock).hexdigest() if packages.lock is not None else None
        kind, manifest = f"tenant {tenant}" if foreign else "shared", packages.manifest.decode()
        decisive = [RECIPE, "npm", base_id, self.registry, kind, install_scripts, manifest, lock]
        decisive += [packages.links] if packages.links else []
        key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
        if dev:
            key = hashlib.sha256(f"{key} with development dependencies".encode()).hexdigest()
        step = self._step(packages, install_scripts, "include" if dev else "omit")
        return LayerPlan(key, inputs, (step,), runs_foreign_code=foreign, may_run_code=True)

    def explain(self, output: Sequence[str]) -> str:
        """Extract npm's error message from its output."""
        lines = [line.rstrip() for line in output if not NOISE.search(PREFIX.sub("", line)) and not NOISE.match(line)]
        messages = [PREFIX.sub("", line) for line in lines if PREFIX.match(line)] or lines
        usage = next((number for number, line in enumerate(messages) if USAGE.match(line)), len(messages))
        messages = messages[:usage] or messages
        return "\n".join(line for line in messages[-MAX_EXPLAINED_LINES:] if line) or "npm failed without output."

    def _step(self, packages: NodePackages, install_scripts: bool, dev: str) -> BuildStep:
        command = "ci" if packages.lock is not None else "install --no-package-lock"
        flags = f"--{dev}=dev --ignore-scripts={'false' if install_scripts else 'true'}"
        script = (
            f"cp {INPUT}/{FOLDER}/* {LAYER}/ && cd {LAYER} && npm {command} {flags} >&2 "
            "&& rm -f package.json package-lock.json && mkdir -p node_modules"
        )
        for name, folder in packages.links.items():
            link = shlex.quote(f"node_modules/{name}")
            script += f" && mkdir -p $(dirname {link}) && ln -sfn {shlex.quote(f'{APP}/{folder}')} {link}"
        registry = {"npm_config_registry": self.registry} if self.registry else {}
        title = "Installing with npm, with install scripts" if install_scripts else "Installing with npm"
        return BuildStep(title, ("/bin/sh", "-ec", script), True, Cache.SCRATCH, {**ENVIRONMENT, **registry})


#: npm's settings for a private registry, among the inputs. npm itself puts the token in place of its name.
SETTINGS = "npmrc"


def with_sources(plan: LayerPlan, sources: PackageSources) -> LayerPlan:
    """Return the plan with a private registry for npm, whose token is in the step's environment alone."""
    env, secrets, inputs = {}, {}, {}
    if sources.registry:
        env["npm_config_registry"] = sources.registry
    if sources.has_npm_token:
        parts = urlsplit(sources.registry or PUBLIC_REGISTRY)
        line = f"//{parts.netloc}{parts.path.rstrip('/')}/:_authToken=${{{NPM_TOKEN}}}\n"
        inputs, secrets = {SETTINGS: line.encode()}, {NPM_TOKEN: sources.secrets[NPM_TOKEN]}
        env["npm_config_userconfig"] = f"{INPUT}/{SETTINGS}"
    steps = [
        replace(step, env={**step.env, **env}, secrets=secrets) if "npm_config_cache" in step.env else step
        for step in plan.steps
    ]
    return replace(plan, steps=tuple(steps), inputs={**plan.inputs, **inputs})


FILE, PNPM = "package.json", "pnpm-workspace.yaml"
LOCKS = ("npm-shrinkwrap.json", "package-lock.json")
MAX_BYTES = 10_000_000
MAX_PACKAGES = 20_000

#: Keys of ``package.json`` that decide what is installed; ``npm ci`` compares the lock with all of them.
DECISIVE = ("dependencies", "optionalDependencies", "devDependencies", "peerDependencies", "peerDependenciesMeta")
OVERRIDES = "overrides"

#: Paths where a lock may put a package: none outside of the folder.
NAME = r"(?:@[A-Za-z0-9_~-][\w.~-]*/)?[A-Za-z0-9_~-][\w.~-]*"
LOCK_PATH = re.compile(rf"node_modules/{NAME}(?:/node_modules/{NAME})*")
PACKAGE = re.compile(NAME)
#: A version, range or tag of the registry, or an alias. A spec that begins with a dot is a folder to npm.
REGISTRY_SPEC = re.compile(r"(?:npm:(?:@?[\w.~/-]+)(?:@[^:/]*)?|(?!\.)[^:/]*)")
REMOTE_SPEC = re.compile(r"(?:https|git\+https|github|gitlab|bitbucket):[^\s]+|[\w-][\w.-]*/[\w.-]+(?:#[^\s]*)?")
#: The value of an override that means the version in the app's own dependencies.
REFERENCE = re.compile(rf"\$(?:{NAME})")
#: The key of an override: a package, or a range of its versions.
OVERRIDDEN = re.compile(rf"(?:{NAME})(?:@(?!\.)[^:/]*)?")
MAX_NESTED = 50
PUBLIC_REGISTRY = "https://registry.npmjs.org/"


@dataclass(frozen=True, slots=True)
class NodePackages:
    """Rewritten ``manifest`` and ``lock`` for npm. ``foreign``: some code comes from outside the registry."""

    manifest: bytes
    lock: bytes | None
    foreign: bool
    #: Folder in the code by name of each package beside the app.
    links: Mapping[str, str] = field(default_factory=dict)


def read_packages(bundle: Bundle, registry: str | None, *, dev: bool = False) -> NodePackages | None:
    """Parse ``package.json`` and its lock; None without the file or without dependencies to install.

    ``dev``: those for development are to be installed too. ``registry``: the operator's registry URL, None for npm's
    default. Raises ``InstallFailed`` with file and reason.
    """
    document, links = read_workspace(bundle)
    if document is None:
        return None
    manifest = {name: _dependencies(document, name) for name in DECISIVE if document.get(name)}
    overrides = document.get(OVERRIDES)
    if overrides:
        manifest[OVERRIDES] = overrides
    wanted = ("dependencies", "optionalDependencies", *(("devDependencies",) if dev else ()))
    if not links and not any(manifest.get(name) for name in wanted):
        return None
    lock = None if links else next(filter(None, (_document(bundle, name) for name in LOCKS)), None)
    tables = [manifest.get(name) or {} for name in DECISIVE]
    specs = [spec for table in tables for spec in table.values() if isinstance(spec, str)]
    specs += _overriding(overrides) if overrides else ()
    foreign = not all(map(REGISTRY_SPEC.fullmatch, specs))
    foreign = foreign or (lock is not None and _check_lock(lock, registry))
    written = {"name": "app", "version": "0.0.0", "private": True, **manifest}
    if lock is None and (versions := dict(read_versions(bundle))):
        pinned = {name: versions.pop(name, "") for name in {name for table in tables for name in table}}
        for table, name in ((one, name) for one in tables for name in one):
            if pinned[name] and re.match(r"[\^~]?\d|\*$|latest$", str(table[name])):
                table[name] = pinned[name]
        written[OVERRIDES] = {**versions, **(overrides or {})}
    return NodePackages(_json(written), _json(lock) if lock is not None else None, foreign, links)


_NAME, _VERSION = r"((?:@[\w~-][\w.~-]*/)?[\w~-][\w.~-]*)", r"(\d[0-9A-Za-z.+-]*)"
#: Where another lock names a package of the registry and its version; not where it does so by an alias.
_OTHER_LOCKS = {
    "pnpm-lock.yaml": rf"(?m)^  '?/?{_NAME}[@/]{_VERSION}[^\n]*:$",
    "yarn.lock": rf'(?m)^"?{_NAME}@(?!npm:@?[A-Za-z]|(?!npm:)[a-z+]+:)[^\n]*:\n  version:? "?{_VERSION}',
    "bun.lock": rf'\["{_NAME}@{_VERSION}"',
    "package-lock.json": rf'"(?:[^"\s]*/)?node_modules/{_NAME}": \{{\s*"version": "{_VERSION}"',
}
_CATALOG = re.compile(r"""(?m)^( *)['"]?([@\w./-]+)['"]?:[ \t]*['"]?([^'"#\n]*)""")


def read_versions(bundle: Bundle) -> Mapping[str, str]:
    """Return version by package of the lock of another tool, or of the workspace, for packages that it has once."""
    for one, name in ((one, name) for one in (bundle, bundle.whole) if one for name in _OTHER_LOCKS):
        if (file := one.file(name)) is not None and file.size <= MAX_BYTES:
            text = file.content.decode("utf-8", "replace").replace("\r\n", "\n")
            found = sorted(set(re.findall(_OTHER_LOCKS[name], text)))
            times = Counter(package for package, _ in found)
            return {package: version for package, version in found if times[package] == 1}
    return {}


def read_workspace(bundle: Bundle) -> tuple[dict[str, Any] | None, Mapping[str, str]]:
    """Return ``package.json`` with what packages beside the app need, and the folders of those that it uses by name."""
    whole, root = bundle.whole or bundle, bundle.root
    document, top = _document(bundle, FILE), _document(whole, FILE) or {}
    if document is None or not (top.get("workspaces") or whole.file(PNPM)):
        return document, {}
    members: dict[str, tuple[str, dict[str, Any]]] = {}
    paths = (file.path for file in whole.files if file.path.endswith(f"/{FILE}") and file.path != f"{root}/{FILE}")
    for path in sorted(paths, key=lambda path: path.count("/")):
        with suppress(InstallFailed):  # of a test's, which is of no use
            one = _document(whole, path) or {}
            if "node_modules/" not in path and PACKAGE.fullmatch(str(one.get("name"))):
                members.setdefault(one["name"], (path.removesuffix(f"/{FILE}"), one))
    catalogs, wanted = _catalogs(whole), {key: dict[str, Any]() for key in DECISIVE[:3]}
    used = {} if root else {name: folder for name, (folder, _) in members.items()}
    waiting = [document, *([top] if root else [one for _, one in members.values()])]
    for manifest in waiting:
        for key, (name, spec) in ((one, pair) for one in wanted for pair in table_of(manifest, one).items()):
            if name in members and name not in used:
                used[name] = members[name][0]
                waiting.append(members[name][1])
            elif name not in members and not any(name in one for one in wanted.values()):
                wanted[key][name] = catalogs.get(str(spec).removesuffix("default"), {}).get(name, spec)
    return {**document, OVERRIDES: document.get(OVERRIDES) or top.get(OVERRIDES), **wanted}, used


def _catalogs(bundle: Bundle) -> Mapping[str, Mapping[str, str]]:
    """Return version by package of each catalog of pnpm, under the word that asks for it."""
    catalogs: dict[str, dict[str, str]] = {}
    current, file = dict[str, str](), bundle.file(PNPM)
    for indent, key, value in _CATALOG.findall(file.head(100_000).decode(errors="replace") if file else ""):
        if not value.strip():
            current = catalogs.setdefault(f"catalog:{key}" if indent else key.replace("catalog", "catalog:"), {})
        current[key] = value.strip()
    return catalogs


def _dependencies(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document[name]
    if not isinstance(table, dict):
        raise InstallFailed(f"{FILE}: {name} must be an object.")
    if name == "peerDependenciesMeta":
        return table
    for package, spec in table.items():
        if not PACKAGE.fullmatch(package):
            raise InstallFailed(f"{FILE}: {name}: {package!r} is no name of a package.")
        _check_spec(f"{name}.{package}", spec)
    return table


def _overriding(table: Any, depth: int = 0) -> Iterator[str]:
    """Yield the specs of an overrides table and of all nested ones."""
    if not isinstance(table, dict) or depth > MAX_NESTED:
        raise InstallFailed(f"{FILE}: {OVERRIDES} must be an object, nested {MAX_NESTED} deep at most.")
    for package, value in table.items():
        if package != "." and not OVERRIDDEN.fullmatch(package):
            raise InstallFailed(f"{FILE}: {OVERRIDES}: {package!r} is no name of a package.")
        if isinstance(value, dict):
            yield from _overriding(value, depth + 1)
        elif not (isinstance(value, str) and REFERENCE.fullmatch(value)):
            _check_spec(f"{OVERRIDES}.{package}", value)
            yield value


def _check_spec(key: str, spec: Any) -> None:
    if not isinstance(spec, str) or not (REGISTRY_SPEC.fullmatch(spec) or REMOTE_SPEC.fullmatch(spec)):
        raise InstallFailed(
            f"{FILE}: {key}: {spec!r} is refused: use a version of the registry, "
            "or an https:// or git+https:// address."
        )


def _check_lock(lock: dict[str, Any], registry: str | None) -> bool:
    """Return True if a package of the lock comes from outside the registry. Raises ``InstallFailed``."""
    known = tuple(filter(None, (PUBLIC_REGISTRY, registry and registry.rstrip("/") + "/")))
    packages = [*_packages(lock), *_nested(lock.get("dependencies"))]
    if len(packages) > MAX_PACKAGES:
        raise InstallFailed(f"The lock names more than {MAX_PACKAGES} packages.")
    foreign = False
    for location, package in packages:
        if package.get("link") or any(str(package.get(key, "")).startswith("file:") for key in ("resolved", "version")):
            raise InstallFailed(f"The lock takes {location!r} from a folder: only registry packages are supported.")
        resolved = package.get("resolved")
        foreign = foreign or (isinstance(resolved, str) and not resolved.startswith(known))
        foreign = foreign or not REGISTRY_SPEC.fullmatch(str(package.get("version", "")))
    return foreign


def _packages(lock: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and entry of each package of ``lockfileVersion`` 2 and 3."""
    packages = lock.get("packages", {})
    if not isinstance(packages, dict):
        raise InstallFailed("The lock is damaged: run `npm install` again.")
    for location, package in packages.items():
        if not isinstance(package, dict) or (location and not LOCK_PATH.fullmatch(location)):
            raise InstallFailed(f"The lock puts a package at {location!r}, outside of node_modules.")
        if location:
            yield location, package


def _nested(table: Any, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and entry of each package of ``lockfileVersion`` 1, where packages nest."""
    if table is None:
        return
    if not isinstance(table, dict) or depth > MAX_NESTED:
        raise InstallFailed("The lock is damaged: run `npm install` again.")
    for name, package in table.items():
        if not PACKAGE.fullmatch(name) or not isinstance(package, dict):
            raise InstallFailed(f"The lock names a package {name!r}, which is no name of one.")
        yield name, package
        yield from _nested(package.get("dependencies"), depth + 1)


def _document(bundle: Bundle, path: str) -> dict[str, Any] | None:
    file = bundle.file(path)
    if file is None:
        return None
    if file.size > MAX_BYTES:
        raise InstallFailed(f"{path} is larger than {MAX_BYTES} bytes.")
    try:
        document = json.loads(file.content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        cure = "make it anew (npm install --package-lock-only)" if "lock" in path or "shrinkwrap" in path else "mend it"
        raise InstallFailed(f"{path} is not JSON: {error}: {cure}.") from None
    if not isinstance(document, dict):
        raise InstallFailed(f"{path} must be a JSON object.")
    return document


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode()
