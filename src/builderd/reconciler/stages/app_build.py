"""The build of a version's files: its plan, and the message of one that failed. Pure."""

from __future__ import annotations

import hashlib
import json

from builderd.domain.bundles import Bundle, folder_of
from builderd.domain.failures import SHOWN_CHARACTERS, SHOWN_LINES
from builderd.domain.hints import build_hint, node_hint
from builderd.domain.layers import APP, NODE_MODULES, AppBuild, BuildOutcome, BuildStep, Cache, LayerPlan
from builderd.reconciler.core.observe import WorkItem

#: Part of every key: increment it when a build of the same files makes something else.
RECIPE = 1
#: The home of a build is thrown away, so that caches of tools do not become files of the version.
HOME = "/tmp"  # noqa: S108 -- the sandbox's own
ENVIRONMENT = {
    "PATH": f"/venv/bin:{APP}/{NODE_MODULES}/.bin:/{NODE_MODULES}/.bin:/usr/local/bin:/usr/bin:/bin",
    "VIRTUAL_ENV": "/venv",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "npm_config_update_notifier": "false",
    "npm_config_fund": "false",
    "npm_config_audit": "false",
}


def plan_build(item: WorkItem, bundle: Bundle, base_id: str, timeout_seconds: float) -> LayerPlan:
    """Return the plan of the version's build. Its result is the tenant's alone: the command is the tenant's code."""
    settings, tenant = item.version.settings, item.builder.tenant_id
    layer = item.version.layer_key or None
    decisive = [RECIPE, base_id, tenant, bundle.hash, layer, settings.build, sorted(settings.variables.items())]
    if settings.root:
        decisive.append(settings.root)
    step = BuildStep(
        title=f"Building: {settings.build}",
        argv=("/bin/sh", "-ec", settings.build),
        network=True,
        cache=Cache.NONE,
        env={**ENVIRONMENT, "HOME": HOME, **settings.variables},
        timeout_seconds=max(1, round(timeout_seconds)),
    )
    return LayerPlan(
        key=hashlib.sha256(f"app build\n{json.dumps(decisive)}".encode()).hexdigest(),
        inputs={},
        steps=(step,),
        runs_foreign_code=True,
        tenant=tenant,
        app=AppBuild(bundle, layer, settings.root),
    )


def explain_build(item: WorkItem, bundle: Bundle, outcome: BuildOutcome, timeout_seconds: float) -> str:
    """Return the message of a failed build: the reason, its last lines, and the next command."""
    command = item.version.settings.build
    if outcome.out_of_memory:
        why = f"The build ({command}) was killed: out of memory. Have it use less, or build before the deployment."
    elif outcome.timed_out:
        why = (
            f"The build ({command}) did not end within {timeout_seconds:g} s (limits.build_timeout), and was stopped. "
            "Does it start a server? That is the entrypoint's work."
        )
    else:
        hint = node_hint(outcome.output) or _missing(item, bundle, outcome)
        why = f"The build ({command}) failed with exit code {outcome.exit_code}.{hint and f' {hint}'}"
    lines = "\n".join(line[:SHOWN_CHARACTERS] for line in outcome.output[-SHOWN_LINES:])
    more = f'All of its lines: builderd logs {item.builder.name} --stream build. To deploy without it: build = "".'
    return f"{why} Its last lines:\n{lines}\n{more}" if lines else f"{why} It wrote nothing. {more}"


def _missing(item: WorkItem, bundle: Bundle, outcome: BuildOutcome) -> str:
    root = item.version.settings.root
    return build_hint(outcome.output[-SHOWN_LINES:], folder_of(bundle, root), root)
