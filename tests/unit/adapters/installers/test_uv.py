"""Plans: wheels first without any code, source builds apart for their tenant, and keys that tell them apart."""

from __future__ import annotations

from builderd.adapters.installers.installers import Installers, UvInstaller
from builderd.adapters.installers.npm import NpmInstaller
from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import Cache, LayerPlan

INSTALLER = UvInstaller(version="1.0")
INSTALLERS = Installers(INSTALLER, NpmInstaller())
ALICE, BOB = TenantId("alice"), TenantId("bob")

NO_WHEELS = (
    "error: No solution found when resolving dependencies",
    "  cause: Because all versions of docopt have no usable wheels and you require docopt, we can conclude that …",
)


def bundle(requirements: str) -> Bundle:
    return make_bundle([BundleFile("requirements.txt", requirements.encode())])


def plan(requirements: str, installer: UvInstaller = INSTALLER, base: str = "b", tenant: TenantId = ALICE) -> LayerPlan:
    made = installer.plan(bundle(requirements), base, tenant)
    assert made is not None
    return made


def test_wheels_are_unpacked_without_running_code_and_with_the_shared_cache() -> None:
    (step,) = plan("flask").steps
    assert step.cache is Cache.SHARED
    assert "--no-build" in step.argv[-1]
    assert "--no-compile-bytecode" in step.argv[-1]
    assert not plan("flask").runs_foreign_code


def test_the_order_of_lines_and_comments_do_not_change_the_key() -> None:
    assert plan("flask\nrequests").key == plan("requests # http\n\nflask\n").key


def test_everything_that_decides_the_content_changes_the_key() -> None:
    keys = {
        plan("flask").key,
        plan("flask==3.0").key,
        plan("flask", base="c").key,
        plan("flask", UvInstaller(version="1.1")).key,
        plan("flask", UvInstaller(version="1.0", index="https://index.example/simple")).key,
    }
    assert len(keys) == 5


def test_tenants_share_layers_of_wheels_but_never_one_that_ran_code() -> None:
    assert plan("flask", tenant=ALICE).key == plan("flask", tenant=BOB).key
    address = "x @ https://example.org/x.tar.gz"
    assert plan(address, tenant=ALICE).key != plan(address, tenant=BOB).key
    assert plan(address).runs_foreign_code


def test_a_build_from_source_does_not_write_the_shared_cache() -> None:
    fallback = INSTALLERS.fallback(plan("docopt"), NO_WHEELS, ALICE)
    assert fallback is not None
    assert fallback.runs_foreign_code
    assert {step.cache for step in fallback.steps} == {Cache.SCRATCH}
    assert fallback.key != plan("docopt").key
    assert INSTALLERS.from_source(plan("docopt"), ALICE) == fallback


def test_fallback_happens_once_and_only_for_missing_wheels() -> None:
    fallback = INSTALLERS.fallback(plan("docopt"), NO_WHEELS, ALICE)
    assert fallback is not None
    assert INSTALLERS.fallback(fallback, NO_WHEELS, ALICE) is None
    assert INSTALLERS.from_source(fallback, ALICE) is None
    assert INSTALLERS.fallback(plan("x"), ("error: No solution found", "  cause: not found"), ALICE) is None


def test_byte_compiling_neither_starts_the_layers_interpreter_nor_reaches_anything() -> None:
    compile_step = plan("flask").compile_step
    assert compile_step is not None
    assert "/venv/bin" not in " ".join(compile_step.argv)
    assert (compile_step.network, compile_step.cache, compile_step.is_background) == (False, Cache.NONE, True)


def test_resolver_message_is_shown_without_noise() -> None:
    output = ("Using Python 3.13.5 environment at: /build/x", "\x1b[1merror\x1b[0m: No solution found", "  cause: why")
    assert INSTALLER.explain(output) == "error: No solution found\n  cause: why"
    assert INSTALLER.explain(()) == "uv failed without output."


def test_the_index_is_handed_over_by_environment() -> None:
    (step,) = plan("flask", UvInstaller("1.0", index="https://index.example/simple")).steps
    assert step.env["UV_DEFAULT_INDEX"] == "https://index.example/simple"
