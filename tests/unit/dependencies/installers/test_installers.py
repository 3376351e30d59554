"""Plans of Python's and Node's packages, in one layer, and from private indexes."""

from __future__ import annotations

import json

import pytest

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.core.errors import InstallFailed
from builderd.core.ids import TenantId
from builderd.credentials.model import read_sources
from builderd.dependencies.installers.installers import Installers, UvInstaller
from builderd.dependencies.installers.npm import NpmInstaller
from builderd.dependencies.model import Cache, LayerPlan

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


def test_debian_packages_lie_below_the_others_and_are_shared_by_name() -> None:
    apt = BundleFile("apt.txt", b"\n# media\nffmpeg  libgl1 # both\n")
    alone = plan(apt)
    assert alone == INSTALLERS.plan(make_bundle([]), "base", BOB, packages=("libgl1", "ffmpeg"))
    assert (alone.below, alone.needs_review_first) == (None, True)
    assert alone.steps[0].argv[-2:] == ("ffmpeg", "libgl1")
    both = plan(apt, PYTHON)
    assert (both.below, both.steps, both.needs_review_first) == (alone, plan(PYTHON).steps, True)
    assert len({both.key, alone.key, plan(PYTHON).key}) == 3
    source = INSTALLERS.from_source(both, ALICE)
    assert source is not None
    assert source.below == alone


@pytest.mark.parametrize(
    "line", ["ffmpeg=7", "-y", "ffmpeg-", "ffmpeg/sid", "https://a.example/b.deb", ":repo:x", "FFmpeg", "a"]
)
def test_names_that_debian_cannot_have_are_refused_with_their_line(line: str) -> None:
    with pytest.raises(InstallFailed, match=r"Aptfile, line 2: .* is no name of a Debian package"):
        plan(BundleFile("Aptfile", f"g++ libstdc++6 lib.x-1\n{line}\n".encode()))
    with pytest.raises(InstallFailed, match="101 Debian packages are named: at most 100"):
        plan(BundleFile("apt.txt", "\n".join(f"lib{n}" for n in range(101)).encode()))


def test_errors_of_apt_are_shown_alone() -> None:
    output = ["Setting up a ...", "E: Unable to locate package b", "E: Debian has no package b", "done"]
    shown = INSTALLERS.explain(output).splitlines()
    assert shown[0] == output[2]
    assert shown[1].startswith("Correct the names")
    assert INSTALLERS.explain(["x", "dpkg: error processing a (--configure):"]).startswith("dpkg: error")


SETUP = BundleFile("setup.py", b"setup(install_requires=['rich'])")
LIST, SCRIPT = (
    BundleFile("requirements/base.txt", b"a"),
    BundleFile("a.py", b"# /// script\n# dependencies = ['rich']\n# ///\n"),
)


@pytest.mark.parametrize(
    ("files", "added", "lines"),
    [
        ([BundleFile("requirements.txt", b"flask\n-e .\n"), SETUP], (), b"flask\nrich\n"),
        ([LIST, BundleFile("requirements/prod.txt", b"-r base.txt\nb")], (), b"a\nb\n"),
        ([SCRIPT, BundleFile("b.py", b"")], (), b"rich\n"),
        ([PYTHON], ["uvicorn"], b"flask\nuvicorn\n"),
        ([BundleFile("a.ipynb", b"")], ["jupyterlab"], b"jupyterlab\n"),
    ],
)
def test_python_packages_are_read_from_all_usual_places(
    files: list[BundleFile], added: list[str], lines: bytes
) -> None:
    made = INSTALLERS.plan(make_bundle(files), "base", ALICE, added=added)
    assert made is not None
    assert made.inputs["requirements.txt"] == lines


@pytest.mark.parametrize(
    "head", ["a" + ".a" * 90_000 + " = 1", "dependencies = " + "[" * 9_000, "dependencies = 'x'", "x" * 1_000_000, "]"]
)
def test_hostile_head_of_a_script_names_nothing(head: str) -> None:
    script = BundleFile("a.py", f"# /// script\n# {head}\n# ///\n".encode())
    assert INSTALLERS.plan(make_bundle([script]), "base", ALICE) is None


