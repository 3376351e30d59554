"""Base classes of request and response schemas, times, and the envelope of every response.

Types of requests are strict, and one error names every wrong field.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

T = TypeVar("T")

#: Limit of reported errors per request.
MAX_FIELD_ERRORS = 100
#: Longest reported field path: the longest path of a file within ``files``.
MAX_PATH_CHARACTERS = 1100
#: Longer names get no suggestion: the comparison takes quadratic time.
MAX_COMPARED = 64

#: Path of a wrong field, and the reason.
FieldError = tuple[tuple[str, ...], str]


class StrictModel(BaseModel):
    """Request schema that rejects unknown fields and suggests the nearest known name."""

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
        errors = (((name,), _misplaced(name, cls) or _unknown(name, names)) for name in unknown)
        return with_field_errors(errors, lambda: handler(known))


class Shape(StrictModel):
    """Request body: exact types, without coercion."""

    model_config = ConfigDict(strict=True, defer_build=True)


class Parameters(StrictModel):
    """Query parameters: text that is converted to the fields' types."""


class View(BaseModel):
    """Response schema. Clients ignore unknown fields, so that the service may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    @classmethod
    def of(cls, source: object, **given: object) -> Self:
        """Return a view of ``source``: the ``given`` fields, and the others from its attributes of the same names."""
        named = {name: getattr(source, name) for name in cls.model_fields if name not in given}
        return cls.model_validate({**named, **given}, from_attributes=True)


def _misplaced(name: str, shape: type[BaseModel]) -> str | None:
    """Return where a field belongs that is known one level deeper, or None."""
    for outer, field in shape.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return f'belongs into {outer}: {{"{outer}": {{"{name}": …}}}}'
    return None


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1) if len(name) <= MAX_COMPARED else []
    return f"is not known here: did you mean {near[0]}?" if near else "is not known here: leave it out"


def with_field_errors(errors: Iterable[FieldError], validate: Callable[[], T]) -> T:
    """Return the result of ``validate``, or raise one ``ValidationError`` with its errors and these together."""
    lines = [_line(path, why) for path, why in islice(errors, MAX_FIELD_ERRORS)]
    try:
        result = validate()
    except ValidationError as error:
        lines += [_line(_path(detail), _explain(detail)) for detail in _details(error)[:MAX_FIELD_ERRORS]]
    if lines:
        raise ValidationError.from_exception_data("request", lines)
    return result


def checked_by(rule: Callable[[str], str | None]) -> AfterValidator:
    """Make a validator of a domain rule that returns the reason to reject a text, or None."""

    def check(value: str) -> str:
        why = rule(value)
        if why is not None:
            raise refusal(why)
        return value

    return AfterValidator(check)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: An integer, which JSON may also write as 8000.0 (JSON Schema 2020-12, "integer"); never true or "8000".
JsonInt = Annotated[int, BeforeValidator(_whole)]


def refusal(why: str) -> PydanticCustomError:
    """Make the error that a validator raises."""
    return PydanticCustomError("rule", "{why}", {"why": why})


def field_errors(error: ValidationError) -> dict[str, list[str]]:
    """Return ``{"resources.cpu": ["must be from 0.25 to 8 vCPU"], …}``: every reason under its dotted path."""
    return field_errors_in(_details(error))


def field_errors_in(details: Sequence[ErrorDetails], skip: int = 0) -> dict[str, list[str]]:
    """Return the reasons in pydantic's error details, without the first ``skip`` parts of each path."""
    errors: dict[str, list[str]] = {}
    for detail in details[:MAX_FIELD_ERRORS]:
        path = ".".join(_path(detail)[skip:])[:MAX_PATH_CHARACTERS]
        errors.setdefault(path, []).append(_explain(detail))
    return errors


def _details(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)


def _line(path: tuple[str, ...], why: str) -> InitErrorDetails:
    return InitErrorDetails(type=refusal(why), loc=path, input=None)


def _path(detail: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in detail["loc"])


def _explain(detail: ErrorDetails) -> str:
    known = WHY.get(detail["type"])
    return known.format(**detail.get("ctx", {})) if known else detail["msg"]


#: Messages of the API for pydantic's error types.
WHY: dict[str, str] = tomllib.loads(Path(__file__).with_name("reasons.toml").read_text())


RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def _rfc3339(value: Any) -> Any:
    if isinstance(value, datetime):  # from Python callers, never from JSON
        return value
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise refusal("must be a time such as 2026-01-31T12:00:00Z (in a URL, the + of +01:00 is written %2B)")
    return value


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise refusal("must be a time between the years 1 and 9999") from None


def _day(value: Any) -> Any:
    if isinstance(value, date):  # from Python callers, never from JSON
        return value
    if not isinstance(value, str) or not DAY.fullmatch(value):
        raise refusal("must be a day such as 2026-01-31")
    return value


#: A day of the calendar, ``2026-01-31``.
Day = Annotated[date, BeforeValidator(_day)]
#: RFC 3339 with a time zone, brought to UTC.
UtcTime = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_in_utc)]


def rfc3339(time: datetime) -> str:
    """Return the time in UTC, to the second: ``2026-01-31T12:00:00Z``."""
    # strftime writes years before 1000 with fewer digits.
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


#: RFC 3339 in UTC, to the second: ``2026-01-31T12:00:00Z``.
Time = Annotated[datetime, PlainSerializer(rfc3339, when_used="json")]


class Success(View, Generic[T]):
    """Successful response. ``message`` is one sentence for people; ``data`` is the result."""

    #: End of the schema's name.
    _suffix: ClassVar[str] = "Answer"

    success: Literal[True] = True
    message: str
    data: T

    def __class_getitem__(cls, data: Any) -> Any:
        """Return the response with this data, named as in the OpenAPI document: ``BackupAnswer``, ``BackupPage``."""
        made = super().__class_getitem__(data)
        return _named(made, f"{data.__name__}{cls._suffix}", cls.__doc__) if isinstance(data, type) else made


@cache
def _named(made: Any, name: str, description: str | None) -> Any:
    return type(made)(name, (made,), {"__module__": made.__module__, "__doc__": description})


class PageMeta(View):
    """Position in a list: ``page`` counts from 1, ``total`` is the length of the whole list."""

    page: int
    per_page: int
    total: int


class Page(Success[list[T]], Generic[T]):
    """One page of a list."""

    _suffix: ClassVar[str] = "Page"
    meta: PageMeta


class Failure(View):
    """Error response. ``code`` is for programs; ``message`` says what is wrong and what to do.

    ``errors`` comes with ``validation_error`` alone and maps dotted paths (``files.main.py``) to the reasons;
    ``data`` comes with details of some errors, such as the builder's ``uuid``.
    """

    success: Literal[False] = False
    code: str
    message: str
    errors: dict[str, list[str]] | None = Field(default=None, exclude_if=lambda value: value is None)
    data: dict[str, Any] | None = Field(default=None, exclude_if=lambda value: value is None)
