"""Python projects: what they depend on is read, and nothing that would lead the installer elsewhere."""

from __future__ import annotations

import pytest

from builderd.adapters.installers.project import read_project
from builderd.adapters.installers.requirements import Requirements
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.errors import InstallFailed

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
