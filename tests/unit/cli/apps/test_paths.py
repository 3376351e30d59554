"""No word of a command leads a request to another resource: each parameter of each command gets hostile ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import httpx2
import pytest
from click.testing import CliRunner
from tests.hostile_paths import HOSTILE, OneBuilder, strays
from tests.unit.client.openapi import operation_of

from builderd.cli.commands import APPS
from builderd.cli.group import builderd

#: ``login`` speaks to the service that its word names.
ELSEWHERE = {"login"}
#: Of every command; they choose the service and how its answer is shown.
COMMON = {"as_json", "context", "timeout", "ca"}


def commands(group: click.Group, names: Iterator[str] | list[str]) -> Iterator[tuple[list[str], click.Command]]:
    for name in names:
        found = group.get_command(click.Context(group), name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from (([name, *words], one) for words, one in commands(found, list(found.commands)))
        else:
            yield [name], found


COMMANDS = {" ".join(words): one for words, one in commands(builderd, [one for one in APPS if one not in ELSEWHERE])}


def sample(parameter: click.Parameter) -> str:
    if isinstance(parameter.type, click.Choice):
        return str(next(iter(parameter.type.choices)))
    if isinstance(parameter.type, click.Path):
        return "." if not parameter.type.file_okay else "file"
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        return "10"
    names = {"variables": "A=1", "method": "GET", "path": "builders", "ports": "8000", "target": "local"}
    return names.get(parameter.name or "", "own:file" if parameter.name == "source" else "own")


def arguments(command: click.Command, chosen: click.Parameter, value: str) -> list[str]:
    """Return the command's words: the value for one parameter, and harmless ones for others that are needed."""
    given = {one: value if one is chosen else sample(one) for one in command.params if one.required or one is chosen}
    options = [f"{one.opts[0]}={text}" for one, text in given.items() if isinstance(one, click.Option)]
    return [*options, "--", *(text for one, text in given.items() if isinstance(one, click.Argument))]


def is_text(one: click.Parameter) -> bool:
    is_flag = isinstance(one, click.Option) and one.is_flag
    texts = click.types.StringParamType | click.types.UnprocessedParamType
    return one.name not in COMMON and not is_flag and isinstance(one.type, texts)


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> OneBuilder:
    monkeypatch.setenv("BUILDERD_URL", "http://builderd")
    monkeypatch.setenv("BUILDERD_TOKEN", "t")
    (home / "file").write_text("A=1\n")
    found = OneBuilder()
    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", lambda _, request: found(request))
    return found


@pytest.mark.parametrize("words", COMMANDS)
def test_no_word_leads_to_another_resource(service: OneBuilder, words: str) -> None:
    command = COMMANDS[words]

    def made(parameter: click.Parameter, value: str) -> list[httpx2.Request]:
        service.requests.clear()
        typed = [*words.split(), *arguments(command, parameter, value)]
        result = CliRunner().invoke(builderd, typed, prog_name="builderd")
        assert result.exception is None or isinstance(result.exception, SystemExit), (typed, result.exception)
        return list(service.requests)

    for parameter in filter(is_text, command.params):
        own = {operation_of(one.method, one.url.path) for one in made(parameter, sample(parameter))}
        own |= {("GET", "/api/v1/builders"), ("GET", "/api/v1/builders/{uuid}")}
        # The call itself, and a folder of this machine that is sent.
        is_any = (words, parameter.name) in {("api", "path"), ("api", "method"), ("run", "args"), ("deploy", "root")}
        for value in set(HOSTILE) - {"\0"}:  # no program's words have it
            for one in (value, f"own:{value}") if words == "cp" else (value,):
                assert not strays(made(parameter, one), None if is_any else own), (parameter.name, one)


def test_the_walk_finds_the_commands(service: OneBuilder) -> None:
    assert {"webhooks rm", "files rm", "backups restore", "leases end", "credentials show"} <= set(COMMANDS)
    result = CliRunner().invoke(builderd, ["files", "cat", "own", "../../../credentials/prod"], prog_name="builderd")
    assert (result.exit_code, "'..'" in result.stderr) == (1, True)
