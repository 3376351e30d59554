"""The table of commands: its lines are the commands' own, and help needs nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from builderd import __version__
from builderd.cli import group
from builderd.cli.commands import APPS, COMMANDS, MACHINE, help_text
from builderd.cli.group import builderd

#: Too costly for help: each takes longer than the interpreter's own start.
COSTLY = ("asyncio", "click", "dataclasses", "httpx2", "pydantic", "rich")


def modules_after(program: str, *words: str) -> set[str]:
    """Return the modules that an interpreter has imported after the program."""
    text = f"import sys; sys.argv = ['builderd', *{list(words)!r}]; {program}; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


def test_no_command_is_in_both_groups() -> None:
    assert len(COMMANDS) == len(APPS) + len(MACHINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_has_the_first_sentence_of_each_commands_help(name: str) -> None:
    command = builderd.get_command(click.Context(builderd), name)
    assert command is not None
    assert command.get_short_help_str(limit=200).rstrip(".") == COMMANDS[name][1].rstrip(".")
    help_ = CliRunner().invoke(builderd, [name, "--help"], prog_name="builderd")
    assert (help_.exit_code, help_.stdout.partition(" [")[0]) == (0, f"Usage: builderd {name}")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--version",)])
def test_help_and_version_import_nothing_costly(words: tuple[str, ...]) -> None:
    assert not modules_after("from builderd.cli.main import main; main()", *words).intersection(COSTLY)


def test_importing_the_package_imports_nothing_costly() -> None:
    imported = modules_after("import builderd")
    assert not imported.intersection(COSTLY)
    assert {name for name in imported if name.startswith("builderd")} == {"builderd"}


def test_commands_of_clusters_and_set_up_import_no_server() -> None:
    # On an emulated machine the server's packages cost three minutes, with each command.
    for name in ("cluster", "service"):
        assert not modules_after(f"import builderd.cli.{name}").intersection(("fastapi", "uvicorn", "builderd.api"))


def test_click_prints_the_help_of_the_table() -> None:
    assert CliRunner().invoke(builderd, ["--help"]).output == help_text()
    assert CliRunner().invoke(builderd, ["--version"]).output == f"builderd, version {__version__}\n"


def test_a_machines_command_without_the_servers_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.setattr(group, "import_module", missing)
    result = CliRunner().invoke(builderd, ["serve"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: `builderd serve` needs the packages of the service (fastapi is not installed). "
        "Run: pip install 'builderd[server]'\n"
    )


def test_the_package_is_typed() -> None:
    assert (Path(group.__file__).parents[1] / "py.typed").exists()