def test_both_make_one_layer_shared_by_all() -> None:
    both = plan(PYTHON, NODE)
    assert [step.title for step in both.steps] == ["Installing wheels", "Byte-compiling", "Installing with npm"]
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
    assert [step.title for step in source.steps] == ["Installing with npm", "Building and installing", "Byte-compiling"]
    assert [step.cache for step in source.steps] == [Cache.SCRATCH, Cache.SCRATCH, Cache.NONE]
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


def test_addresses_are_apart_from_users_and_passwords() -> None:
    values = {
        "PIP_INDEX_URL": "https://robot:p%40ss@pypi.example:8443/simple/",
        "PIP_EXTRA_INDEX_URL": "https://token@extra.example/simple https://[2001:db8::1]:81/x",
        "NPM_CONFIG_REGISTRY": "https://npm.example/api/",
        "NPM_TOKEN": "npm_secret",
        "OTHER": "kept out",
    }
    sources = read_sources(values, ["index 1"])
    assert sources is not None
    assert sources.index == "https://pypi.example:8443/simple/"
    assert dict(sources.extras) == {
        "private-extra-1": "https://extra.example/simple",
        "private-extra-2": "https://[2001:db8::1]:81/x",
    }
    assert (sources.registry, sources.has_npm_token) == ("https://npm.example/api/", True)
    assert dict(sources.secrets) == {
        "UV_INDEX_PRIVATE_USERNAME": "robot",
        "UV_INDEX_PRIVATE_PASSWORD": "p@ss",
        "UV_INDEX_PRIVATE_EXTRA_1_USERNAME": "token",
        "NPM_TOKEN": "npm_secret",
    }
    assert not any(secret in repr(sources) for secret in ("p@ss", "npm_secret", "robot"))


def test_fingerprint_follows_the_credentials_and_not_their_secrets() -> None:
    one, same, other = (
        read_sources({"PIP_INDEX_URL": f"https://a:{password}@x/simple"}, [version])
        for password, version in (("1", "v1"), ("2", "v1"), ("1", "v2"))
    )
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_secrets_are_in_the_environment_of_the_installer_alone() -> None:
    installers = Installers(UvInstaller("test"), NpmInstaller())
    files = {"requirements.txt": b"mine\n", "package.json": b'{"dependencies": {"mine": "1"}}'}
    plan = installers.plan(make_bundle(BundleFile(path, text) for path, text in files.items()), "base", ALICE)
    sources = read_sources({"PIP_INDEX_URL": "https://robot:hidden-1@x/simple", "NPM_TOKEN": "hidden-2"}, ["a"])
    assert plan is not None
    assert sources is not None
    made = [installers.from_sources(plan, sources, tenant) for tenant in (ALICE, BOB)]
    assert len({plan.key, *(one.key for one in made)}) == 3
    assert "hidden" not in repr(made)
    assert [step.cache for step in made[0].steps] == [Cache.SCRATCH, Cache.NONE, Cache.SCRATCH]
    assert [dict(step.secrets) for step in made[0].steps] == [
        {"UV_INDEX_PRIVATE_USERNAME": "robot", "UV_INDEX_PRIVATE_PASSWORD": "hidden-1"},
        {},
        {"NPM_TOKEN": "hidden-2"},
    ]
    assert made[0].inputs["npmrc"] == b"//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n"


def test_other_credentials_name_no_source() -> None:
    assert read_sources({"API_KEY": "https://a:b@c"}, ["x"]) is None


@pytest.mark.parametrize("url", ["", "ftp://x/simple", "pypi.example", "https://", "https://x:99999/", "https://x/a b"])
def test_value_that_is_no_address_names_the_variable_alone(url: str) -> None:
    with pytest.raises(ValueError, match="PIP_INDEX_URL") as refused:
        read_sources({"PIP_INDEX_URL": url.replace("://", "://user:hidden@")}, ["x"])
    assert "hidden" not in str(refused.value)


