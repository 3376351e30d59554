"""Files of a builder: in JSON as text, or base64 for other content; on its disk; and uploads."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from builderd.code.model import (
    MAX_CONTENT_BYTES,
    MAX_FILES,
    MAX_PATH_BYTES,
    BundleFile,
    Content,
    path_error,
    tree_errors,
)
from builderd.core.errors import TooLarge
from builderd.files.model import SHA256, FileKind
from builderd.schemas.shape import (
    FieldError,
    JsonInt,
    Page,
    Shape,
    Success,
    Time,
    View,
    checked_by,
    refusal,
    with_field_errors,
)

#: Contents of files from this many bytes, or characters in JSON, are not loaded into the service's memory.
LARGE_BYTES = 1 << 16
#: Rules of ``path_error`` in JSON Schema: segments that are neither empty, nor ``.``, nor ``..``.
PATH_SCHEMA = {
    "maxLength": MAX_PATH_BYTES,
    "pattern": r"^(?!\.{1,2}(/|$))[^/\u0000]+(/(?!\.{1,2}(/|$))[^/\u0000]+)*$",
}


class Encoding(StrEnum):
    UTF_8 = "utf-8"
    BASE64 = "base64"


class FileContent(Shape):
    """One file: ``content`` is text, or base64 (RFC 4648) when ``encoding`` says so."""

    content: str
    encoding: Encoding = Field(default=Encoding.UTF_8, strict=False)
    executable: bool = False

    _data: bytes | Content = PrivateAttr(default=b"")

    @model_validator(mode="after")
    def _decode(self) -> FileContent:
        return with_field_errors(self._content_errors(), lambda: self)

    @property
    def data(self) -> bytes | Content:
        """Bytes of the file."""
        return self._data

    def __getstate__(self) -> dict[Any, Any]:
        """Return what is pickled: of a large file its bytes alone, without the text that they came as."""
        state = super().__getstate__()
        if len(self.content) >= LARGE_BYTES:
            state["__dict__"] = {**state["__dict__"], "content": ""}
        return state

    def _content_errors(self) -> Iterator[FieldError]:
        try:
            self._data = _decoded(self.content, self.encoding)
        except UnicodeEncodeError:
            yield ("content",), "must be valid Unicode text; send anything else as base64"
        except ValueError:
            yield ("content",), "is not valid base64 (the standard alphabet, with its = at the end)"


def _decoded(content: str, encoding: Encoding) -> bytes:
    if encoding is Encoding.UTF_8:
        return content.encode()
    # Common base64 tools insert line breaks.
    return base64.b64decode(content.replace("\n", "").replace("\r", ""), validate=True)


def _file(value: Any) -> Any:
    if isinstance(value, str):
        return {"content": value}
    if isinstance(value, dict | FileContent):
        return value
    raise refusal("must be text, or an object with content and encoding")


def _tree(value: Any, handler: ValidatorFunctionWrapHandler) -> dict[str, FileContent]:
    if not isinstance(value, dict):
        files: dict[str, FileContent] = handler(value)
        return files
    if len(value) > MAX_FILES:
        raise TooLarge(f"There are {len(value)} files: at most {MAX_FILES} are taken.")
    files = with_field_errors(_tree_errors(value), lambda: handler(value))
    size = sum(file.size for file in bundle_files(files))
    if size > MAX_CONTENT_BYTES:
        raise TooLarge(f"The files have {size} bytes together: at most {MAX_CONTENT_BYTES} are taken.")
    return files


def _tree_errors(files: Mapping[str, Any]) -> Iterator[FieldError]:
    if not files:
        yield (), "must have at least one file"
    for path in files:
        why = path_error(path)
        if why is not None:
            yield (path,), why
    yield from (((path,), why) for path, why in tree_errors(files).items())


class _OrText:
    """OpenAPI schema that also allows a plain text."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


File = Annotated[FileContent, BeforeValidator(_file), _OrText()]

Files = Annotated[
    dict[str, File],
    WrapValidator(_tree),
    Field(json_schema_extra={"minProperties": 1, "maxProperties": MAX_FILES, "propertyNames": PATH_SCHEMA}),
]


def bundle_files(files: Mapping[str, FileContent]) -> list[BundleFile]:
    """Convert the files to bundle files."""
    return [BundleFile(path, file.data, file.executable) for path, file in files.items()]


class FileEntry(View):
    """Entry of a folder.

    ``size`` in bytes, ``mode`` the permissions in octal, ``target`` what a link points to (links are not followed).

    Bytes of a name that are not UTF-8 are shown as U+FFFD; such a file cannot be named in a path.
    """

    name: str
    type: FileKind
    size: int
    mode: str = Field(pattern="^[0-7]{4}$")
    mtime: Time
    target: str | None


class FileAnswer(Success[FileEntry]):
    """One file."""


class FilePage(Page[FileEntry]):
    """Page of a folder's entries, by name."""


def _sha256_error(text: str) -> str | None:
    return None if SHA256.fullmatch(text.lower()) else "must be a sha256: 64 hex characters"


Sha256 = Annotated[str, checked_by(_sha256_error), Field(json_schema_extra={"pattern": "^[0-9A-Fa-f]{64}$"})]


class NewUpload(Shape):
    """Size and hash of a new upload; both are optional and detect a broken transfer early."""

    size: JsonInt | None = Field(default=None, ge=1, le=2**53, description="How many bytes it has.")
    sha256: Sha256 | None = Field(default=None, description="Of its bytes; checked when all of them have arrived.")


class UploadPlace(View):
    """Upload URL: it needs no token, since it contains a secret."""

    upload_id: str
    upload_url: str
    expires_at: Time


class UploadState(View):
    """State of an upload: ``received`` bytes; ``complete`` once it can be deployed."""

    upload_id: str
    received: int
    size: int | None
    complete: bool
    expires_at: Time


class UploadAnswer(Success[UploadState]):
    """One upload."""
