"""The arrows in .importlinter hold, and each of them catches an import against it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A folder, in which a new module imports, or a module, which imports; what it imports; the contract against it.
VIOLATIONS = [
    ("core", "builderd.linux", "Folders point down"),
    ("sandboxing", "builderd.tokens", "Folders point down"),
    ("server", "builderd.cli", "Folders point down"),
    ("server", "builderd.mcp", "Folders point down"),
    ("code/bundles", "builderd.settings", "Folders point down"),
    ("builders/store", "builderd.builders.service", "Layers inside each noun point down"),
    ("tokens/model", "builderd.tokens.store", "Layers inside each noun point down"),
    ("builders/model", "builderd.qa.model", "Models of nouns form no cycle"),
    ("money/service", "builderd.builders.service", "Services of nouns form no cycle"),
    ("server", "builderd.credentials.vault", "Only bootstrap imports adapters"),
    ("client", "builderd.credentials.vault", "Only bootstrap imports adapters"),
    ("engine/oci", "builderd.previews.haproxy", "Only bootstrap imports adapters"),
    ("engine/oci/network", "builderd.engine.oci.runtime", "The engine's parts point down"),
    ("reconciler", "builderd.schemas", "Only interfaces and the client import schemas"),
    ("cli", "builderd.server.app", "Interfaces are independent"),
    ("web", "builderd.tokens.api", "Interfaces are independent"),
    ("mcp/tools", "builderd.server", "The client needs nothing of the server"),
    ("client", "sqlalchemy", "The client needs nothing of the server"),
    ("cli/apps", "builderd.bootstrap", "The client needs nothing of the server"),
    ("server", "mcp.server", "Only the MCP server imports its library"),
    ("tokens/service", "starlette", "Frameworks stay at the edges"),
    ("reconciler", "fastapi", "Frameworks stay at the edges"),
    ("tokens/service", "sqlalchemy", "SQLAlchemy stays in the stores"),
    ("files/model", "subprocess", "Models are pure"),
    ("files/model", "time", "Models are pure"),
    ("database", "builderd.tokens.service", "Stores know no service"),
    ("tokens/service", "builderd.reconciler.worker", "Services know neither routes nor the reconciler's work"),
    ("tokens/service", "builderd.tokens.api", "Services know neither routes nor the reconciler's work"),
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
    """Name the module that imports against the grain: in a folder one for each violation."""
    name = f"builderd.{room.replace('/', '.')}"
    return f"{name}.planted_{imported.replace('.', '_')}" if (ROOT / "src/builderd" / room).is_dir() else name


@pytest.fixture(scope="module")
def broken_contracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The report on a copy with every violation planted at once, as text by contract."""
    house = copy_house(tmp_path_factory.mktemp("house"))
    for violation in VIOLATIONS:
        room, imported, _ = violation
        path = (house / "src" / planted_name(room, imported).replace(".", "/")).with_suffix(".py")
        with path.open("a") as file:
            file.write(f"import {imported}\n")
    (house / "src/builderd/web/one.py").write_text("import builderd.web.two\n")
    (house / "src/builderd/web/two.py").write_text("import builderd.web.one\n")
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
    _, _, report = broken_contracts["No import cycles inside a package"].partition("builderd.web.")
    assert ".two -> .one" in report
