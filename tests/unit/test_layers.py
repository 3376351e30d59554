"""The arrows in .importlinter hold, and each of them catches an import against it."""

import re
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
    pytest.param("services", "builderd.api", "Arrows point down", id="services-know-a-door"),
    pytest.param("services", "builderd.operations", "Arrows point down", id="services-know-operations"),
    pytest.param("operations", "builderd.reconciler", "Arrows point down", id="operations-know-reconciler"),
    pytest.param("operations", "builderd.server", "Arrows point down", id="operations-know-an-interface"),
    pytest.param("operations", "starlette", "Frameworks stay at the edges", id="operations-know-starlette"),
    pytest.param("code/bundles", "builderd.services", "Arrows point down", id="adapters-know-services"),
    pytest.param("api", "builderd.cli", "Arrows point down", id="http-knows-cli"),
    pytest.param("cli", "builderd.api", "Interfaces are independent", id="cli-knows-http"),
    pytest.param("api", "builderd.credentials.vault", "Only bootstrap imports adapters", id="door-knows-adapter"),
    pytest.param("web", "builderd.api.v1", "The web pages use the services", id="web-knows-api"),
    pytest.param(
        "reconciler", "builderd.credentials.vault", "Only bootstrap imports adapters", id="reconciler-adapter"
    ),
    pytest.param(
        "reconciler", "builderd.schemas", "Only interfaces and the client import schemas", id="reconciler-knows-wire"
    ),
    pytest.param("api", "builderd.mcp", "Arrows point down", id="api-knows-mcp"),
    pytest.param("api", "mcp.server", "Only the MCP server imports its library", id="api-imports-the-library"),
    pytest.param("mcp/tools", "builderd.api", "The client needs nothing of the server", id="stdio-needs-the-server"),
    pytest.param("client", "sqlalchemy", "The client needs nothing of the server", id="client-needs-the-server"),
    pytest.param("cli/apps", "builderd.bootstrap", "The client needs nothing of the server", id="cli-knows-bootstrap"),
    pytest.param("client", "builderd.credentials.vault", "Only bootstrap imports adapters", id="client-knows-adapter"),
    pytest.param("engine/oci", "builderd.previews.haproxy", "Adapter families", id="engine-preview"),
    pytest.param("code/bundles", "builderd.adapters.uploads", "Adapter families", id="bundles-know-uploads"),
    pytest.param("code/bundles", "builderd.settings", "Arrows point down", id="adapter-reads-settings"),
    pytest.param("services", "sqlalchemy", "SQLAlchemy stays in the store", id="services-know-sqlalchemy"),
    pytest.param("store", "builderd.services", "Arrows point down", id="store-knows-services"),
    pytest.param("domain", "fastapi", "Frameworks stay at the edges", id="domain-knows-fastapi"),
    pytest.param("domain", "subprocess", "The domain is pure", id="domain-does-io"),
    pytest.param("domain", "time", "The domain is pure", id="domain-has-a-clock"),
]


def copy_house(folder: Path) -> Path:
    """Copy the package and its contracts."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", folder)
    return folder


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=house,
        env={"PYTHONPATH": str(house / "src"), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def planted_name(room: str, imported: str) -> str:
    """Name the module that imports against the grain: one for each violation, so that the report tells them apart."""
    return f"builderd.{room.replace('/', '.')}.planted_{imported.replace('.', '_')}"


@pytest.fixture(scope="module")
def broken_contracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The report on a copy with every violation planted at once, as text by contract."""
    house = copy_house(tmp_path_factory.mktemp("house"))
    for violation in VIOLATIONS:
        room, imported, _ = map(str, violation.values)
        name = planted_name(room, imported)
        (house / "src" / name.replace(".", "/")).with_suffix(".py").write_text(f"import {imported}\n")
    services = house / "src/builderd/services"
    (services / "one.py").write_text("import builderd.services.two\n")
    (services / "two.py").write_text("import builderd.services.one\n")
    result = lint(house)
    assert result.returncode == 1, result.stdout + result.stderr
    _, _, details = result.stdout.partition("Broken contracts")
    parts = re.split(r"\n([^\n]+)\n-{3,}\n", details)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_house_keeps_its_contracts(tmp_path: Path) -> None:
    result = lint(copy_house(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(("room", "imported", "contract"), VIOLATIONS)
def test_an_import_against_the_grain_is_caught(
    broken_contracts: dict[str, str], room: str, imported: str, contract: str
) -> None:
    (report,) = (text for name, text in broken_contracts.items() if name.startswith(contract))
    assert planted_name(room, imported) in report


def test_an_import_cycle_inside_a_room_is_caught(broken_contracts: dict[str, str]) -> None:
    _, _, report = broken_contracts["No import cycles inside a package"].partition("builderd.services.")
    assert ".two -> .one" in report
