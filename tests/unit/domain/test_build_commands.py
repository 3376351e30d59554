"""The build command of a project is found in its package.json."""

from __future__ import annotations

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.entrypoints import NPM_BUILD, find_build


@pytest.mark.parametrize(
    ("package", "entrypoint", "found"),
    [
        ('{"scripts": {"build": "vite build"}}', "npm start", NPM_BUILD),
        ('{"scripts": {"build": ""}}', "npm start", ""),
        ('{"scripts": {"build": 1}}', "npm start", ""),
        ('{"scripts": []}', "npm start", ""),
        ("no JSON", "npm start", ""),
        ("[]", "npm start", ""),
        ('{"scripts": {"build": "vite build"}}', "npm run build && npm start", ""),
        ('{"scripts": {"build": "next build"}}', "npx next build; npx next start", ""),
    ],
)
def test_script_build_is_run_unless_the_entrypoint_builds(package: str, entrypoint: str, found: str) -> None:
    assert find_build(make_bundle([BundleFile("package.json", package.encode())]), entrypoint) == found


def test_project_without_package_json_has_no_build() -> None:
    assert find_build(make_bundle([BundleFile("main.py", b"")]), "python3 main.py") == ""
