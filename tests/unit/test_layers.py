"""The arrows in .importlinter hold, and each of them catches an import against it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

VIOLATIONS = [
    pytest.param("domain", "builderd.ports", "Arrows point down", id="domain-knows-ports"),
    pytest.param("ports", "builderd.services", "Arrows point down", id="ports-know-services"),
    pytest.param("services", "builderd.reconciler", "Arrows point down", id="services-know-reconciler"),
    pytest.param("services", "builderd.doors.http", "Arrows point down", id="services-know-a-door"),
    pytest.param("adapters/bundles", "builderd.services", "Arrows point down", id="adapters-know-services"),
    pytest.param("doors/http", "builderd.doors.cli", "Arrows point down", id="http-knows-cli"),
    pytest.param("doors/cli", "builderd.doors.http", "Doors are independent", id="cli-knows-http"),
    pytest.param("doors/http", "builderd.adapters.fakes", "Only bootstrap imports adapters", id="door-knows-adapter"),
    pytest.param("reconciler", "builderd.adapters.fakes", "Only bootstrap imports adapters", id="reconciler-adapter"),
    pytest.param("reconciler", "builderd.wire.v1", "Only doors and client import wire", id="reconciler-knows-wire"),
    pytest.param("client", "builderd.adapters.fakes", "Only bootstrap imports adapters", id="client-knows-adapter"),
    pytest.param("adapters/engines/oci", "builderd.adapters.previews.haproxy", "Adapter families", id="engine-preview"),
    pytest.param("adapters/fakes", "builderd.adapters.stores.sql", "Adapter families", id="fake-knows-store"),
    pytest.param("adapters/bundles", "builderd.settings", "Arrows point down", id="adapter-reads-settings"),
    pytest.param("services", "sqlalchemy", "Frameworks stay at the edges", id="services-know-sqlalchemy"),
    pytest.param("domain", "fastapi", "Frameworks stay at the edges", id="domain-knows-fastapi"),
    pytest.param("domain", "subprocess", "The domain is pure", id="domain-does-io"),
    pytest.param("domain", "time", "The domain is pure", id="domain-has-a-clock"),
]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=house,
        env={"PYTHONPATH": str(house / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_house_keeps_its_contracts(house: Path) -> None:
    result = lint(house)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(("room", "imported", "contract"), VIOLATIONS)
def test_an_import_against_the_grain_is_caught(house: Path, room: str, imported: str, contract: str) -> None:
    (house / "src/builderd" / room / "planted.py").write_text(f"import {imported}\n")
    result = lint(house)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), result.stdout


def test_a_circle_inside_a_room_is_caught(house: Path) -> None:
    room = house / "src/builderd/services"
    (room / "one.py").write_text("import builderd.services.two\n")
    (room / "two.py").write_text("import builderd.services.one\n")
    result = lint(house)
    assert result.returncode == 1
    assert "No circles inside a room BROKEN" in result.stdout
