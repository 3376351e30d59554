"""Changes of a builder from a program: stages are reported, failures are errors, and the old version serves on."""

from __future__ import annotations

import pytest
from tests.threaded_service import Running
from tests.unit.client.legacy.test_client import new

from builderd.adapters.fakes.sandboxes import Behaviour
from builderd.client.legacy import ApiError, Client, Stage
from builderd.schemas.v1.versions import NewSettings, NewVersion


def version(**fields: object) -> NewVersion:
    return NewVersion.model_validate(fields, context={})


def test_new_code_is_followed_stage_by_stage(client: Client) -> None:
    uuid = client.create(new()).uuid
    stages: list[Stage] = []
    files = {"main.py": "print()", "requirements.txt": "flask"}
    changed = client.versions.deploy(uuid, version(files=files), fresh=True, on_stage=stages.append)
    assert (changed.version, changed.status, changed.entrypoint) == (2, "running", new().entrypoint)
    assert [stage.name for stage in stages][:3] == ["review", "install", "start"]
    assert all(stage.ok for stage in stages)


def test_a_failed_version_is_an_error_and_is_listed(client: Client, running: Running) -> None:
    running.service.engine.behave("broken", Behaviour(exits_at=0, exit_code=3, lines=("oh no",)))
    uuid = client.create(new()).uuid
    with pytest.raises(ApiError, match="oh no") as failed:
        client.versions.deploy(uuid, version(entrypoint="broken"))
    assert failed.value.code == "start_failed"
    newest, old = client.versions.list(uuid)
    assert (newest.version, newest.status, newest.failure_code) == (2, "failed", "start_failed")
    assert (old.version, old.current) == (1, True)
    assert client.get(uuid).version == 1


def test_settings_are_changed_at_once_or_by_a_version(client: Client) -> None:
    uuid = client.create(new()).uuid
    changed = client.versions.change(uuid, NewSettings(auto_stop_interval=5))
    assert (changed.version, changed.auto_stop_interval) == (1, 5)
    changed = client.versions.change(uuid, NewSettings(env={"A": "2"}))
    assert (changed.version, changed.env) == (2, {"A": "2"})


def test_an_old_version_comes_back_once_however_often_it_is_asked_for(client: Client) -> None:
    uuid = client.create(new(env={"A": "1"})).uuid
    client.versions.change(uuid, NewSettings(env={"A": "2"}))
    back = client.versions.roll_back(uuid, 1, idempotency_key="back")
    assert (back.version, back.env) == (3, {"A": "1"})
    assert client.versions.roll_back(uuid, 1, idempotency_key="back").version == 3
    assert client.versions.list(uuid)[0].rolled_back_to == 1


def test_the_service_token_is_renewed(client: Client) -> None:
    builder = client.create(new())
    assert client.renew_service_token(builder.uuid).service_token != builder.service_token
