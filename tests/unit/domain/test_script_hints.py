"""Hints for a package tool that found no ``package.json`` or no script."""

from __future__ import annotations

import json

import pytest

from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.script_hints import script_hint
from builderd.domain.start_hints import build_hint

NO_FILE = "npm ERR! enoent Could not read: Error: ENOENT: no such file or directory, open '/app/package.json'"
NO_SCRIPT = 'npm ERR! Missing script: "start"'


def bundle_of(**files: str) -> Bundle:
    return make_bundle(BundleFile(path.replace("__", "/"), text.encode()) for path, text in files.items())


def scripts(*names: str) -> Bundle:
    return bundle_of(**{"package.json": json.dumps({"scripts": dict.fromkeys(names, "x")})})


@pytest.mark.parametrize(
    ("paths", "root", "says"),
    [
        (["a.js"], "", "no package.json at the top of the files: send it"),
        (["web/package.json"], "", '"root": "web"'),
        (["deep/a/package.json", "web/package.json"], "", '"root": "web"'),
        (["web/package.json"], "apps", '"root": "apps/web"'),
        (["node_modules/a/package.json", ".cache/package.json"], "", "send it"),
        (["a\x1b[31m/package.json", "$(x)/package.json"], "", "send it"),
    ],
)
def test_folder_with_a_package_is_named(paths: list[str], root: str, says: str) -> None:
    assert says in script_hint(NO_FILE, bundle_of(**dict.fromkeys(paths, "{}")), root)


def test_folder_in_which_the_tool_ran_is_named() -> None:
    line = NO_FILE.replace("/app/", "/app/web/")
    assert "no web/package.json" in script_hint(line, bundle_of(a=""))
    assert "no package.json at the top" in script_hint(line, bundle_of(a=""), "web")
    assert "no website/package.json" in script_hint(line.replace("/web/", "/website/"), bundle_of(a=""), "web")
    assert "no pages/package.json" in script_hint(line.replace("/web/", "/web/pages/"), bundle_of(a=""), "web")


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        (scripts("lint", "dev", "build"), "It has dev, lint, build: use npm run dev"),
        (scripts(), "package.json has no scripts"),
        (bundle_of(**{"package.json": "{}"}), "package.json has no scripts"),
        (bundle_of(**{"package.json": "["}), "or use the name of one that is there"),
        (bundle_of(), "or use the name of one that is there"),
        (scripts("a\x1b[31m", "x; reboot"), "package.json has no scripts"),
        (scripts(*(f"s{number}" for number in range(50))), "s7, …:"),
    ],
)
def test_scripts_that_exist_are_named(bundle: Bundle, says: str) -> None:
    assert says in script_hint(NO_SCRIPT, bundle)


def test_build_hint_names_missing_files_and_no_full_disk() -> None:
    assert "no package.json" in build_hint(["npm ERR! code ENOENT", NO_FILE, "npm ERR! a log"], bundle_of(a=""))
    assert build_hint(["OSError: [Errno 122] Disk quota exceeded", "Address already in use"], bundle_of()) == ""


def test_missing_file_is_that_of_the_app_where_npm_looked_for_it_at_the_root() -> None:
    """A sandbox on Incus has ``/node_modules``, by which npm takes the root for the app's folder."""
    hint = script_hint(NO_FILE.replace("/app/package.json", "//package.json"), bundle_of(**{"web/package.json": "{}"}))
    assert "no package.json at the top" in hint
    assert '"root": "web"' in hint
    assert script_hint(NO_FILE.replace("/app/", "/etc/"), None) == ""
