"""All installers as one: a bundle may need Python packages (uv), Node.js packages (npm), or both in one layer.

Wheels are only unpacked: no package code runs while the cache that all tenants share is writable. A package that must
be built from source gets a plan per tenant, in which code runs but the shared cache is out of reach.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from builderd.code.model import Bundle
from builderd.core.ids import TenantId
from builderd.credentials.model import DEFAULT_NAME, NPM_TOKEN, PackageSources
from builderd.dependencies.installers import debian, npm
from builderd.dependencies.installers.npm import MAX_EXPLAINED_LINES, NpmInstaller
from builderd.dependencies.installers.project import read_locks, read_project, read_setup
from builderd.dependencies.installers.requirements import Requirements, collect, read_requirements
from builderd.dependencies.model import CACHE, INPUT, LAYER, BuildStep, Cache, LayerPlan
from builderd.dependencies.requested import requirements_file, script_list

PYTHON = "/usr/bin/python3"
#: Part of every key: increment it when the steps change the content of a layer.
RECIPE = 2

#: uv's messages when only a source distribution exists.
NO_WHEELS = re.compile(r"no usable wheels|Wheels are required for")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
#: Lines of uv's output that do not explain a failure.
NOISE = re.compile(r"^(?:Using (?:Python|CPython) |Creating virtual environment |Resolved |Prepared |hint: Wheels are)")
MAX_SCRIPT = 200_000

ENVIRONMENT = {
    "UV_NO_CONFIG": "1",
    "UV_NO_PROGRESS": "1",
    # Sentences stay whole, so that `install_hints` finds names in them.
    "UV_NO_WRAP": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_HTTP_TIMEOUT": "60",
    "HOME": "/tmp",  # noqa: S108 -- the sandbox's own
}

VENV = f"uv venv -q --relocatable --python {PYTHON} {LAYER}/venv"
INSTALL = f"uv pip install --no-compile-bytecode --python {LAYER}/venv/bin/python --cache-dir {CACHE}"
#: Files of the cache cannot be cloned (reflink) across the overlay that protects it.
CLONED, COPIED = "--link-mode clone", "--link-mode copy"

COMPILE_STEP = BuildStep(
    title="Byte-compiling",
    # The interpreter of the base, not uv's --compile-bytecode: that of the layer would run .pth files of a wheel. Files
    # that this Python cannot compile (templates, older syntax) are ignored.
    argv=(
        "/bin/sh",
        "-c",
        f"{PYTHON} -I -m compileall -q -j 2 -s {LAYER} -p / {LAYER}/venv/lib >/dev/null 2>&1 || true",
    ),
    network=False,
    cache=Cache.NONE,
)


@dataclass(frozen=True, slots=True)
class UvInstaller:
    """``version``: uv's version, part of every key. ``index``: URL of the package index, None for uv's default."""

    version: str
    index: str | None = None

    def plan(self, bundle: Bundle, base_id: str, tenant: TenantId, *, added: Collection[str] = ()) -> LayerPlan | None:
        requirements = _read(bundle, added)
        if requirements is None:
            return None
        kind = f"tenant {tenant}" if requirements.foreign else "shared"
        decisive = [RECIPE, "uv", self.version, base_id, self.index, kind, requirements.lines, requirements.constraints]
        key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
        files = {"requirements.txt": requirements.lines, "constraints.txt": requirements.constraints}
        inputs = {name: "".join(f"{line}\n" for line in lines).encode() for name, lines in files.items() if lines}
        return self.make(key, inputs, foreign=requirements.foreign)

    def explain(self, output: Sequence[str]) -> str:
        lines = [ANSI.sub("", line).rstrip() for line in output]
        messages = [line for line in lines if line and not NOISE.match(line)]
        return "\n".join(messages[-MAX_EXPLAINED_LINES:]) or "uv failed without output."

    def make(self, key: str, inputs: Mapping[str, bytes], *, foreign: bool) -> LayerPlan:
        """Return the plan from its inputs, of wheels alone unless ``foreign``.

        Both commands run in one sandbox: the environment is new, so uv runs nothing foreign when it inspects it.
        """
        title, cache = ("Building and installing", Cache.SCRATCH) if foreign else ("Installing wheels", Cache.SHARED)
        constraints = f" -c {INPUT}/constraints.txt" if "constraints.txt" in inputs else ""
        install = f"{INSTALL} {COPIED if foreign else f'--no-build {CLONED}'}"
        script = f"{VENV} && {install} -r {INPUT}/requirements.txt{constraints}"
        index = {"UV_DEFAULT_INDEX": self.index} if self.index else {}
        step = BuildStep(title, ("/bin/sh", "-ec", script), True, cache, {**ENVIRONMENT, **index})
        return LayerPlan(key, inputs, (step, COMPILE_STEP), runs_foreign_code=foreign)


def _read(bundle: Bundle, added: Collection[str]) -> Requirements | None:
    """Return what the first file asks for that names any, and what is added, unless lines have hashes."""
    readers = read_requirements, read_project, read_locks, read_setup, _read_other
    found = [next(filter(None, (reader(bundle) for reader in readers)), None)]
    if found[0] is not None and found[0].own:
        found.append(next(filter(None, (reader(bundle) for reader in (read_project, read_setup))), None))
    if not any(" --hash=" in line for one in found if one for line in one.lines):
        found.append(collect("added", [(one, one) for one in added]))
    known = [*filter(None, found)]
    lines = {line for one in known for line in one.lines}
    constraints = {line for one in known for line in one.constraints}
    foreign = any(one.foreign for one in known)
    return Requirements(tuple(sorted(lines)), tuple(sorted(constraints)), foreign) if lines else None


def _read_other(bundle: Bundle) -> Requirements | None:
    """Return the requirements of a list of another name, else those in the head of a script."""
    paths = {file.path: file for file in bundle.files}
    if found := read_requirements(bundle, requirements_file(paths)):
        return found
    script, listed = script_list(paths, lambda path: paths[path].head(MAX_SCRIPT).decode(errors="replace"))
    return collect(script, [(one, one) for one in listed])


def with_sources(step: BuildStep, sources: PackageSources) -> BuildStep:
    """Return a step of uv with private indexes. What they serve is not written to the cache that all tenants share."""
    if "UV_NO_CONFIG" not in step.env:
        return step
    env = {**step.env}
    if sources.index:
        env["UV_DEFAULT_INDEX"] = f"{DEFAULT_NAME}={sources.index}"
    if sources.extras:
        env["UV_INDEX"] = " ".join(f"{name}={address}" for name, address in sources.extras.items())
    argv = tuple(word.replace(CLONED, COPIED) for word in step.argv)
    secrets = {name: value for name, value in sources.secrets.items() if name != NPM_TOKEN}
    return replace(step, argv=argv, env=env, cache=Cache.SCRATCH, secrets=secrets)


NPM_LINE = re.compile(r"npm (?:ERR!|error)")


@dataclass(frozen=True, slots=True)
class Installers:
    """Implements ``ports.gates.Installer``."""

    uv: UvInstaller
    npm: NpmInstaller

    def plan(
        self,
        bundle: Bundle,
        base_id: str,
        tenant: TenantId,
        *,
        install_scripts: bool = False,
        dev: bool = False,
        packages: Collection[str] = (),
        added: Collection[str] = (),
    ) -> LayerPlan | None:
        python = self.uv.plan(bundle, base_id, tenant, added=added)
        node = self.npm.plan(bundle, base_id, tenant, install_scripts=install_scripts, dev=dev)
        above = _both(python, node) if python and node else python or node
        below = debian.plan((*packages, *debian.read_package_names(bundle)), base_id)
        if above is None or below is None:
            return above or below
        return replace(above, key=hashlib.sha256(f"{above.key} on {below.key}".encode()).hexdigest(), below=below)

    def from_sources(self, plan: LayerPlan, sources: PackageSources, tenant: TenantId) -> LayerPlan:
        parts = (plan.key, "sources", sources.fingerprint, tenant)
        steps = tuple(with_sources(step, sources) for step in plan.steps)
        private = npm.with_sources(replace(plan, steps=steps), sources)
        return replace(private, key=hashlib.sha256("\n".join(parts).encode()).hexdigest())

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        return self.from_source(plan, tenant) if NO_WHEELS.search("\n".join(output)) else None

    def from_source(self, plan: LayerPlan, tenant: TenantId) -> LayerPlan | None:
        if plan.runs_foreign_code or "requirements.txt" not in plan.inputs:
            return None
        wheels = self.uv.make(plan.key, plan.inputs, foreign=False).steps
        key = hashlib.sha256(f"{plan.key} from source for tenant {tenant}".encode()).hexdigest()
        source = self.uv.make(key, plan.inputs, foreign=True)
        # npm first: nothing that runs later sees files that a Python source build left in the layer.
        first = tuple(step for step in plan.steps if step not in wheels)
        return replace(source, below=plan.below, steps=first + source.steps)

    def explain(self, output: Sequence[str]) -> str:
        failed = self.npm if any(NPM_LINE.match(line) for line in output) else self.uv
        return debian.explain(output) or failed.explain(output)


def _both(python: LayerPlan, node: LayerPlan) -> LayerPlan:
    """Merge two plans. Steps without foreign code come first, so that none finds foreign files in the layer."""
    plans = sorted((python, node), key=lambda plan: (plan.runs_foreign_code, plan.may_run_code))
    return LayerPlan(
        key=hashlib.sha256(f"{python.key} and {node.key}".encode()).hexdigest(),
        inputs={**python.inputs, **node.inputs},
        steps=tuple(step for plan in plans for step in plan.steps),
        runs_foreign_code=any(plan.runs_foreign_code for plan in plans),
        may_run_code=any(plan.may_run_code for plan in plans),
    )
