"""Projects of Python and their locks are rewritten as requirements; nothing in them leads the installer elsewhere."""

from __future__ import annotations

import json

import pytest

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.core.errors import InstallFailed
from builderd.dependencies.installers.project import read_locks, read_project
from builderd.dependencies.installers.requirements import Requirements

LOCK = """\
version = 1
[[package]]
name = "app"
source = { virtual = "." }
[[package]]
name = "flask"
version = "3.1.0"
source = { registry = "https://pypi.org/simple" }
wheels = [{ url = "https://evil.example/flask-3.1.0-py3-none-any.whl", hash = "sha256:00" }]
[[package]]
name = "numpy"
version = "1.26"
source = { registry = "https://pypi.org/simple" }
[[package]]
name = "numpy"
version = "2.2"
source = { registry = "https://pypi.org/simple" }
"""


def read(project: str, lock: str | None = None) -> Requirements | None:
    files = [BundleFile("pyproject.toml", project.encode())]
    if lock is not None:
        files.append(BundleFile("uv.lock", lock.encode()))
    return read_project(make_bundle(files))


def dependencies(*lines: str) -> str:
    return "[project]\nname = 'app'\ndependencies = [" + ", ".join(f'"{line}"' for line in lines) + "]\n"


def test_the_dependencies_are_the_requirements() -> None:
    assert read(dependencies("Flask>=3", "uvicorn[standard] ; python_version>'3'")) == Requirements(
        ("Flask>=3", 'uvicorn[standard]; python_version > "3"'), (), foreign=False
    )


def test_the_versions_of_a_lock_are_kept_and_its_addresses_are_not() -> None:
    found = read(dependencies("flask", "numpy"), LOCK)
    assert found == Requirements(("flask", "numpy"), ("flask==3.1.0",), foreign=False)


@pytest.mark.parametrize("project", ["", "[tool.ruff]\nline-length = 1\n", "[project]\nname = 'app'\n"])
def test_project_without_dependencies_has_no_plan(project: str) -> None:
    assert read(project) is None


def test_code_from_elsewhere_is_the_tenants_own() -> None:
    found = read(dependencies("app @ git+https://example.org/app"))
    assert found is not None
    assert found.foreign


@pytest.mark.parametrize(
    ("project", "lock", "why"),
    [
        ("[project", None, "not TOML"),
        ("a = " + "[" * 5000, None, "not TOML"),
        ("[project]\nname='a'\ndynamic=['dependencies']\n", None, "dynamic dependencies"),
        ("[project]\nname='a'\ndependencies='flask'\n", None, "array of strings"),
        ("[tool.poetry.dependencies]\nflask = {path = '../x'}\n", None, "tool.poetry"),
        (dependencies("./evil"), None, r"dependencies\[0\]: a path is refused"),
        (dependencies("a @ file:///etc/passwd"), None, "only https://"),
        (dependencies("--index-url=https://evil"), None, "is no requirement"),
        (dependencies("Flask") + "[tool.uv.sources]\nflask = { index = 'evil' }\n", None, "tool.uv.sources"),
        (dependencies("core") + "[tool.uv.sources]\ncore = {workspace = true}\n", None, "set PYTHONPATH to"),
        (dependencies("flask"), "package = 3\n", "array of tables"),
        (dependencies("flask"), "[[package]]\nname = 'x'\nversion='1'\nsource={git='https://e'}\n", "x comes from git"),
        (dependencies("flask"), "[[package]]\nname = 'x y'\nversion='1'\nsource={registry='r'}\n", "a package lacks"),
        (
            dependencies("flask"),
            "[[package]]\nname = 'x'\nversion='1\\n-i'\nsource={registry='r'}\n",
            "a package lacks",
        ),
    ],
)
def test_foreign_package_source_is_refused(project: str, lock: str | None, why: str) -> None:
    with pytest.raises(InstallFailed, match=why):
        read(project, lock)


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
