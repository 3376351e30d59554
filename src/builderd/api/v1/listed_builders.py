"""Builders of a list as JSON text, by one template and without a model of each: a page has up to a hundred."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json.encoder import encode_basestring as quoted
from typing import Any, get_type_hints

from builderd.api.v1.presenters import shown_token
from builderd.ports.store.builder_lists import ListedDocuments, ListedFields
from builderd.services.builder_lists import ListEntry

_BOOLEANS: Mapping[bool | None, str] = {None: "null", False: "false", True: "true"}


def encode_listed(entry: ListEntry, *, with_token: bool) -> str:
    """Return the entry as ``present_builder`` shows the builder; its service token in full only ``with_token``."""
    builder, cost, resources = entry.builder, entry.cost, entry.builder.resources
    return _ENTRY % (
        builder.id,
        *[encode(value) for encode, value in zip(_ENCODERS, builder.fields, strict=True)],
        quoted(entry.preview_url),
        quoted(shown_token(builder.service_token, in_full=with_token)),
        float(resources.cpu),
        float(resources.memory),
        float(resources.disk),
        _BOOLEANS[entry.needs_restart],
        _BOOLEANS[entry.review_passed],
        quoted(cost.currency),
        float(cost.hourly_rate),
        float(cost.runtime_hours),
        float(cost.cost),
        *builder.documents,
    )


def _optional(value: str | int | None) -> str:
    return "null" if value is None else quoted(value) if isinstance(value, str) else str(value)


#: Encoder of a field, by its type in ``ListedFields``.
_OF_TYPE: Mapping[Any, Callable[[Any], str]] = {
    str: quoted,
    int: str,
    bool: _BOOLEANS.__getitem__,
    bool | None: _BOOLEANS.__getitem__,
    str | None: _optional,
    int | None: _optional,
}
_ENCODERS = tuple(_OF_TYPE[kind] for kind in get_type_hints(ListedFields).values())
_FIELDS = ",".join(f'"{name}":%s' for name in ListedFields._fields)
_DOCUMENTS = ",".join(f'"{name}":%s' for name in ListedDocuments._fields)
#: An entry with a place for each value. Documents are JSON text already.
_ENTRY = (
    f'{{"uuid":"%s",{_FIELDS},"preview_url":%s,"service_token":%s,'
    '"resources":{"cpu":%r,"memory":%r,"disk":%r},"needs_restart":%s,"review_passed":%s,'
    '"cost":{"currency":%s,"hourly_rate":%r,"runtime_hours":%r,"cost":%r},'
    f"{_DOCUMENTS}}}"
)
