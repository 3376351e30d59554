"""Every setting of a version passes through the shapes by its name."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import pytest

from builderd.cli.apps import project
from builderd.client._async.deployments import CreateOptions
from builderd.core.resources import Resources
from builderd.mcp.tools import arguments
from builderd.mcp.tools.deployments import deploy_code
from builderd.schemas.builders import Builder, NewBuilder
from builderd.schemas.shape import Shape
from builderd.schemas.versions import NewSettings, NewVersion, Version, given_fields, new_settings, shown_settings
from builderd.versions.model import DERIVED_NAMES, SETTING_NAMES, Isolation, VersionSettings
from builderd.web.pages.deploying import BOXES, TEXTS

CODE = {"files": "the code", "source": "the code"}
ONCE = {"skip_review": "of one call", "skip_qa": "of one call", "stdin": "of one call"}
OF_BUILDER = {
    "name": "cannot change",
    "job_type": "cannot change",
    "backup_interval_hours": "of the builder, not of a version",
    "auto_stop_interval": "of the builder, not of a version",
    "visibility": "of the builder, not of a version",
    "scale": "of the builder, not of a version",
}
OTHER_FORM = {
    "env": "rows of its own",
    "resources": "a field each: cpu, memory, disk",
    "credentials": "boxes of their own",
    "auto_stop_interval": "`sleeps` and `minutes`",
    "backup_interval_hours": "`hours`",
    "visibility": "`private`, or `public` of a sandbox",
}
#: Places that offer the fields of a new builder: their names there, and each that is left out with the reason.
PLACES: dict[str, tuple[Collection[str], dict[str, str]]] = {
    "builder.toml": (project.FIELDS.values(), {**CODE, **ONCE}),
    "SDK": (CreateOptions.__annotations__, {"name": "an argument", "source": "`path` or `upload_id`"}),
    "tools of agents": (
        {*arguments.Settings.__annotations__, *inspect.signature(deploy_code).parameters},
        {
            "source": "`upload_id`",
            "auto_stop_interval": "`auto_stop_minutes`",
            "backup_interval_hours": "an agent asks a person",
            "isolation": "the operator's choice",
            "stdin": "a command of the job reads a file",
            "start_timeout": "the service's default",
        },
    ),
    "page": (
        {*TEXTS, *BOXES},
        {**CODE, **OTHER_FORM, "stdin": "a job is run by `builderd run`", "start_timeout": "the service's default"}
        | dict.fromkeys(("processes", "scale"), "the Procfile's")
        | {"packages": "a file apt.txt"},
    ),
    "change of settings": (
        NewSettings.model_fields,
        {
            **CODE,
            **ONCE,
            "name": "cannot change",
            "job_type": "cannot change",
            **dict.fromkeys(
                ("build", "entrypoint", "env_file", "install_scripts", "port", "processes", "root"),
                "goes with the code",
            ),
            **dict.fromkeys(
                ("isolation", "packages", "protocol", "require_qa", "start_timeout"), "goes with a new version"
            ),
        },
    ),
    "answer with a builder": (Builder.model_fields, {**CODE, **ONCE}),
    "answer with a version": (Version.model_fields, {**CODE, **OF_BUILDER}),
}


@pytest.mark.parametrize("place", PLACES)
def test_each_field_of_create_is_offered_or_left_out_with_a_reason(place: str) -> None:
    offered, left_out = PLACES[place]
    assert set(NewBuilder.model_fields) - set(offered) == set(left_out)


GIVEN = {
    "name": "a",
    "entrypoint": "python3 main.py",
    "files": {"main.py": ""},
    "port": 9000,
    "env": {"A": "1"},
    "resources": {"cpu": 2},
    "isolation": "strong",
    "credentials": ["key"],
    "packages": ["ffmpeg"],
    "skip_review": True,
    "skip_qa": True,
    "require_qa": True,
    "install_scripts": True,
    "env_file": ".env",
}
SETTINGS = VersionSettings(
    entrypoint="python3 main.py",
    port=9000,
    env={"A": "1"},
    resources=Resources(cpu=2),
    isolation=Isolation.STRONG,
    credentials=("key",),
    packages=("ffmpeg",),
    skip_review=True,
    skip_qa=True,
    require_qa=True,
    install_scripts=True,
    env_file=".env",
    fixed_port=True,
)
CONTEXT = {"maximum": Resources(8, 16, 100)}


def test_the_shapes_have_every_setting() -> None:
    for shape in (NewBuilder, NewVersion, Version):
        given = set(SETTING_NAMES) - (DERIVED_NAMES if issubclass(shape, Shape) else set())
        assert given <= set(shape.model_fields), shape


def test_a_new_builder_has_every_setting_of_its_request() -> None:
    new = NewBuilder.model_validate(GIVEN, context=CONTEXT)
    assert new_settings(new, "python3 main.py", Isolation.STANDARD) == SETTINGS


def test_a_change_has_the_given_fields_only_and_no_code() -> None:
    new = NewVersion.model_validate(GIVEN, context=CONTEXT)
    given = given_fields(new)
    assert set(given) == set(GIVEN) - {"files"}
    assert (given["resources"], given["packages"]) == ({"cpu": 2}, ("ffmpeg",))


def test_a_version_shows_every_setting() -> None:
    shown = shown_settings(SETTINGS, Version)
    assert set(shown) == set(SETTING_NAMES)
    assert (shown["packages"], shown["resources"].cpu, shown["port"]) == (["ffmpeg"], 2, 9000)
