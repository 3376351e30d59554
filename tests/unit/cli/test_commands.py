"""The table of commands: its lines are the commands' own, and help needs nothing else."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner

from builderd import __version__
from builderd.cli import group
from builderd.cli.commands import APPS, COMMANDS, MACHINE, help_text
from builderd.cli.group import builderd
from builderd.core.errors import ValidationFailed
from builderd.engine.incus.provider import Administration, MemberState, read_token

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


def test_importing_the_package_imports_nothing_costly() -> None:
    imported = modules_after("import builderd")
    assert not imported.intersection(COSTLY)
    assert {name for name in imported if name.startswith("builderd")} == {"builderd"}


def test_commands_of_clusters_and_set_up_import_no_server() -> None:
    # On an emulated machine the server's packages cost three minutes, with each command.
    imported = modules_after("import builderd.cli.cluster, builderd.cli.machine")
    assert not imported.intersection(("fastapi", "uvicorn", "builderd.server"))


def test_click_prints_the_help_of_the_table() -> None:
    assert CliRunner().invoke(builderd, ["--help"]).output == help_text()
    assert CliRunner().invoke(builderd, ["--version"]).output == f"builderd, version {__version__}\n"


def test_a_machines_command_without_the_servers_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        if name == "builderd.cli.serve":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return import_module(name)

    monkeypatch.setattr(group, "import_module", missing)
    result = CliRunner().invoke(builderd, ["serve"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: `builderd serve` needs the packages of the service (fastapi is not installed). "
        "Run: pip install 'builderd[server]'\n"
    )


def test_the_package_is_typed() -> None:
    assert (Path(group.__file__).parents[1] / "py.typed").exists()


MEMBERS = [
    MemberState("one", "10.0.0.1", "Online", False, 3, 2, 5.0, 10.0, 1.0, 2.0),
    MemberState("two", "10.0.0.2", "Online", True, 1, 0, 9.0, 10.0, 1.5, 2.0),
    MemberState("three", "10.0.0.3", "Offline", False, 4, 0),
]


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> list[MemberState]:
    found = list(MEMBERS)

    async def shown(self: Administration) -> Sequence[MemberState]:
        return found

    monkeypatch.setattr(Administration, "members", shown)
    return found


def run(tmp_path: Path, *words: str) -> Any:
    argv = ["cluster", *words, "--data-dir", str(tmp_path)]
    return CliRunner().invoke(builderd, argv, env={"BUILDERD_ENGINE": "incus"})


def test_status_shows_a_row_for_each_member_and_fails_while_one_is_away(
    tmp_path: Path, members: list[MemberState]
) -> None:
    done = run(tmp_path, "status")
    assert done.exit_code == 1
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["MEMBER", "one", "two", "three"]
    assert "Online (evacuating)" in done.stdout
    assert "5.0 of 10.0 GB" in done.stdout
    members.pop()
    assert run(tmp_path, "status").exit_code == 0


def test_status_in_json_has_all_fields(tmp_path: Path, members: list[MemberState]) -> None:
    shown = json.loads(run(tmp_path, "status", "--json").stdout)
    assert shown[2] == {
        "name": "three",
        "address": "10.0.0.3",
        "status": "Offline",
        "evacuating": False,
        "disks": 4,
        "instances": 0,
        "pool_free": None,
        "pool_total": None,
        "memory_free": None,
        "memory_total": None,
    }


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"[]", b'{"server_name": "n", "addresses": []}'])
def test_token_that_is_none_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(ValidationFailed) as refused:
        read_token(base64.b64encode(content).decode())
    with pytest.raises(ValidationFailed):
        read_token("no base64 !")
    assert "builderd cluster add NAME" in refused.value.errors["token"][0]


def test_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    argv = ["cluster", "status", "--data-dir", str(tmp_path)]
    env = {"BUILDERD_ENGINE": "incus", "BUILDERD_INCUS__SOCKET": str(tmp_path / "none")}
    done = CliRunner().invoke(builderd, argv, env=env)
    assert done.exit_code == 1
    assert f"Incus does not answer at {tmp_path / 'none'}" in done.output
