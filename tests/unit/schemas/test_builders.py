"""The body of a create call: every rule of the contract, and defaults."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from builderd.builders.model import JobType, Visibility
from builderd.core.resources import Resources
from builderd.schemas.builders import NewBuilder
from builderd.schemas.shape import field_errors
from builderd.versions.model import PLATFORM_ENV, Isolation

MINIMAL = {"name": "my-api", "entrypoint": "python3 main.py", "files": {"main.py": ""}}
CONTEXT = {"maximum": Resources(cpu=8, memory=16, disk=100)}


def read(**fields: Any) -> NewBuilder:
    return NewBuilder.model_validate({**MINIMAL, **fields}, context=CONTEXT)


def faults(**fields: Any) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as caught:
        read(**fields)
    return field_errors(caught.value)


def test_missing_fields_have_the_contracts_defaults() -> None:
    new = read()
    assert (new.port, new.env, new.resources.value) == (8000, {}, Resources(1, 1, 3))
    assert (new.job_type, new.visibility, new.isolation) == (JobType.ALWAYS_ON, Visibility.PUBLIC, None)
    assert (new.backup_interval_hours, new.auto_stop_interval, new.credentials) == (0, 0, [])
    assert (new.skip_review, new.skip_qa, new.require_qa) == (False, False, False)


def test_numbers_and_booleans_of_the_environment_become_text() -> None:
    assert read(env={"A": "1", "B": 2, "C": 1.5, "D": True, "E": False}).env == {
        "A": "1",
        "B": "2",
        "C": "1.5",
        "D": "true",
        "E": "false",
    }


@pytest.mark.parametrize("name", ["1X", "", "A-B", "A=B", "Ä", "A B", "A\0", *sorted(PLATFORM_ENV - {"PORT"})])
def test_hostile_and_reserved_variables_are_refused(name: str) -> None:
    assert list(faults(env={name: "x"})) == [f"env.{name}"]


def test_each_amount_is_judged_though_another_is_no_number() -> None:
    assert faults(resources={"cpu": 0, "memory": "1", "disk": 101}) == {
        "resources.cpu": ["must be from 0.25 to 8 vCPU"],
        "resources.memory": ["must be a number"],
        "resources.disk": ["must be from 1 to 100 GB"],
    }


def test_choices_are_named() -> None:
    assert faults(job_type="daily", visibility="x", isolation=1) == {
        "job_type": ["must be 'always_on', 'static', 'one_time', 'worker' or 'sandbox'"],
        "visibility": ["must be 'public' or 'private'"],
        "isolation": ["must be 'standard' or 'strong'"],
    }
    assert read(isolation="strong").isolation is Isolation.STRONG


def test_client_bodies_are_valid_for_the_service() -> None:
    new = NewBuilder(name="a", entrypoint="x", files={"a": "b"}, env={"A": 1}, resources={"cpu": 2})  # type: ignore[dict-item, arg-type]
    assert NewBuilder.model_validate(new.model_dump(mode="json"), context=CONTEXT) == new


def test_a_field_of_the_resources_at_the_top_is_pointed_to_its_place() -> None:
    for name in ("cpu", "memory", "disk"):
        assert faults(**{name: 1}) == {name: [f'belongs into resources: {{"resources": {{"{name}": …}}}}']}
