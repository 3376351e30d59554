"""Contents of the wheel, and what the package indexes of a cluster of tests ask."""

from __future__ import annotations

import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from tests.package_index import FILES, INDEX, REGISTRY, source_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (file,) = folder.glob("*.whl")
    return ZipFile(file)


def test_wheel_has_each_file_of_the_package(wheel: ZipFile) -> None:
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    own = {path.relative_to(ROOT / "src").as_posix() for path in files}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == own
    # Kinds of files that no import names.
    for file in (
        "debian_packages.sh",
        "review_policy.yaml",
        "py.typed",
        "agents.md",
        "previews/haproxy/pause.lua",
        "review/scanners/tripwire/rules/gitleaks/gitleaks.toml",
    ):
        assert f"builderd/{file}" in packed


def test_client_alone_needs_no_package_of_the_service(wheel: ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needs = HeaderParser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist") or []
    assert sorted(need for need in needs if "extra ==" not in need) == [
        "click>=8.4",
        "httpx2[ws]>=2.16",
        "platformdirs>=4.3",
        "pydantic>=2.12",
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/simple/flask/", f"{INDEX}/simple/flask/"),
        ("/files/packages/a.whl", f"{FILES}/packages/a.whl"),
        ("/npm/ms", f"{REGISTRY}/ms"),
        ("/npm/ms/-/ms-2.1.3.tgz", f"{REGISTRY}/ms/-/ms-2.1.3.tgz"),
        ("/npm.evil.example/x", None),
        ("/files.evil.example/x", None),
        ("/files@evil.example/x", None),
        ("/simple.evil.example/x", None),
        ("@evil.example/simple/x", None),
        ("http://evil.example/simple/x", None),
        ("/", None),
    ],
)
def test_path_of_the_index_leads_to_a_registry_or_nowhere(path: str, source: str | None) -> None:
    assert source_of(path) == source
