"""Validation of requests: exact types, unknown fields named, all errors reported at once."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from builderd.schemas.v1.shape import (
    MAX_FIELD_ERRORS,
    MAX_PATH_CHARACTERS,
    JsonInt,
    Parameters,
    Shape,
    View,
    field_errors,
)


class Inner(Shape):
    cpu: float = 1


class Outer(Shape):
    name: str
    port: JsonInt = Field(default=1, ge=1)
    flag: bool = False
    inner: Inner = Field(default_factory=Inner)
    listed: list[str] = Field(default_factory=list)


class Query(Parameters):
    page: int = 1
    since: str | None = Field(default=None, alias="from")


def faults(shape: type[Shape] | type[Parameters], value: object) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as caught:
        shape.model_validate(value)
    return field_errors(caught.value)


def test_all_errors_are_reported_by_dotted_path() -> None:
    told = faults(Outer, {"port": 0, "flag": 1, "inner": {"cpu": "1"}, "listed": ["a", 2]})
    assert told == {
        "name": ["is required"],
        "port": ["must be 1 or more"],
        "flag": ["must be true or false"],
        "inner.cpu": ["must be a number"],
        "listed.1": ["must be text"],
    }


@pytest.mark.parametrize("port", [True, 1.5, "80", None, [80], {}])
def test_a_whole_number_is_nothing_else(port: object) -> None:
    assert faults(Outer, {"name": "a", "port": port}) == {"port": ["must be a whole number"]}


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert Outer.model_validate({"name": "a", "port": 80.0}).port == 80


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_a_shape_is_an_object(value: object) -> None:
    assert faults(Outer, {"name": "a", "inner": value}) == {"inner": ["must be an object"]}


def test_unknown_field_is_reported_with_the_nearest_name() -> None:
    told = faults(Outer, {"nmae": "a", "inner": {"cpus": 1}, "zzzzzz": 1})
    assert told == {
        "nmae": ["is not known here: did you mean name?"],
        "zzzzzz": ["is not known here: leave it out"],
        "name": ["is required"],
        "inner.cpus": ["is not known here: did you mean cpu?"],
    }


def test_a_query_is_text_of_which_types_are_made() -> None:
    assert Query.model_validate({"page": "2", "from": "x"}) == Query.model_validate({"page": 2, "from": "x"})
    assert faults(Query, {"pgae": "1", "form": "x"}) == {
        "pgae": ["is not known here: did you mean page?"],
        "form": ["is not known here: did you mean from?"],
    }


def test_number_of_reported_errors_is_limited() -> None:
    assert len(faults(Outer, {"name": "a", "listed": [1] * 5000})) == MAX_FIELD_ERRORS
    assert len(faults(Outer, {"name": "a", **{f"x{n}": 1 for n in range(5000)}})) == MAX_FIELD_ERRORS


def test_a_long_unknown_name_is_cut() -> None:
    (path,) = faults(Outer, {"name": "a", "x" * 1_000_000: 1})
    assert len(path) == MAX_PATH_CHARACTERS


def test_a_view_passes_over_what_it_does_not_know() -> None:
    class Shown(View):
        name: str

    assert Shown.model_validate({"name": "a", "later": 1}).name == "a"
