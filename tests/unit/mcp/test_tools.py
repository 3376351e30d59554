"""Each tool: what it does to the service, what it answers, and what it answers when it fails."""

from __future__ import annotations

import base64

import httpx2
import pytest
from mcp import MCPError
from tests.agents import Agent, agent, service_with_mcp, text_of
from tests.fakes.processes import Answer
from tests.fakes.sandboxes import Behaviour
from tests.hostile_paths import HOSTILE, strays
from tests.service import Service
from tests.unit.client.openapi import Operation

from builderd.dependencies.model import BuildOutcome
from builderd.mcp.http import InProcess
from builderd.mcp.tools import TOOLS
from builderd.tokens.model import Scope

CODE = {"main.py": "print('hello')\n"}
OTHER = {"main.py": "print('other')\n"}
RUN = "python3 main.py"


async def deployed(one: Agent, name: str = "hello", **arguments: object) -> str:
    made = await one.done("deploy_code", **{"name": name, "files": CODE, "entrypoint": RUN, **arguments})
    return str(made["uuid"])


async def test_deployments_are_listed_shown_and_changed(writer: Agent) -> None:
    uuid = await deployed(writer, env={"TOKEN": "not-shown-0123"})
    assert (await writer.done("list_deployments", status="running"))["total"] == 1
    shown = await writer.done("get_deployment", deployment="hello")
    assert shown["deployment"]["uuid"] == uuid
    assert shown["deployment"]["variables"] == ["TOKEN"]
    assert [one["current"] for one in shown["versions"]] == [True]
    changed = await writer.done("redeploy", deployment="hello", files=OTHER)
    assert changed["version"] == 2
    assert writer.progress
    back = await writer.done("rollback_deployment", deployment=uuid)
    assert back["version"] == 3
    assert (await writer.done("set_auto_stop", deployment="hello", minutes=30))["auto_stop_minutes"] == 30
    assert (await writer.done("stop_deployment", deployment="hello"))["status"] == "stopped"
    assert (await writer.done("start_deployment", deployment="hello"))["status"] == "running"
    assert (await writer.done("restart_deployment", deployment="hello"))["status"] == "running"


async def test_a_deployment_is_deleted_only_with_its_name_as_confirmation(writer: Agent) -> None:
    uuid = await deployed(writer)
    for confirm in ({}, {"confirm": "yes"}, {"confirm": uuid}):
        refused = await writer.refused("delete_deployment", deployment="hello", **confirm)
        assert refused["code"] == "confirmation_needed"
        assert "would delete hello" in refused["message"]
    assert (await writer.done("delete_deployment", deployment="hello", confirm="hello"))["uuid"] == uuid
    assert (await writer.refused("get_deployment", deployment="hello"))["code"] == "not_found"


async def test_a_retry_without_a_key_makes_no_second_deployment(writer: Agent) -> None:
    uuid = await deployed(writer)
    assert await deployed(writer) == uuid
    binary = {"main.py": {"content": base64.b64encode(CODE["main.py"].encode()).decode(), "encoding": "base64"}}
    assert await deployed(writer, files=binary) == uuid
    refused = await writer.refused("deploy_code", name="hello", files=OTHER, entrypoint=RUN)
    assert (refused["code"], refused["deployment"]) == ("name_taken", uuid)
    assert "redeploy" in refused["next_step"]
    assert (await writer.done("list_deployments"))["total"] == 1


async def test_a_retry_with_a_key_gets_the_first_answer(writer: Agent) -> None:
    uuid = await deployed(writer, idempotency_key="k1")
    assert await deployed(writer, idempotency_key="k1") == uuid
    refused = await writer.refused("deploy_code", name="x", files=OTHER, entrypoint=RUN, idempotency_key="k1")
    assert refused["code"] == "conflict"


async def test_a_deployment_can_be_left_to_itself(writer: Agent) -> None:
    made = await writer.done("deploy_code", name="hello", files=CODE, entrypoint=RUN, wait=False)
    again = await writer.done("deploy_code", name="hello", files=CODE, entrypoint=RUN)
    assert (again["uuid"], again["status"]) == (made["uuid"], "running")


