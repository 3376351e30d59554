"""Python's and Node's packages in one layer."""

from __future__ import annotations

import json

from builderd.adapters.installers.installers import Installers
from builderd.adapters.installers.npm import NpmInstaller
from builderd.adapters.installers.uv import UvInstaller
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import Cache, LayerPlan

ALICE, BOB = TenantId("alice"), TenantId("bob")
PYTHON = BundleFile("requirements.txt", b"flask\n")
NODE = BundleFile("package.json", json.dumps({"dependencies": {"express": "4"}}).encode())
INSTALLERS = Installers(UvInstaller("1"), NpmInstaller())


def plan(*files: BundleFile, tenant: TenantId = ALICE, install_scripts: bool = False) -> LayerPlan:
    made = INSTALLERS.plan(make_bundle(files), "base", tenant, install_scripts=install_scripts)
    assert made is not None
    return made


def test_each_alone_keeps_its_own_plan() -> None:
    assert plan(PYTHON) == UvInstaller("1").plan(make_bundle([PYTHON]), "base", ALICE)
    assert plan(NODE) == NpmInstaller().plan(make_bundle([NODE]), "base", ALICE)
    assert INSTALLERS.plan(make_bundle([BundleFile("main.py", b"")]), "base", ALICE) is None


def test_both_make_one_layer_shared_by_all() -> None:
    both = plan(PYTHON, NODE)
    assert [step.title for step in both.steps] == ["Installing wheels", "Installing with npm"]
    assert set(both.inputs) == {"requirements.txt", "npm/package.json"}
    assert both.key == plan(PYTHON, NODE, tenant=BOB).key
    assert both.key not in (plan(PYTHON).key, plan(NODE).key)


def test_install_scripts_make_it_the_tenants_own_and_run_last() -> None:
    alice, bob = (plan(PYTHON, NODE, tenant=tenant, install_scripts=True) for tenant in (ALICE, BOB))
    assert alice.runs_foreign_code
    assert alice.key != bob.key
    assert "--ignore-scripts=false" in alice.steps[-1].argv[-1]
    assert "--ignore-scripts=true" in plan(NODE).steps[0].argv[-1]


def test_npm_layer_waits_for_the_review_and_is_shared() -> None:
    """A package of the registry may ask for one from git, which npm prepares with scripts of its own."""
    for files in ((NODE,), (PYTHON, NODE)):
        made = plan(*files)
        assert made.needs_review_first
        assert not made.runs_foreign_code
        assert made.key == plan(*files, tenant=BOB).key
    assert not plan(PYTHON).needs_review_first


def test_npm_never_writes_the_shared_cache() -> None:
    plans = [plan(NODE), plan(PYTHON, NODE), plan(NODE, install_scripts=True)]
    assert all(step.cache is Cache.SCRATCH for one in plans for step in one.steps if "npm" in step.title)


def test_from_source_keeps_nodes_packages_and_builds_last() -> None:
    both = plan(PYTHON, NODE)
    source = INSTALLERS.fallback(both, ["Wheels are required for `x`"], ALICE)
    assert source is not None
    assert [step.title for step in source.steps] == ["Installing with npm", "Building and installing"]
    assert all(step.cache is Cache.SCRATCH for step in source.steps)
    assert source.runs_foreign_code
    assert INSTALLERS.from_source(source, ALICE) is None
    assert INSTALLERS.from_source(plan(NODE), ALICE) is None


def test_each_speaks_for_itself() -> None:
    npm = [
        "Prepared 3 packages",
        "npm ERR! code E404",
        "npm ERR! 404 Not Found - GET https://registry/nope - Not found",
        "npm ERR! A complete log of this run can be found in: /tmp/.npm/_logs/x.log",
    ]
    assert INSTALLERS.explain(npm) == "404 Not Found - GET https://registry/nope - Not found"
    assert INSTALLERS.explain(["  x No solution found"]) == "  x No solution found"
