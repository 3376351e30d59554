"""Dependencies of Poetry, Pipenv and pylock.toml are rewritten as requirements."""

from __future__ import annotations

import json

import pytest

from builderd.adapters.installers.project import read_locks, read_project
from builderd.domain.bundles import Bundle, BundleFile, make_bundle
from builderd.domain.errors import InstallFailed


def bundle(**files: str) -> Bundle:
    names = {"pyproject": "pyproject.toml", "poetry": "poetry.lock", "pipfile": "Pipfile.lock", "pylock": "pylock.toml"}
    return make_bundle([BundleFile(names[name], text.encode()) for name, text in files.items()])


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ("'^1.2.3'", "a<2,>=1.2.3"),
        ("'^0.2.3'", "a<0.3,>=0.2.3"),
        ("'^0.0.3'", "a<0.0.4,>=0.0.3"),
        ("'^0'", "a<1,>=0"),
        ("'~1.2.3'", "a<1.3,>=1.2.3"),
        ("'~1'", "a<2,>=1"),
        ("'*'", "a"),
        ("'1.2.*'", "a==1.2.*"),
        ("'>=1,<3'", "a<3,>=1"),
        ("'~=1.4'", "a~=1.4"),
        ("{version = '^2', extras = ['x'], markers = \"python_version > '3'\"}", 'a[x]<3,>=2; python_version > "3"'),
    ],
)
def test_constraint_of_poetry_is_one_of_pep_440(wanted: str, line: str) -> None:
    found = read_project(bundle(pyproject=f"[tool.poetry.dependencies]\npython = '^3.11'\na = {wanted}\n"))
    assert found is not None
    assert found.lines == (line,)


def test_lock_of_poetry_constrains_and_optional_dependencies_are_left_out() -> None:
    project = "[tool.poetry.dependencies]\nflask = '^3'\nextra = {version = '1', optional = true}\n"
    lock = '[[package]]\nname = "flask"\nversion = "3.0.1"\n[[package]]\nname = "mine"\nversion = "1"\n'
    lock += '[package.source]\ntype = "directory"\nurl = "../mine"\n'
    found = read_project(bundle(pyproject=project, poetry=lock))
    assert found is not None
    assert (found.lines, found.constraints) == (("flask<4,>=3",), ("flask==3.0.1",))


def test_pipfile_lock_names_what_is_installed() -> None:
    packages = {
        "flask": {"version": "==3.0.1", "markers": "python_version >= '3.8'", "hashes": ["sha256:x"]},
        "uvicorn": {"version": "==0.30.0", "extras": ["standard"], "index": "pypi"},
    }
    lock = json.dumps(
        {"_meta": {"sources": [{"url": "https://evil.example"}]}, "default": packages, "develop": {"x": 1}}
    )
    found = read_locks(bundle(pipfile=lock))
    assert found is not None
    assert found.lines == ('flask==3.0.1; python_version >= "3.8"', "uvicorn[standard]==0.30.0")


def test_pylock_names_what_is_installed_without_groups_and_the_project() -> None:
    lock = """
lock-version = "1.0"
[[packages]]
name = "flask"
version = "3.0.1"
wheels = [{url = "https://evil.example/flask.whl"}]
[[packages]]
name = "pytest"
version = "8"
marker = "'dev' in dependency_groups"
[[packages]]
name = "me"
directory = {path = "."}
"""
    found = read_locks(bundle(pylock=lock))
    assert found is not None
    assert (found.lines, found.foreign) == (("flask==3.0.1",), False)


@pytest.mark.parametrize(
    "files",
    [
        {"pylock": "packages = 1"},
        {"pylock": "[[packages]]\nversion = '1'"},
        {"pylock": "[[packages]]\nname = 'x'\n[packages.vcs]\nurl = 'https://e.example'"},
        {"pylock": "[[packages]]\nname = 'x'\nversion = '1\\n--index-url http://e'"},
        {"pipfile": "[]"},
        {"pipfile": "no"},
        {"pipfile": '{"default": {"x": {"git": "https://e.example"}}}'},
        {"pipfile": '{"default": {"x": {"version": "==1 --index-url=http://e"}}}'},
        {"pyproject": "[tool.poetry.dependencies]\na = {path = '../x'}"},
        {"pyproject": "[tool.poetry.dependencies]\na = {git = 'ssh://e'}"},
        {"pyproject": "[tool.poetry.dependencies]\na = '^x'"},
        {"pyproject": "[tool.poetry.dependencies]\na = '1 || 2'"},
        {"pyproject": "[tool.poetry.dependencies]\na = '1'", "poetry": "package = 1"},
    ],
)
def test_damaged_or_hostile_lock_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(InstallFailed):
        read_project(bundle(**files)) if "pyproject" in files else read_locks(bundle(**files))