async def test_workers_jobs_and_sandboxes_are_deployed(writer: Agent) -> None:
    for job_type in ("worker", "one_time", "static"):
        made = await writer.done("deploy_code", name=job_type[:3], files=CODE, entrypoint=RUN, job_type=job_type)
        assert made["job_type"] == job_type
    made = await writer.done("deploy_code", name="box", job_type="sandbox")
    assert (made["job_type"], made["visibility"]) == ("sandbox", "private")


async def test_failed_start_reports_stage_reason_output_and_next_step(service: Service, writer: Agent) -> None:
    service.engine.behave(RUN, Behaviour(exits_at=0, listens_at=None, exit_code=1, lines=("KeyError: 'PORT'",)))
    failed = await writer.refused("deploy_code", name="hello", files=CODE, entrypoint=RUN)
    assert (failed["code"], failed["stage"]) == ("start_failed", "start")
    assert "KeyError" not in failed["message"]
    assert "KeyError: 'PORT'" in failed["app_output"]
    assert "<app-data" in failed["app_output"]
    assert "0.0.0.0:$PORT" in failed["next_step"]
    assert "start failed" in writer.progress[-1]


async def test_failed_install_reports_the_installers_lines(service: Service, writer: Agent) -> None:
    service.engine.build_outcomes.append(BuildOutcome(exit_code=1, output=("No matching flask==99",), seconds=0))
    files = {**CODE, "requirements.txt": "flask==99\n"}
    failed = await writer.refused("deploy_code", name="hello", files=files, entrypoint=RUN)
    assert (failed["code"], failed["stage"]) == ("install_failed", "install")
    assert "flask==99" not in failed["message"]
    assert "flask==99" in failed["app_output"], failed


async def test_arguments_that_break_a_rule_are_named(writer: Agent) -> None:
    failed = await writer.refused("deploy_code", name="Not A Name", files={"../x": ""}, entrypoint=RUN)
    assert failed["code"] == "validation_error"
    assert "name" in failed["reasons"]
    result = await writer.call("get_logs", deployment="hello", tail=0)
    assert result.is_error


async def test_files_are_listed_read_in_parts_and_written(writer: Agent) -> None:
    await deployed(writer)
    text = "ä" * 15_000
    assert (await writer.done("write_file", deployment="hello", path="data/a.txt", content=text))["size"] == 30_000
    listed = await writer.done("get_deployment_files", deployment="hello", path="data")
    assert [one["name"] for one in listed["entries"]] == ["a.txt"]
    first = await writer.done("read_file", deployment="hello", path="data/a.txt")
    assert (first["bytes"], first["next_offset"], first["size"]) == (20_000, 20_000, 30_000)
    second = await writer.done("read_file", deployment="hello", path="data/a.txt", offset=20_000)
    assert (second["bytes"], second["next_offset"]) == (10_000, None)
    assert (first["content"] + second["content"]).count("ä") == 15_000
    data = base64.b64encode(b"\x89PNG\0\xff").decode()
    await writer.done("write_file", deployment="hello", path="b.png", content=data, encoding="base64")
    read = await writer.done("read_file", deployment="hello", path="b.png")
    assert read["encoding"] == "base64"
    assert data in read["content"]
    refused = await writer.refused("write_file", deployment="hello", path="c", content="%%", encoding="base64")
    assert refused["code"] == "validation_error"


async def test_a_file_that_a_result_cannot_bring_back_is_replaced_only_with_confirmation(writer: Agent) -> None:
    await deployed(writer)

    async def write(content: str, **more: str) -> dict[str, object]:
        return await writer.done("write_file", deployment="hello", path="data.txt", content=content, **more)

    assert (await write("first"))["replaced"] is None
    assert "first" in str((await write("x" * 20_001))["replaced"])
    refused = await writer.refused("write_file", deployment="hello", path="data.txt", content="lost", confirm="yes")
    assert refused["code"] == "confirmation_needed"
    assert "would replace data.txt of hello, 20001 bytes" in refused["message"]
    assert (await writer.done("read_file", deployment="hello", path="data.txt"))["size"] == 20_001
    assert (await write("short\x1b[8m", confirm="hello"))["replaced"] is None
    refused = await writer.refused("write_file", deployment="hello", path="data.txt", content="lost")
    assert refused["code"] == "confirmation_needed"


