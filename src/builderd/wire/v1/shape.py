"""What all shapes have in common: how strictly a request is read, and how everything wrong with it is told at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

T = TypeVar("T")

#: A request may be wrong in as many places as it has parts; no more of them are told than a person reads.
MAX_FIELD_ERRORS = 100
#: The longest path of a file that is taken, and its field around it.
MAX_PATH_CHARACTERS = 1100
#: Names longer than this are compared with nothing: closeness costs the square of the length.
MAX_COMPARED = 64

#: Where something is wrong, and why.
FieldError = tuple[tuple[str, ...], str]


class StrictModel(BaseModel):
    """What a client sends: no field that the contract does not know, and for a misspelt one the nearest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown_fields(cls, value: Any, handler: ModelWrapValidatorHandler[T]) -> T:
        if not isinstance(value, dict):
            return handler(value)
        names = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [name for name in value if name not in names]
        if not unknown:
            return handler(value)
        known = {name: value[name] for name in names if name in value}
        faults = (((name,), _unknown(name, names)) for name in unknown)
        return with_field_errors(faults, lambda: handler(known))


class Shape(StrictModel):
    """A body: exact types."""

    model_config = ConfigDict(strict=True)


class Parameters(StrictModel):
    """A query: everything in it is text, of which types are made."""


class View(BaseModel):
    """What the service answers. A client passes over what it does not know, so that a service may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1) if len(name) <= MAX_COMPARED else []
    return f"is not known here: did you mean {near[0]}?" if near else "is not known here: leave it out"


def with_field_errors(faults: Iterable[FieldError], validate: Callable[[], T]) -> T:
    """What ``validate`` makes, or one ``ValidationError`` of its own faults and these together."""
    lines = [_line(path, why) for path, why in islice(faults, MAX_FIELD_ERRORS)]
    try:
        result = validate()
    except ValidationError as error:
        lines += [_line(_path(detail), _why(detail)) for detail in _details(error)[:MAX_FIELD_ERRORS]]
    if lines:
        raise ValidationError.from_exception_data("request", lines)
    return result


def must_pass(fault: Callable[[str], str | None]) -> AfterValidator:
    """A text that the domain's rule finds no fault with."""

    def check(value: str) -> str:
        why = fault(value)
        if why is not None:
            raise refusal(why)
        return value

    return AfterValidator(check)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: A whole number, which JSON may also write as 8000.0 (JSON Schema 2020-12, "integer"); never true or "8000".
JsonInt = Annotated[int, BeforeValidator(_whole)]


def refusal(why: str) -> PydanticCustomError:
    """To be raised by a validator."""
    return PydanticCustomError("rule", "{why}", {"why": why})


def field_errors(error: ValidationError) -> dict[str, list[str]]:
    """``{"resources.cpu": ["must be from 0.25 to 8 vCPU"], …}``: every reason under its dotted path."""
    return field_errors_in(_details(error))


def field_errors_in(details: Sequence[ErrorDetails], skip: int = 0) -> dict[str, list[str]]:
    """The same for pydantic's own details, without the first ``skip`` parts of each path."""
    faults: dict[str, list[str]] = {}
    for detail in details[:MAX_FIELD_ERRORS]:
        path = ".".join(_path(detail)[skip:])[:MAX_PATH_CHARACTERS]
        faults.setdefault(path, []).append(_why(detail))
    return faults


def _details(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)


def _line(path: tuple[str, ...], why: str) -> InitErrorDetails:
    return InitErrorDetails(type=refusal(why), loc=path, input=None)


def _path(detail: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in detail["loc"])


def _why(detail: ErrorDetails) -> str:
    known = WHY.get(detail["type"])
    return known.format(**detail.get("ctx", {})) if known else detail["msg"]


#: pydantic's error types in the words of the contract (the types are listed at https://errors.pydantic.dev).
WHY = {
    "missing": "is required",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters long",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of common size",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be an array",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "too_long": "must have at most {max_length} entries",
    "datetime_type": "must be a time such as 2026-01-31T12:00:00Z",
    "datetime_parsing": "must be a time such as 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be a time such as 2026-01-31T12:00:00Z",
}
