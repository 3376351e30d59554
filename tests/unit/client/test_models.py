"""The client's models have the fields of the service's schemas, and tolerate what is new."""

from __future__ import annotations

import pytest
from tests.document import DOCUMENT

from builderd.client import models

SCHEMAS = DOCUMENT["components"]["schemas"]
#: Where the client's name differs.
NAMES = {
    "PreviewLinkWithUrl": "NewPreviewLink",
    "Builder": "BuilderState",
    "ShownResources": "Resources",
    "TokenWithSecret": "NewToken",
}
#: Envelopes, which the client takes apart, and shapes of requests, which are its keyword arguments.
NOT_MODELS = ("Answer", "Page")
REQUESTS = {"Failure", "PageMeta", "FileContent", "Source", "Resources", "RenewedLease", "StoredCode"}

SHOWN = sorted(
    name
    for name, schema in SCHEMAS.items()
    if "properties" in schema
    and not name.endswith(NOT_MODELS)
    and name not in REQUESTS
    and not (name.startswith("New") and name not in NAMES)
)


@pytest.mark.parametrize("name", SHOWN)
def test_a_model_has_the_fields_of_the_services_schema(name: str) -> None:
    model: type[models.Model] = getattr(models, NAMES.get(name, name))
    fields = {field.alias or own for own, field in model.model_fields.items()}
    assert fields == set(SCHEMAS[name]["properties"])


def test_an_unknown_field_is_kept_and_an_unknown_word_is_text() -> None:
    part = models.Part.model_validate({"ready": True, "message": "", "since": "today"})
    assert part.model_extra == {"since": "today"}
    stage = models.Stage.model_validate({"stage": "sign", "seconds": 1, "ok": True})
    assert stage.stage == "sign"


def test_a_nullable_field_may_be_missing() -> None:
    assert models.Finding.model_fields["accepted"].default is None
