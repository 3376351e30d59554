"""Wheels are everybody's and run nothing; whatever runs code is the tenant's own and sees no shared cache."""

from __future__ import annotations

import shlex

import pytest

from builderd.adapters.installers.uv import CONSTRAINTS, PROGRAM, UvInstaller, program
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import CACHE, INPUT, LAYER, Cache, LayerPlan
from builderd.ports.installer import Installer

ONE, OTHER = TenantId("one"), TenantId("other")
NO_WHEELS = (
    "error: No solution found when resolving dependencies",
    "  cause: Because all versions of docopt have no usable wheels and you require docopt, we can conclude that your "
    "requirements are unsatisfiable.",
    "",
    "hint: Wheels are required for `docopt` because building from source is disabled for all packages (i.e., with "
    "`--no-build`)",
)
NOT_FOUND = (
    "Using Python 3.13.5 environment at: /build/store/layer/venv",
    "error: No solution found when resolving dependencies",
    "  cause: Because nosuchpackage was not found in the package registry and you require nosuchpackage, we can "
    "conclude that your requirements are unsatisfiable.",
)


def plan(text: str, *, tenant: TenantId = ONE, base: str = "base", index: str | None = None) -> LayerPlan:
    files = [BundleFile("requirements.txt", text.encode()), BundleFile("main.py", b"secret")]
    made = UvInstaller(index).plan(make_bundle(files), base, tenant)
    assert made
    return made


def fallback(of: LayerPlan, tenant: TenantId = ONE) -> LayerPlan:
    made = UvInstaller().fallback(of, NO_WHEELS, tenant)
    assert made
    return made


def test_it_is_an_installer() -> None:
    installer: Installer = UvInstaller()
    assert installer.plan(make_bundle([BundleFile("main.py", b"")]), "base", ONE) is None


@pytest.mark.parametrize("text", ["", "\n", "# flask\n", "-r requirements.txt"])
def test_nothing_asked_for_is_no_layer(text: str) -> None:
    bundle = make_bundle([BundleFile("requirements.txt", text.encode())])
    assert UvInstaller().plan(bundle, "base", ONE) is None


def test_the_program_is_on_this_host_and_has_its_place_in_the_sandbox() -> None:
    assert program().is_file()
    assert PROGRAM == "/usr/local/bin/uv"


def test_wheels_are_unpacked_into_the_shared_cache_by_a_step_that_builds_nothing() -> None:
    made = plan("Flask\nrequests>2")
    assert made.inputs == {"requirements.txt": b"flask\nrequests>2\n", CONSTRAINTS: b""}
    assert not made.runs_foreign_code
    (step,) = made.steps
    assert step.cache is Cache.SHARED
    assert step.network
    assert "--no-build" in step.argv
    assert step.env["UV_CACHE_DIR"] == CACHE
    assert step.env["UV_LINK_MODE"] == "clone", "a hard link would let a layer change the cache"


def test_the_command_is_a_shell_script_without_a_word_of_the_users() -> None:
    argv = plan("flask\n--pre\n--require-hashes").steps[0].argv
    assert argv[:2] == ("/bin/sh", "-ec")
    assert shlex.split(argv[2])
    assert argv[4:] == (
        "--prerelease=allow",
        "--require-hashes",
        "--constraints",
        f"{INPUT}/{CONSTRAINTS}",
        "--no-build",
    )
    assert f"{LAYER}/venv" in argv[2]
    assert "--compile" not in argv[2]


def test_the_same_request_is_the_same_layer_for_everybody_however_it_is_written() -> None:
    keys = {plan(text, tenant=tenant).key for text in ("Flask\nrich", "rich # x\nflask\n") for tenant in (ONE, OTHER)}
    assert len(keys) == 1
    assert len(keys.pop()) == 64


def test_whatever_decides_the_content_decides_the_key() -> None:
    plans = [
        plan("flask"),
        plan("flask\n--pre"),
        plan("flask==3"),
        plan("flask", base="other"),
        plan("flask", index="https://index.example/simple"),
        plan("flask\n--no-binary flask"),
        plan("flask\n--no-binary flask", tenant=OTHER),
        fallback(plan("flask")),
        fallback(plan("flask"), OTHER),
    ]
    assert len({made.key for made in plans}) == len(plans)


@pytest.mark.parametrize(
    "line",
    [
        "evil @ https://files.example/e-1-py3-none-any.whl",
        "--index-url https://index.example/",
        "--no-binary :all:",
    ],
)
def test_what_comes_from_elsewhere_runs_foreign_code_on_a_throw_away_cache(line: str) -> None:
    made = plan(line)
    assert made.runs_foreign_code
    assert made.steps[0].cache is Cache.SCRATCH
    assert "--no-build" not in made.steps[0].argv
    assert made.inputs == {"requirements.txt": line.encode()}


def test_a_path_brings_the_builders_files_along_and_nothing_else_does() -> None:
    assert set(plan(".").inputs) == {"requirements.txt", "main.py"}


def test_a_fallback_builds_from_source_for_its_tenant_alone() -> None:
    first = plan("docopt\n--pre")
    second = fallback(first)
    assert second.runs_foreign_code
    assert second.inputs == first.inputs
    assert second.steps[0].cache is Cache.SCRATCH
    assert set(first.steps[0].argv) - set(second.steps[0].argv) == {"--no-build"}


def test_there_is_no_fallback_where_a_build_would_not_help() -> None:
    first = plan("nosuchpackage")
    assert UvInstaller().fallback(first, NOT_FOUND, ONE) is None
    assert UvInstaller().fallback(first, (), ONE) is None
    assert UvInstaller().fallback(fallback(first), NO_WHEELS, ONE) is None


def test_compiling_sees_neither_network_nor_cache_and_starts_no_code_of_the_layer() -> None:
    step = plan("flask").polish
    assert step
    assert not step.network
    assert step.cache is Cache.NONE
    assert "/usr/bin/python3 -I -S -m compileall" in step.argv[2]


def test_an_index_is_handed_to_the_installer() -> None:
    assert (
        plan("flask", index="https://index.example/simple").steps[0].env["UV_DEFAULT_INDEX"].startswith("https://index")
    )
    assert "UV_DEFAULT_INDEX" not in plan("flask").steps[0].env


def test_a_failure_is_told_in_the_resolvers_words() -> None:
    told = UvInstaller().explain(NOT_FOUND)
    assert told.startswith(
        "No solution found when resolving dependencies\n  cause: Because nosuchpackage was not found"
    )
    assert "Using Python" not in told


def test_our_own_options_are_not_blamed() -> None:
    told = UvInstaller().explain(NO_WHEELS)
    assert "no usable wheels" in told
    assert "--no-build" not in told


def test_a_long_failure_keeps_its_beginning_and_its_end() -> None:
    told = (
        UvInstaller().explain(["error: Failed to build", *(f"line {n}" for n in range(1000)), "the cause"]).splitlines()
    )
    assert len(told) <= 41
    assert told[0] == "Failed to build"
    assert told[-1] == "the cause"


def test_colours_are_taken_out_and_silence_is_said() -> None:
    assert UvInstaller().explain(["\x1b[31merror: \x1b[0mbad"]) == "bad"
    assert UvInstaller().explain([]) == "The installer failed without a word."
