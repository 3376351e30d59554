"""npm: plans the layer for a bundle's ``package.json``.

Install scripts are off unless they were asked for. But a package of the registry may depend on one from git, and such
a one npm prepares with the package's own scripts, whatever ``--ignore-scripts`` says (``lib/git.js``, ``lib/dir.js`` of
pacote). Nobody knows before npm has asked the registry, so every plan of npm's may run code and waits for the verdict.

npm itself is no small program and a lock is hostile input, so it never writes to the cache that all tenants share: a
snapshot of it is thrown away after each build.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from builderd.adapters.installers.package_json import NodePackages, read_packages
from builderd.domain.bundles import Bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import CACHE, INPUT, LAYER, BuildStep, Cache, LayerPlan

#: Part of every key: counts up when the steps change what is in a layer.
RECIPE = 1
FOLDER = "npm"
MAX_EXPLAINED_LINES = 30

SAYS = re.compile(r"npm (?:ERR!|error|WARN|warn)\s?")
#: Lines of npm that tell the user nothing of what went wrong.
NOISE = re.compile(r"npm (?:WARN|warn)|A complete log of this run|^\s*/tmp/|^(?:code|errno|syscall) \S+$")

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
    """``registry`` is where packages come from, None for npm's own. npm is the base's, which is part of every key."""

    registry: str | None = None

    def plan(
        self, bundle: Bundle, base_id: str, tenant: TenantId, *, install_scripts: bool = False
    ) -> LayerPlan | None:
        """The plan, or None where nothing is asked for. Raises ``InstallFailed``."""
        packages = read_packages(bundle, self.registry)
        if packages is None:
            return None
        foreign = packages.foreign or install_scripts
        inputs = {f"{FOLDER}/package.json": packages.manifest}
        if packages.lock is not None:
            inputs[f"{FOLDER}/package-lock.json"] = packages.lock
        key = self._key(packages, base_id, f"tenant {tenant}" if foreign else "shared", install_scripts)
        step = self._step(packages, install_scripts)
        return LayerPlan(key, inputs, (step,), runs_foreign_code=foreign, may_run_code=True)

    def explain(self, output: Sequence[str]) -> str:
        """npm's own message."""
        lines = [line.rstrip() for line in output if not NOISE.search(SAYS.sub("", line)) and not NOISE.match(line)]
        told = [SAYS.sub("", line) for line in lines if SAYS.match(line)] or lines
        return "\n".join(line for line in told[-MAX_EXPLAINED_LINES:] if line) or "npm failed without a word."

    def _step(self, packages: NodePackages, install_scripts: bool) -> BuildStep:
        command = "ci" if packages.lock is not None else "install --no-package-lock"
        flags = f"--omit=dev --ignore-scripts={'false' if install_scripts else 'true'}"
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
