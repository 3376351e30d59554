"""Every setting of a version passes through the shapes by its name."""

from __future__ import annotations

from builderd.domain.resources import Resources
from builderd.domain.versions import DERIVED_NAMES, SETTING_NAMES, Isolation, VersionSettings
from builderd.schemas.v1.builders import NewBuilder
from builderd.schemas.v1.shape import Shape
from builderd.schemas.v1.versions import NewVersion, Version, given_fields, new_settings, shown_settings

GIVEN = {
    "name": "a",
    "entrypoint": "python3 main.py",
    "files": {"main.py": ""},
    "port": 9000,
    "env": {"A": "1"},
    "resources": {"cpu": 2},
    "isolation": "strong",
    "credentials": ["key"],
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
    skip_review=True,
    skip_qa=True,
    require_qa=True,
    install_scripts=True,
    env_file=".env",
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
    assert (given["resources"], given["credentials"]) == ({"cpu": 2}, ("key",))


def test_a_version_shows_every_setting() -> None:
    shown = shown_settings(SETTINGS, Version)
    assert set(shown) == set(SETTING_NAMES)
    assert (shown["credentials"], shown["resources"].cpu, shown["port"]) == (["key"], 2, 9000)
