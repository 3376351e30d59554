"""Python dependencies by uv (https://docs.astral.sh/uv/), asked for by a ``requirements.txt``. It runs nothing.

Wheels come first: unpacking them runs no code of theirs, so that step may fill the cache that all tenants share, and
its layer is everybody's. Whatever has to be built, or comes from elsewhere than the index, runs a stranger's code: it
sees a throw-away copy of the cache, and its layer is the tenant's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from uv import find_uv_bin

from builderd.adapters.installers.requirements import FILE_NAME, Request, read_request
from builderd.domain.bundles import Bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import CACHE, INPUT, LAYER, BuildStep, Cache, LayerPlan

#: Where a build sandbox finds the program.
PROGRAM = "/usr/local/bin/uv"
PYTHON = "/usr/bin/python3"
VENV = f"{LAYER}/venv"
CONSTRAINTS = "constraints.txt"
CONSTRAIN = ("--constraints", f"{INPUT}/{CONSTRAINTS}")

#: uv's words when only a build from source could help.
_NO_WHEELS = re.compile(
    r"no usable wheels|building from source is disabled|Building source distributions .* is disabled"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_OUR_OWN_DOING = re.compile(r"--no-build|^Using Python .* environment at")
MAX_EXPLANATION_LINES = 40

INSTALL = f"""\
uv venv --quiet --relocatable --no-project --python {PYTHON} {VENV}
exec uv pip install --python {VENV}/bin/python --requirements {INPUT}/{FILE_NAME} "$@"
"""
_SHELL = ("/bin/sh", "-ec", INSTALL, "install")
#: Run by the base's interpreter without looking at the layer's own start-up files, so that nothing in it is executed.
#: 1 says that some files are no Python of this version, as those for other versions in many packages.
COMPILE = BuildStep(
    title="Compiling",
    argv=(
        *("/bin/sh", "-ec"),
        f"{PYTHON} -I -S -m compileall -qq -j 0 -s {LAYER} -p / {VENV}/lib || [ $? -eq 1 ]",
    ),
    network=False,
    cache=Cache.NONE,
)

_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108
    "NO_COLOR": "1",
    "UV_CACHE_DIR": CACHE,
    # A clone shares its blocks with the cache and nothing else: what writes to one never changes the other.
    "UV_LINK_MODE": "clone",
    "UV_NO_CONFIG": "1",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
}


def program() -> Path:
    """The uv on this host, to be bound into build sandboxes at ``PROGRAM``."""
    return Path(find_uv_bin())


class UvInstaller:
    """``index`` is the URL of a package index in place of PyPI (PEP 503)."""

    def __init__(self, index: str | None = None) -> None:
        self._environment = _ENVIRONMENT | ({"UV_DEFAULT_INDEX": index} if index else {})
        self._identity = (f"uv {version('uv')}", json.dumps(self._environment, sort_keys=True))

    def plan(self, bundle: Bundle, base_id: str, tenant: TenantId) -> LayerPlan | None:
        if bundle.file(FILE_NAME) is None:
            return None
        request = read_request(bundle)
        if request.empty:
            return None
        if request.foreign:
            files = {file.path: file.content for file in bundle.files} if request.uses_files else request.files
            return self._plan(files, _options(request), base_id, tenant)
        return self._plan(_written_anew(request), [*_options(request), *CONSTRAIN, "--no-build"], base_id)

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        if plan.runs_foreign_code or not any(_NO_WHEELS.search(line) for line in output):
            return None
        options = [option for option in plan.steps[0].argv[len(_SHELL) :] if option != "--no-build"]
        return self._plan(plan.inputs, options, plan.key, tenant)

    def _plan(
        self, inputs: Mapping[str, bytes], options: Sequence[str], origin: str, tenant: TenantId | None = None
    ) -> LayerPlan:
        """A tenant makes it that tenant's own, and lets it run what it installs."""
        step = BuildStep(
            title="Building dependencies" if tenant else "Installing dependencies",
            argv=(*_SHELL, *options),
            network=True,
            cache=Cache.SCRATCH if tenant else Cache.SHARED,
            env=self._environment,
        )
        key = _key(inputs, *self._identity, *step.argv, origin, tenant or "everybody")
        return LayerPlan(key, inputs, (step,), runs_foreign_code=tenant is not None, polish=COMPILE)

    def explain(self, output: Sequence[str]) -> str:
        lines = [_ESCAPES.sub("", line).rstrip() for line in output]
        first = next((n for n, line in enumerate(lines) if line.startswith("error: ")), 0)
        told = [line for line in lines[first:] if line and not _OUR_OWN_DOING.search(line)]
        if len(told) > MAX_EXPLANATION_LINES:
            told = [*told[:5], "…", *told[5 - MAX_EXPLANATION_LINES :]]
        return "\n".join(told).removeprefix("error: ") or "The installer failed without a word."


def _options(request: Request) -> list[str]:
    options = ["--prerelease=allow"] if request.prereleases else []
    return [*options, "--require-hashes"] if request.require_hashes else options


def _written_anew(request: Request) -> Mapping[str, bytes]:
    return {FILE_NAME: _text(request.requirements), CONSTRAINTS: _text(request.constraints)}


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in sorted(lines)).encode()


def _key(inputs: Mapping[str, bytes], *parts: str) -> str:
    digest = hashlib.sha256(json.dumps(parts).encode())
    for path, content in sorted(inputs.items()):
        digest.update(json.dumps([path, hashlib.sha256(content).hexdigest()]).encode())
    return digest.hexdigest()
