"""Deploying over HTTP: new code, other settings, old versions again; answered, streamed, and safe to be retried."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service
from tests.unit.builders.test_creations import BUILDERS, KEYS, failing_once, sse

from builderd.builders import outcomes
from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import BuilderdError, EngineUnavailable, StoreUnavailable
from builderd.tokens.model import Scope

OTHER = "python3 -X dev main.py"
NEW = {"files": {"main.py": "print('new')"}}


@pytest.fixture
async def url(client: httpx.AsyncClient) -> str:
    """Return the URL of a builder that runs."""
    response = await client.post(BUILDERS, json={**MINIMAL, "env": {"A": "1"}, "resources": {"memory": 2}})
    assert response.status_code == 201, response.text
    return str(response.headers["location"])


async def versions(client: httpx.AsyncClient, url: str) -> list[dict[str, Any]]:
    response = await client.get(f"{url}/versions")
    assert response.status_code == 200
    found: list[dict[str, Any]] = response.json()["data"]
    return found


async def test_new_code_is_answered_when_it_serves_and_what_is_left_out_stays(
    client: httpx.AsyncClient, url: str
) -> None:
    before = (await client.get(url)).json()["data"]
    response = await client.put(url, json={**NEW, "resources": {"cpu": 2}})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert set(data) >= KEYS
    assert (data["version"], data["status"], data["status_reason"]) == (
        2,
        "running",
        "version 2 deployed by token test",
    )
    assert data["resources"] == {**before["resources"], "cpu": 2}
    for kept in ("name", "entrypoint", "port", "env", "visibility", "service_token", "preview_url"):
        assert data[kept] == before[kept]


async def test_changes_to_stored_code_leave_the_other_files(client: httpx.AsyncClient, url: str) -> None:
    files = {"main.py": "print('new')", "data/a": "a", "data/b": "b"}
    assert (await client.put(url, json={"files": files})).status_code == 200
    stored = {"bundle": (await versions(client, url))[0]["bundle"], "remove": ["data/a"]}
    changed = await client.put(url, json={"stored": stored, "files": {"data/b": "B", "c": "c"}})
    assert changed.status_code == 200, changed.text
    whole = make_bundle([BundleFile("main.py", b"print('new')"), BundleFile("data/b", b"B"), BundleFile("c", b"c")])
    assert (await versions(client, url))[0]["bundle"] == whole.hash
    # Alone, too: then the code is that of an earlier version.
    expected = {"bundle": whole.hash, "remove": ["c"], "result": make_bundle(whole.files[1:]).hash}
    assert (await client.put(url, json={"stored": expected})).status_code == 200
    assert (await versions(client, url))[0]["bundle"] == expected["result"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"remove": ["gone.py"]}, "stored.remove"),
        ({"remove": ["../main.py"]}, "stored.remove.0"),
        ({"remove": ["main.py"]}, "stored.remove"),
        ({"result": "0" * 64}, "stored.result"),
        ({"result": "x"}, "stored.result"),
        ({"bundle": "0" * 64}, "stored.bundle"),
        ({"bundle": "../" * 20 + "abcd"}, "stored.bundle"),
        ({"files": ["main.py"]}, "stored.files"),
    ],
)
async def test_changes_that_do_not_fit_stored_code_are_refused(
    client: httpx.AsyncClient, url: str, change: dict[str, Any], field: str
) -> None:
    stored = {"bundle": (await versions(client, url))[0]["bundle"], **change}
    refused = await client.put(url, json={"stored": stored})
    assert (refused.status_code, list(refused.json()["errors"])) == (422, [field])
    assert len(await versions(client, url)) == 1


async def test_a_hash_gives_nobody_the_code_of_others(client: httpx.AsyncClient, url: str, service: Service) -> None:
    secret = {"files": {"main.py": "print('secret')"}}
    async with service.client(service.other) as other:
        theirs = await other.post(BUILDERS, json={**MINIMAL, **secret})
        bundle = (await versions(other, theirs.headers["location"]))[0]["bundle"]
        mine = (await versions(client, url))[0]["bundle"]
        foreign = await other.put(url, json={"stored": {"bundle": mine}})
        assert (foreign.status_code, foreign.json()["code"]) == (404, "not_found")
    stolen = await client.put(url, json={"stored": {"bundle": bundle}})
    assert (stolen.status_code, list(stolen.json()["errors"])) == (422, ["stored.bundle"])
    # Nor is it told apart from a hash that nobody has.
    unknown = await client.put(url, json={"stored": {"bundle": "0" * 64}})
    assert stolen.json()["errors"] == unknown.json()["errors"]


async def test_stored_code_that_was_lost_is_sent_again(client: httpx.AsyncClient, url: str, service: Service) -> None:
    bundle = (await versions(client, url))[0]["bundle"]
    await service.application.bundles.delete(bundle)
    refused = await client.put(url, json={"stored": {"bundle": bundle}, "files": {"a": "b"}})
    assert (refused.status_code, list(refused.json()["errors"])) == (422, ["stored.bundle"])


@pytest.mark.parametrize("release", ["", "\nrelease: migrate"])
async def test_code_with_a_procfile_mends_a_builder_whose_code_was_lost(
    client: httpx.AsyncClient, service: Service, release: str
) -> None:
    service.engine.behave("migrate", Behaviour(listens_at=None, exits_at=1))
    files = {"main.py": "", "Procfile": f"web: {OTHER}{release}"}
    url = (await client.post(BUILDERS, json={"name": "proc", "files": files})).headers["location"]
    await service.application.bundles.delete((await versions(client, url))[0]["bundle"])
    lost = await client.put(url, json={"root": "web"})
    assert (lost.status_code, lost.json()["code"]) == (503, "bundle_lost")
    mended = await client.put(url, json={"files": {**files, "new": ""}})
    assert mended.status_code == 200, mended.text
    assert mended.json()["data"]["entrypoint"] == OTHER


async def test_changes_that_are_refused_leave_no_code_behind(
    client: httpx.AsyncClient, url: str, service: Service
) -> None:
    bundle = (await versions(client, url))[0]["bundle"]
    # Without files nothing changes: the outcome is code that a version has.
    for files in ({"x": "1"}, {"x": "2"}, {}):
        body = {"stored": {"bundle": bundle}, "root": "nope"} | ({"files": files} if files else {})
        refused = await client.put(url, json=body)
        assert (refused.status_code, list(refused.json()["errors"])) == (422, ["root"])
        assert await service.application.bundles.hashes() == {bundle}


async def test_stored_code_and_an_upload_are_not_combined(client: httpx.AsyncClient, url: str) -> None:
    body = {"stored": {"bundle": "0" * 64}, "source": {"upload_id": "x"}}
    refused = await client.put(url, json=body)
    assert (refused.status_code, list(refused.json()["errors"])) == (422, ["source"])
    created = await client.post(BUILDERS, json={**MINIMAL, "name": "other", "stored": {"bundle": "0" * 64}})
    assert (created.status_code, list(created.json()["errors"])) == (422, ["stored"])


async def test_stages_of_a_deployment_are_streamed(client: httpx.AsyncClient, url: str) -> None:
    files = {**NEW["files"], "requirements.txt": "flask"}
    response = await client.put(url, json={"files": files}, headers={"Accept": "text/event-stream"})
    names = [name for name, _ in sse(response.text)]
    assert names[-1] == "done"
    assert names[:3] == ["review", "install", "start"]
    assert sse(response.text)[-1][1]["version"] == 2


@pytest.mark.parametrize(
    ("method", "path", "body"), [("PATCH", "", {"auto_stop_interval": 5}), ("PUT", "/auto-stop", {"interval": 5})]
)
async def test_change_without_stages_is_streamed(
    client: httpx.AsyncClient, url: str, method: str, path: str, body: dict[str, Any]
) -> None:
    headers = {"Accept": "text/event-stream", "Idempotency-Key": "settings-1"}
    first = await client.request(method, f"{url}{path}", json=body, headers=headers)
    again = await client.request(method, f"{url}{path}", json=body, headers=headers)
    for response in (first, again):
        assert response.headers["content-type"].startswith("text/event-stream")
        ((name, data),) = sse(response.text)
        assert (name, data["auto_stop_interval"]) == ("done", 5)
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")


async def test_failed_stage_is_reported_while_the_builder_runs(
    client: httpx.AsyncClient, url: str, service: Service
) -> None:
    service.engine.behave(OTHER, Behaviour(exits_at=0, exit_code=3, lines=("oh no",)))
    response = await client.put(url, json={**NEW, "entrypoint": OTHER})
    body = response.json()
    assert response.status_code == 422
    assert body["code"] == "start_failed"
    assert "oh no" in body["message"]
    assert body["data"] == {"uuid": url.rpartition("/")[2], "version": 2}
    data = (await client.get(url)).json()["data"]
    assert (data["status"], data["version"], data["entrypoint"]) == ("running", 1, MINIMAL["entrypoint"])
    listed = await versions(client, url)
    assert [(one["version"], one["status"], one["current"]) for one in listed] == [
        (2, "failed", False),
        (1, "deployed", True),
    ]
    assert "oh no" in listed[0]["status_reason"]
    assert [one["failure_code"] for one in listed] == ["start_failed", None]


async def test_a_retry_is_answered_as_the_first_call_was(client: httpx.AsyncClient, url: str) -> None:
    key = {"Idempotency-Key": "deploy-7"}
    first = await client.put(url, json=NEW, headers=key)
    again = await client.put(url, json=NEW, headers=key)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(await versions(client, url)) == 2
    other = await client.put(f"{url}?fresh=true", json=NEW, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("method", "path", "body", "broken", "error", "version"),
    [
        ("PUT", "", NEW, "_get_version", StoreUnavailable("It does not answer."), 2),
        ("POST", "/rollback", {"version": 1}, "_get_version", StoreUnavailable("It does not answer."), 2),
        ("PATCH", "", {"env": {"B": "2"}}, "wait_until_reachable", EngineUnavailable("Look again in a moment."), 2),
        (
            "PATCH",
            "",
            {"visibility": "private"},
            "wait_until_reachable",
            EngineUnavailable("Look again in a moment."),
            1,
        ),
    ],
)
async def test_temporary_error_is_not_stored_and_the_retry_waits(
    client: httpx.AsyncClient,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: dict[str, Any],
    broken: str,
    error: BuilderdError,
    version: int,
) -> None:
    async def call() -> httpx.Response:
        return await client.request(method, f"{url}{path}", json=body, headers={"Idempotency-Key": "deploy-7"})

    monkeypatch.setattr(outcomes, broken, failing_once(getattr(outcomes, broken), error))
    first, second, third = [await call() for _ in range(3)]
    assert (first.status_code, first.json()["code"]) == (503, error.code)
    assert (second.status_code, second.json()["data"]["version"]) == (200, version), second.text
    assert "idempotency-replayed" not in second.headers
    assert (third.json(), third.headers["idempotency-replayed"]) == (second.json(), "true")
    assert len(await versions(client, url)) == version


async def test_afresh_means_without_the_layer_that_was_there(
    client: httpx.AsyncClient, url: str, service: Service
) -> None:
    files = {"files": {**NEW["files"], "requirements.txt": "flask"}}
    for call, builds in (("", 1), ("", 1), ("?fresh=true", 2), ("", 2), ("?fresh=true", 3)):
        assert (await client.put(f"{url}{call}", json=files)).status_code == 200
        assert sum(name == "build_layer" for name, _ in service.engine.calls) == builds


async def test_settings_take_effect_at_once_where_the_app_need_not_know(
    client: httpx.AsyncClient, url: str, service: Service
) -> None:
    changes = {"auto_stop_interval": 10, "visibility": "private", "backup_interval_hours": 6}
    response = await client.patch(url, json=changes)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert {name: data[name] for name in changes} == changes
    assert data["version"] == 1
    assert sum(name == "start" for name, _ in service.engine.calls) == 1
    response = await client.put(f"{url}/auto-stop", json={"interval": 0})
    assert response.json()["data"]["auto_stop_interval"] == 0


async def test_settings_that_the_app_must_know_are_a_new_version(client: httpx.AsyncClient, url: str) -> None:
    response = await client.patch(url, json={"env": {"B": 2}, "resources": {"disk": 4}})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert (data["version"], data["env"], data["resources"]["disk"]) == (2, {"B": "2"}, 4)
    refused = await client.patch(url, json={"resources": {"disk": 3}})
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")


async def test_visibility_is_active_when_answered(client: httpx.AsyncClient, url: str, service: Service) -> None:
    for visibility in ("private", "public"):
        data = (await client.patch(url, json={"visibility": visibility})).json()["data"]
        route = await service.previews.get(data["preview_url"].split("/")[2].split(":")[0])
        assert route is not None
        assert data["visibility"] == visibility
        assert (route.token_hash is not None) is (visibility == "private")


async def test_a_version_of_a_builder_that_is_deleted_meanwhile_is_not_found(
    client: httpx.AsyncClient, url: str, service: Service
) -> None:
    service.engine.behave(OTHER, Behaviour(listens_at=None))
    deploying = asyncio.create_task(client.put(url, json={**NEW, "entrypoint": OTHER}))
    while len(await versions(client, url)) < 2:
        await asyncio.sleep(0.01)
    assert (await client.delete(url)).status_code == 200
    response = await deploying
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.json()["data"] == {"uuid": url.rpartition("/")[2]}


async def test_an_old_version_comes_back(client: httpx.AsyncClient, url: str) -> None:
    await client.put(url, json={**NEW, "entrypoint": OTHER})
    response = await client.post(f"{url}/rollback", json={"version": 1})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert (data["version"], data["entrypoint"]) == (3, MINIMAL["entrypoint"])
    assert (await versions(client, url))[0]["rolled_back_to"] == 1
    unknown = await client.post(f"{url}/rollback", json={"version": 9})
    assert unknown.status_code == 404


async def test_the_last_ten_versions_are_kept(client: httpx.AsyncClient, url: str, service: Service) -> None:
    for number in range(2, 14):
        assert (await client.put(url, json={"files": {"main.py": f"{number}"}})).status_code == 200
    assert [one["version"] for one in await versions(client, url)] == list(range(13, 3, -1))
    assert (await client.post(f"{url}/rollback", json={"version": 3})).status_code == 404


async def test_the_service_token_is_renewed(client: httpx.AsyncClient, url: str) -> None:
    before = (await client.get(url)).json()["data"]
    response = await client.post(f"{url}/service-token")
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert data["service_token"] != before["service_token"]
    assert (data["status"], data["version"]) == ("running", 1)


async def test_leaving_a_gate_out_needs_its_scope_and_is_not_kept(
    client: httpx.AsyncClient, url: str, service: Service
) -> None:
    assert (await client.put(url, json={**NEW, "skip_qa": True})).status_code == 403
    entitled = service.client(await service.token("acme", Scope.WRITE, Scope.SKIP_GATES))
    data = (await entitled.put(url, json={**NEW, "skip_qa": True})).json()["data"]
    assert (data["version"], data["qa_passed"]) == (2, None)
    data = (await client.put(url, json={"files": {"main.py": "x"}})).json()["data"]
    assert (data["version"], data["qa_passed"]) == (3, True)


async def test_version_shows_its_settings(client: httpx.AsyncClient, url: str, service: Service) -> None:
    entitled = service.client(await service.token("acme", Scope.WRITE, Scope.SKIP_GATES))
    flags = {"skip_review": True, "skip_qa": True, "require_qa": True, "install_scripts": True}
    builder = (await entitled.put(url, json={**NEW, **flags})).json()["data"]
    assert (builder["require_qa"], builder["install_scripts"]) == (True, True)
    new, old = await versions(client, url)
    assert {name: new[name] for name in flags} == flags
    assert not any(old[name] for name in flags)


async def test_a_null_keeps_what_there_is_as_leaving_it_out_does(client: httpx.AsyncClient, url: str) -> None:
    response = await client.put(url, json={"source": None, "entrypoint": None, "isolation": None, "port": 8001})
    assert response.status_code == 200, response.text
    new, old = await versions(client, url)
    assert (new["port"], new["bundle"], new["entrypoint"]) == (8001, old["bundle"], old["entrypoint"])
    assert (await client.put(url, json={"files": None})).json()["errors"] == {"files": ["must be an object"]}


async def test_env_file_is_read_from_the_files_of_each_version(client: httpx.AsyncClient, service: Service) -> None:
    code = MINIMAL["files"]
    body = {**MINIMAL, "name": "dotenv", "env_file": ".env", "env": {"A": "env"}}
    missing = await client.post(BUILDERS, json=body)
    assert missing.status_code == 422
    assert missing.json()["errors"] == {
        "env_file": ['names a file that is not in files: .env (no file: "env_file": "")']
    }
    faulty = await client.post(BUILDERS, json={**body, "files": {**code, ".env": "A=1\nno"}})
    assert faulty.json()["errors"] == {"env_file": [".env, line 2: must be NAME=VALUE"]}
    made = await client.post(BUILDERS, json={**body, "files": {**code, ".env": "A=file\nB=1"}})
    assert made.status_code == 201, made.text
    url = str(made.headers["location"])
    assert {name: made.json()["data"][name] for name in ("env", "env_file", "env_file_values")} == {
        "env": {"A": "env"},
        "env_file": ".env",
        "env_file_values": {"A": "file", "B": "1"},
    }
    assert [
        {"A": "env", "B": "1"}.items() <= one.spec.env.items()
        for one in service.engine.known.values()
        if one.spec.env["BUILDER_NAME"] == "dotenv"
    ] == [True]

    put = await client.put(url, json={"files": {**code, ".env": "B=2"}})
    assert put.json()["data"]["env_file_values"] == {"B": "2"}
    patched = await client.patch(url, json={"env": {"C": "3"}})
    assert patched.json()["data"]["env_file_values"] == {"B": "2"}
    gone = await client.put(url, json={"files": code})
    assert list(gone.json()["errors"]) == ["env_file"]
    none = await client.put(url, json={"files": code, "env_file": ""})
    assert none.json()["data"]["env_file_values"] == {}
    back = await client.post(f"{url}/rollback", json={"version": 2})
    assert (back.json()["data"]["env_file"], back.json()["data"]["env_file_values"]) == (".env", {"B": "2"})
    again = await client.put(url, json={"env_file": ""})
    assert again.json()["data"]["env_file_values"] == {}
    read = await client.put(url, json={"env_file": ".env"})
    assert read.json()["data"]["env_file_values"] == {"B": "2"}


async def test_env_and_env_file_together_have_a_limit(client: httpx.AsyncClient) -> None:
    large = {f"A{n}": "a" * 99_000 for n in range(6)}
    text = "".join(f"B{n}={'b' * 99_000}\n" for n in range(6))
    body = {**MINIMAL, "env": large, "env_file": ".env", "files": {**MINIMAL["files"], ".env": text}}
    refused = await client.post(BUILDERS, json=body)
    assert refused.json()["errors"] == {
        "env_file": ["its variables together with env must be at most 1000000 bytes long in all"]
    }


async def test_new_procfile_replaces_the_command_of_the_old_one(client: httpx.AsyncClient) -> None:
    files = {"main.py": "", "Procfile": "web: python3 main.py"}
    created = await client.post(BUILDERS, json={"name": "proc", "files": files})
    url = created.headers["location"]
    response = await client.put(url, json={"files": {"main.py": "", "Procfile": f"web: {OTHER}"}})
    assert response.json()["data"]["entrypoint"] == OTHER
    await client.put(url, json={"entrypoint": "python3 -O main.py"})
    response = await client.put(url, json={"files": files})
    assert response.json()["data"]["entrypoint"] == "python3 -O main.py"


async def test_release_is_that_of_the_procfile_unless_the_request_names_another(
    client: httpx.AsyncClient, service: Service
) -> None:
    for command in ("migrate a", "migrate b", "mine"):
        service.engine.behave(command, Behaviour(listens_at=None, exits_at=1))
    files = {"main.py": "", "Procfile": "web: python3 main.py\nrelease: migrate a"}
    newer = {"main.py": "", "Procfile": "web: python3 main.py\nrelease: migrate b"}
    created = await client.post(BUILDERS, json={"name": "proc", "files": files})
    assert created.json()["data"]["release"] == "migrate a"
    url = created.headers["location"]

    async def released(method: str, change: dict[str, Any]) -> str:
        response = await client.request(method, url, json=change)
        assert response.status_code == 200, response.text
        release: str = response.json()["data"]["release"]
        return release

    assert await released("PUT", {"files": newer}) == "migrate b"
    assert await released("PUT", {"files": {"main.py": ""}}) == ""
    assert await released("PUT", {"files": files}) == "migrate a"
    assert await released("PATCH", {"release": "mine"}) == "mine"
    assert await released("PUT", {"files": newer}) == "mine"
    assert await released("PATCH", {"release": ""}) == ""
    job = {"name": "job", "job_type": "one_time", "entrypoint": "python3 main.py", "files": files}
    assert (await client.post(BUILDERS, json=job)).json()["data"]["release"] == ""


async def test_root_is_where_commands_are_looked_for(client: httpx.AsyncClient, service: Service) -> None:
    package = '{"scripts": {"build": "vite build"}}'
    files = {"web/main.py": "", "web/Procfile": "web: python3 main.py", "web/package.json": package}
    files |= {"api/Procfile": f"web: {OTHER}", "api/main.py": ""}
    created = await client.post(BUILDERS, json={"name": "mono", "files": files, "root": "web"})
    data = created.json()["data"]
    assert (data["root"], data["entrypoint"], data["build"]) == ("web", "python3 main.py", "npm run build")
    [sandbox] = [one for one in service.engine.known.values() if one.end is None]
    assert sandbox.spec.entrypoint == "cd /app/web || exit 1\npython3 main.py"
    url = created.headers["location"]
    changed = await client.put(url, json={"root": "api", "build": ""})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["data"]["root"], changed.json()["data"]["entrypoint"]) == ("api", OTHER)
    for root in ("../api", "/api", "a/../api", "no", "api/main.py", "./api", "a\0"):
        refused = await client.put(url, json={"root": root})
        assert (refused.status_code, list(refused.json()["errors"])) == (422, ["root"]), root
    gone = await client.put(url, json={"files": {"main.py": ""}})
    assert (gone.status_code, list(gone.json()["errors"])) == (422, ["root"])


async def test_start_is_detected_in_the_code_of_each_version(client: httpx.AsyncClient) -> None:
    files = {"main.py": "from fastapi import FastAPI\napp = FastAPI()\n", "requirements.txt": "fastapi\nuvicorn"}
    created = await client.post(BUILDERS, json={"name": "found", "files": files})
    data, url = created.json()["data"], created.headers["location"]
    assert data["entrypoint"] == "uvicorn main:app --host 0.0.0.0 --port $PORT"
    assert data["detected"] == {"framework": "FastAPI", "reason": "main.py makes an app of FastAPI", "notes": []}
    moved = (await client.put(url, json={"files": {"api.py": files["main.py"], **files, "main.py": ""}})).json()["data"]
    assert (moved["entrypoint"], moved["detected"]["reason"][:6]) == (
        data["entrypoint"].replace("main:", "api:"),
        "api.py",
    )
    refused = await client.put(url, json={"files": {"go.mod": ""}})
    assert "Go is not run yet" in refused.json()["errors"]["entrypoint"][0]
    given = (await client.put(url, json={"files": files, "entrypoint": "python3 main.py"})).json()["data"]
    assert (given["entrypoint"], given["detected"]) == ("python3 main.py", None)


async def test_a_procfile_with_a_worker_line_alone_makes_a_worker_and_names_its_command(
    client: httpx.AsyncClient,
) -> None:
    files = {"main.py": "", "Procfile": "worker: python3 main.py"}
    created = await client.post(BUILDERS, json={"name": "bot", "files": files})
    data = created.json()["data"]
    assert (data["job_type"], data["entrypoint"], data["status"]) == ("worker", "python3 main.py", "running")
    assert created.json()["message"] == "The worker bot is running."
    response = await client.put(
        created.headers["location"], json={"files": {"main.py": "", "Procfile": f"worker: {OTHER}"}}
    )
    assert response.json()["data"]["entrypoint"] == OTHER


async def test_a_static_site_serves_all_its_files_with_little_memory_unless_it_says_otherwise(
    client: httpx.AsyncClient,
) -> None:
    body = {"job_type": "static", "files": {"index.html": "", "Procfile": "web: python3 main.py"}}
    for name, more, memory, start in (
        ("one", {}, 0.125, "serve-static ."),
        ("two", {"resources": {"cpu": 0.5}, "entrypoint": "serve-static public"}, 0.125, "serve-static public"),
        ("three", {"resources": {"memory": 1}}, 1, "serve-static ."),
    ):
        created = await client.post(BUILDERS, json={**body, "name": name, **more})
        data = created.json()["data"]
        assert (data["job_type"], data["resources"]["memory"], data["entrypoint"]) == ("static", memory, start)
        kept = await client.put(created.headers["location"], json={"files": {"index.html": "2"}})
        assert kept.json()["data"]["entrypoint"] == start


async def test_a_worker_cannot_be_stopped_as_idle(client: httpx.AsyncClient) -> None:
    body = {"name": "bot", "entrypoint": "python3 main.py", "files": {"main.py": ""}, "job_type": "worker"}
    refused = await client.post(BUILDERS, json={**body, "auto_stop_interval": 5})
    assert refused.status_code == 422
    assert "nothing would wake it" in refused.json()["errors"]["auto_stop_interval"][0]
    created = await client.post(BUILDERS, json=body)
    assert created.status_code == 201
    assert (await client.put(f"{created.headers['location']}/auto-stop", json={"interval": 5})).status_code == 422


async def test_a_sandbox_needs_neither_code_nor_command_and_is_private(client: httpx.AsyncClient) -> None:
    created = await client.post(BUILDERS, json={"name": "box", "job_type": "sandbox"})
    assert created.status_code == 201, created.text
    data = created.json()["data"]
    assert (data["job_type"], data["status"], data["visibility"]) == ("sandbox", "running", "private")
    assert (data["qa_passed"], data["entrypoint"]) == (None, "exec sleep infinity")
    assert "/exec runs a command in it" in created.json()["message"]
    url = created.headers["location"]
    changed = await client.put(url, json={"files": {"notes.txt": "a"}})
    assert changed.status_code == 200, changed.text
    assert (await client.post(f"{url}/qa")).status_code == 409
    for name, shown in (("public", "public"), ("private", "private")):
        body = {"name": name, "job_type": "sandbox", "visibility": shown}
        assert (await client.post(BUILDERS, json=body)).json()["data"]["visibility"] == shown


async def test_two_versions_are_compared_by_their_files_and_settings(client: httpx.AsyncClient, url: str) -> None:
    await client.put(url, json={"files": {"main.py": "print('new')", "more.py": "x = 1\n"}, "resources": {"cpu": 2}})
    answer = await client.get(f"{url}/versions/1/diff/2")
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    files = {one["path"]: one for one in data["files"]}
    assert (files["more.py"]["kind"], files["more.py"]["lines"]) == ("added", ["@@ -0,0 +1 @@", "+x = 1"])
    assert "+print('new')" in files["main.py"]["lines"]
    (setting,) = data["settings"]
    assert setting["name"] == "resources"
    assert (setting["old"]["cpu"], setting["new"]["cpu"]) == (1, 2)
    assert (await client.get(f"{url}/versions/2/diff/2")).json()["data"]["files"] == []


async def test_two_versions_differ_by_a_patch(client: httpx.AsyncClient, url: str) -> None:
    files = {"main.py": "print(3)\n", "a\u2028b.py": "x\n"}
    assert (await client.put(url, json={"files": files, "entrypoint": "python3 main.py"})).status_code == 200
    answer = await client.get(f"{url}/versions/1/patch/2")
    assert answer.headers["content-type"].partition(";")[0] == "text/plain"
    assert (answer.headers["content-disposition"], answer.headers["x-content-type-options"]) == (
        'attachment; filename="1-2.patch"',
        "nosniff",
    )
    assert "+print(3)\n" in answer.text
    assert 'diff --git "a/a\\342\\200\\250b.py" "b/a\\342\\200\\250b.py"\n' in answer.text


@pytest.mark.parametrize("form", ["diff", "patch"])
async def test_a_difference_is_of_kept_versions(client: httpx.AsyncClient, url: str, form: str) -> None:
    assert (await client.get(f"{url}/versions/1/{form}/9")).status_code == 404
    assert (await client.get(f"{url}/versions/0/{form}/1")).status_code == 422
