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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from builderd.adapters.installers.package_json import PUBLIC_REGISTRY, NodePackages, read_packages
from builderd.domain.bundles import Bundle
from builderd.domain.credentials import NPM_TOKEN, PackageSources
from builderd.domain.ids import TenantId
from builderd.domain.layers import CACHE, INPUT, LAYER, BuildStep, Cache, LayerPlan

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
    "npm_config_audit": "false",
    "npm_config_fund": "false",
    "npm_config_update_notifier": "false",
    "npm_config_progress": "false",
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
        key = self._key(packages, base_id, f"tenant {tenant}" if foreign else "shared", install_scripts)
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
        registry = {"npm_config_registry": self.registry} if self.registry else {}
        title = "Installing with npm, with install scripts" if install_scripts else "Installing with npm"
        return BuildStep(title, ("/bin/sh", "-ec", script), True, Cache.SCRATCH, {**ENVIRONMENT, **registry})

    def _key(self, packages: NodePackages, base_id: str, kind: str, install_scripts: bool) -> str:
        lock = hashlib.sha256(packages.lock).hexdigest() if packages.lock is not None else None
        decisive = [RECIPE, "npm", base_id, self.registry, kind, install_scripts, packages.manifest.decode(), lock]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


#: npm's settings for a private registry, among the inputs. npm itself puts the token in place of its name.
SETTINGS = "npmrc"


def is_step(step: BuildStep) -> bool:
    """Return True for a step that runs npm."""
    return "npm_config_cache" in step.env


def with_sources(step: BuildStep, sources: PackageSources) -> BuildStep:
    """Return the step with a private registry, whose token is in its environment alone."""
    env = {**step.env}
    if sources.registry:
        env["npm_config_registry"] = sources.registry
    if not sources.has_npm_token:
        return replace(step, env=env)
    env["npm_config_userconfig"] = f"{INPUT}/{SETTINGS}"
    return replace(step, env=env, secrets={NPM_TOKEN: sources.secrets[NPM_TOKEN]})


def settings_file(sources: PackageSources) -> Mapping[str, bytes]:
    """Return the settings that name the variable of the token; nothing without one."""
    if not sources.has_npm_token:
        return {}
    parts = urlsplit(sources.registry or PUBLIC_REGISTRY)
    line = f"//{parts.netloc}{parts.path.rstrip('/')}/:_authToken=${{{NPM_TOKEN}}}\n"
    return {SETTINGS: line.encode()}