UV = UvInstaller(version="1.0")
WITH_UV = Installers(UV, NpmInstaller())

NO_WHEELS = (
    "error: No solution found when resolving dependencies",
    "  cause: Because all versions of docopt have no usable wheels and you require docopt, we can conclude that …",
)


def with_requirements(requirements: str) -> Bundle:
    return make_bundle([BundleFile("requirements.txt", requirements.encode())])


def uv_plan(requirements: str, installer: UvInstaller = UV, base: str = "b", tenant: TenantId = ALICE) -> LayerPlan:
    made = installer.plan(with_requirements(requirements), base, tenant)
    assert made is not None
    return made


def test_wheels_are_unpacked_without_running_code_and_with_the_shared_cache() -> None:
    step, _ = uv_plan("flask").steps
    assert step.cache is Cache.SHARED
    assert "--no-build" in step.argv[-1]
    assert "--no-compile-bytecode" in step.argv[-1]
    assert not uv_plan("flask").runs_foreign_code


def test_the_order_of_lines_and_comments_do_not_change_the_key() -> None:
    assert uv_plan("flask\nrequests").key == uv_plan("requests # http\n\nflask\n").key


def test_everything_that_decides_the_content_changes_the_key() -> None:
    keys = {
        uv_plan("flask").key,
        uv_plan("flask==3.0").key,
        uv_plan("flask", base="c").key,
        uv_plan("flask", UvInstaller(version="1.1")).key,
        uv_plan("flask", UvInstaller(version="1.0", index="https://index.example/simple")).key,
    }
    assert len(keys) == 5


def test_tenants_share_layers_of_wheels_but_never_one_that_ran_code() -> None:
    assert uv_plan("flask", tenant=ALICE).key == uv_plan("flask", tenant=BOB).key
    address = "x @ https://example.org/x.tar.gz"
    assert uv_plan(address, tenant=ALICE).key != uv_plan(address, tenant=BOB).key
    assert uv_plan(address).runs_foreign_code


def test_a_build_from_source_does_not_write_the_shared_cache() -> None:
    fallback = WITH_UV.fallback(uv_plan("docopt"), NO_WHEELS, ALICE)
    assert fallback is not None
    assert fallback.runs_foreign_code
    assert [step.cache for step in fallback.steps] == [Cache.SCRATCH, Cache.NONE]
    assert fallback.key != uv_plan("docopt").key
    assert WITH_UV.from_source(uv_plan("docopt"), ALICE) == fallback


def test_fallback_happens_once_and_only_for_missing_wheels() -> None:
    fallback = WITH_UV.fallback(uv_plan("docopt"), NO_WHEELS, ALICE)
    assert fallback is not None
    assert WITH_UV.fallback(fallback, NO_WHEELS, ALICE) is None
    assert WITH_UV.from_source(fallback, ALICE) is None
    assert WITH_UV.fallback(uv_plan("x"), ("error: No solution found", "  cause: not found"), ALICE) is None


def test_byte_compiling_neither_starts_the_layers_interpreter_nor_reaches_anything() -> None:
    _, compile_step = uv_plan("flask").steps
    assert "/venv/bin" not in " ".join(compile_step.argv)
    assert (compile_step.network, compile_step.cache) == (False, Cache.NONE)


def test_resolver_message_is_shown_without_noise() -> None:
    output = ("Using Python 3.13.5 environment at: /build/x", "\x1b[1merror\x1b[0m: No solution found", "  cause: why")
    assert UV.explain(output) == "error: No solution found\n  cause: why"
    assert UV.explain(()) == "uv failed without output."


def test_the_index_is_handed_over_by_environment() -> None:
    step, _ = uv_plan("flask", UvInstaller("1.0", index="https://index.example/simple")).steps
    assert step.env["UV_DEFAULT_INDEX"] == "https://index.example/simple"
