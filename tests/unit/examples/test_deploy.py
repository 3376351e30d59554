"""The example client sends a folder as the API wants it, and reads its stages."""

import asyncio
import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from tests.service import listening, running_service

EXAMPLE = Path(__file__).parents[3] / "examples" / "deploy.py"

STREAM = (
    ": keep-alive\n\n"
    'event: install\nid: 7\ndata: {"stage":"install","seconds":1.25}\n\n'
    'event:start\ndata:{"stage":"start",\ndata:"seconds":0.5}\n\n'
)
DONE = 'event: done\ndata: {"uuid":"u","preview_url":"http://my-api.localhost/"}\n\n'
FAILED = 'event: failed\ndata: {"code":"start_failed","message":"it exited with 3"}\n\n'


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_deploy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answering(text: str, status: int = 200) -> httpx.Client:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, text=text))
    return httpx.Client(base_url="http://builderd", transport=transport)


def test_stages_are_shown_and_the_builder_returned(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    builder = example.create(answering(STREAM + DONE), {})
    assert builder["preview_url"] == "http://my-api.localhost/"
    assert capsys.readouterr().err.split() == ["install", "1.250", "s", "start", "0.500", "s"]


def test_a_failed_stage_ends_with_its_code_and_message(example: ModuleType) -> None:
    with pytest.raises(click.ClickException, match="start_failed: it exited with 3"):
        example.create(answering(STREAM + FAILED), {})


def test_only_the_builder_of_exactly_that_name_is_found(example: ModuleType) -> None:
    listed: list[dict[str, Any]] = [{"name": "my-api-2", "uuid": "b"}, {"name": "my-api", "uuid": "a"}]
    client = answering(json.dumps({"data": listed}))
    assert example.find(client, "my-api") == "a"
    assert example.find(client, "my") is None


def test_files_are_sent_as_text_where_they_are_text(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "main.py").write_text("é")
    (tmp_path / "static/logo").write_bytes(b"\xff\x00")
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    for unwanted in (".git/config", "__pycache__/main.pyc"):
        (tmp_path / unwanted).parent.mkdir()
        (tmp_path / unwanted).touch()
    assert example.read_files(tmp_path) == {
        "main.py": "é",
        "run": {"content": "#!/bin/sh\n", "executable": True},
        "static/logo": {
            "content": base64.b64encode(b"\xff\x00").decode(),
            "encoding": "base64",
            "executable": False,
        },
    }


async def run(example: ModuleType, url: str, token: str, *words: str) -> Result:
    arguments = [str(EXAMPLE.parent / "my-api"), "--name", "my-api", "--entrypoint", "python3 main.py", *words]
    options = ["--api", url, "--token", token]
    return await asyncio.to_thread(CliRunner().invoke, example.deploy, [*arguments, *options])


async def test_the_service_takes_what_the_example_sends(example: ModuleType) -> None:
    async with running_service() as service, listening(service.app) as url:
        first = await run(example, url, service.write, "--env", "MY_FLAG=1")
        assert first.exit_code == 0, first.output
        assert first.stdout.startswith("http://my-api-")
        assert "install" in first.stderr
        assert "start" in first.stderr

        again = await run(example, url, service.write)
        assert again.exit_code == 1
        assert "name_taken" in again.output

        replaced = await run(example, url, service.write, "--replace")
        assert replaced.exit_code == 0, replaced.output
        assert replaced.stdout == first.stdout, "it has the URL that it had"