async def test_a_credential_is_replaced_only_with_its_name_as_confirmation(writer: Agent) -> None:
    await writer.done("store_credentials", name="pay", values={"KEY": "first-secret"}, confirm="")
    await deployed(writer, credentials=["pay"])
    refused = await writer.refused("store_credentials", name="pay", values={"OTHER": "second"})
    assert refused["code"] == "confirmation_needed"
    assert "hello has pay with KEY: this would replace all its values" in refused["message"]
    stored = await writer.done("store_credentials", name="pay", values={"OTHER": "second"}, confirm="pay")
    assert stored["variables"] == ["OTHER"]


async def test_a_call_that_is_sent_again_with_the_key_of_its_message_makes_one_version(service: Service) -> None:
    """The bridge sends a call again after a broken connection; the service must recognise it."""
    call = {"name": "redeploy", "arguments": {"deployment": "hello", "files": OTHER}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    async with agent(service, service.write) as one:
        await deployed(one)
        headers = {
            "Authorization": f"Bearer {service.write}",
            "Accept": "application/json, text/event-stream",
            "Idempotency-Key": "k1",
        }
        async with httpx2.AsyncClient(transport=InProcess(service.app), headers=headers, timeout=None) as http:
            for _ in range(2):
                assert '"version":2' in (await http.post("http://builderd/mcp", json=message)).text
        shown = await one.done("get_deployment", deployment="hello")
        assert [one["version"] for one in shown["versions"]] == [2, 1]


async def test_a_long_output_is_cut_and_says_how_to_get_the_rest(service: Service, writer: Agent) -> None:
    await deployed(writer)
    service.engine.answer("long", Answer(exit_code=3, output="line\n" * 20_000))
    ended = await writer.done("exec_command", deployment="hello", command="long")
    assert ended["exit_code"] == 3
    assert 80_000 <= ended["left_out_characters"] < 81_000
    assert "read_file" in ended["rest"]
    (sandbox,) = service.engine.known
    service.engine.print(sandbox, *("x" * 1_000 for _ in range(100)))
    logs = await writer.done("get_logs", deployment="hello", tail=100)
    assert logs["left_out_characters"] > 0
    assert "tail" in logs["rest"]


async def test_gates_are_shown_and_judged_again_with_screenshots() -> None:
    async with service_with_mcp(qa_report=True) as service, agent(service, service.write) as one:
        await deployed(one)
        assert (await one.done("get_review", deployment="hello"))["passed"] is True
        assert (await one.done("review_deployment", deployment="hello"))["passed"] is True
        tested = await one.done("test_deployment", deployment="hello")
        assert (tested["status"], tested["qa_passed"]) == ("done", True)
        shown = await one.call("get_qa_report", deployment="hello")
        assert [block.type for block in shown.content] == ["text", "image"]
        assert "crawl" in text_of(shown)


async def test_credentials_spending_uploads_and_ssh(service: Service, writer: Agent) -> None:
    stored = await writer.done("store_credentials", name="pay", values={"KEY": "sk-secret-value"})
    assert stored["variables"] == ["KEY"]
    await deployed(writer, credentials=["pay"])
    (listed,) = (await writer.done("list_credentials"))["credentials"]
    assert (listed["name"], listed["used_by"]) == ("pay", ["hello"])
    spending = await writer.done("get_spending")
    assert [one["name"] for one in spending["deployments"]] == ["hello"]
    link = await writer.done("create_upload_link", size=10)
    assert link["upload_url"] in link["command"]
    access = await writer.done("create_ssh", deployment="hello", expires_minutes=5)
    assert access["command"].startswith("ssh ")


async def test_gates_cannot_be_skipped_without_the_scope(service: Service, writer: Agent) -> None:
    await deployed(writer)
    for skip in ("skip_review", "skip_qa"):
        made = await writer.refused("deploy_code", name="two", files=CODE, entrypoint=RUN, **{skip: True})
        changed = await writer.refused("redeploy", deployment="hello", files=OTHER, **{skip: True})
        assert (made["code"], changed["code"]) == ("forbidden", "forbidden")
    async with agent(service, await service.token("acme", Scope.WRITE, Scope.SKIP_GATES)) as one:
        await one.done("deploy_code", name="two", files=CODE, entrypoint=RUN, skip_review=True)


async def test_resources_and_prompts(writer: Agent) -> None:
    await deployed(writer)
    base = "builderd://deployments/hello"
    for path, expected in (("logs", "lines of hello"), ("review", "passed the review"), ("files/main.py", "hello")):
        (content,) = (await writer.client.read_resource(f"{base}/{path}")).contents
        assert expected in content.text  # type: ignore[union-attr]
    templates = (await writer.client.list_resource_templates()).resource_templates
    assert len(templates) == 4
    prompts = (await writer.client.list_prompts()).prompts
    assert {one.name for one in prompts} == {"deploy_this_folder", "why_does_it_fail", "make_it_pass_its_gates"}
    shown = await writer.client.get_prompt("why_does_it_fail", {"deployment": "hello"})
    assert "Change nothing" in str(shown.messages)
    assert "0.0.0.0:$PORT" in (writer.client.instructions or "")


SAMPLES = {"content": "x", "command": "true", "values": {"KEY": "secret"}, "path": "data.txt", "minutes": 5}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[httpx2.Request]:
    """Requests of the tools to the API."""
    found: list[httpx2.Request] = []
    send = InProcess.handle_async_request

    async def recorded(self: InProcess, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/mcp":
            found.append(request)
        return await send(self, request)

    monkeypatch.setattr(InProcess, "handle_async_request", recorded)
    return found


# Each value for every fourth argument; script/soak tries all of them for each.
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
async def test_no_argument_leads_to_another_resource(writer: Agent, requests: list[httpx2.Request], step: int) -> None:
    await writer.done("deploy_code", name="own", files={"main.py": "x"}, entrypoint="python3 main.py")
    await writer.done("write_file", deployment="own", path="data.txt", content="x")
    tools = {tool.name: tool.input_schema for tool in (await writer.client.list_tools()).tools}
    turn = 0
    for entry in TOOLS:
        tool = entry.tool.__name__
        own: set[Operation | None] = {
            (method, f"/api/v1{path}") for method, _, path in (one.partition(" ") for one in entry.operations)
        }
        required = {name: SAMPLES.get(name, "own") for name in tools[tool].get("required", ())}
        for name in sorted(
            tools[tool]["properties"].keys() & {"deployment", "name", "path", "upload_id", "root", "cwd"}
        ):
            turn += 1
            for value in HOSTILE[turn % step :: step]:
                requests.clear()
                await writer.call(tool, **{**required, name: value})
                assert not strays(requests, own), (tool, name, value)


@pytest.mark.parametrize("tool", ["read_file", "write_file"])
async def test_a_path_is_refused_before_anything_is_sent(
    writer: Agent, requests: list[httpx2.Request], tool: str
) -> None:
    more = {"content": "x"} if tool == "write_file" else {}
    result = await writer.call(tool, deployment="own", path="../../../credentials/prod", **more)
    assert result.is_error
    assert "must not contain .." in str(result.content)
    assert requests == []


@pytest.mark.parametrize("path", ["../../../credentials/prod", "%2e%2e/%2e%2e/x", "a/../b"])
async def test_no_resource_leads_elsewhere(writer: Agent, requests: list[httpx2.Request], path: str) -> None:
    await writer.done("deploy_code", name="own", files={"main.py": "x"}, entrypoint="python3 main.py")
    requests.clear()
    with pytest.raises(MCPError):
        await writer.client.read_resource(f"builderd://deployments/own/files/{path}")
    assert not strays(requests, {("GET", "/api/v1/builders")})
