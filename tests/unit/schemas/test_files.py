"""The files of a request: text or base64, and never a path that leads astray."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import ValidationError

from builderd.code.model import MAX_CONTENT_BYTES, MAX_FILES, BundleFile
from builderd.core.errors import TooLarge
from builderd.schemas.files import Files, bundle_files
from builderd.schemas.shape import Shape, field_errors


class Request(Shape):
    files: Files


def read(files: Any) -> list[BundleFile]:
    return bundle_files(Request.model_validate({"files": files}).files)


def faults(files: Any) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as caught:
        read(files)
    return field_errors(caught.value)


def test_base64_is_decoded_also_where_its_lines_are_broken() -> None:
    content = base64.encodebytes(bytes(range(256))).decode()
    assert read({"logo": {"content": content, "encoding": "base64"}}) == [BundleFile("logo", bytes(range(256)))]


def test_a_path_of_both_a_file_and_a_folder_is_refused_beside_other_faults() -> None:
    told = faults({"a": "", "a/b": "", "c": 1, "d": {"content": "", "mode": 1}})
    assert told == {
        "files.a": ["is both a file and the folder of 'a/b'"],
        "files.c": ["must be text, or an object with content and encoding"],
        "files.d.mode": ["is not known here: leave it out"],
    }


def test_the_most_files_are_taken_and_one_more_is_too_large() -> None:
    files = {f"{n}.txt": "" for n in range(MAX_FILES)}
    assert len(read(files)) == MAX_FILES
    with pytest.raises(TooLarge, match="2001 files: at most 2000"):
        read({**files, "more": ""})


def test_the_contents_are_counted_as_they_are_stored() -> None:
    half = base64.b64encode(bytes(MAX_CONTENT_BYTES // 2)).decode()
    files = {"a": {"content": half, "encoding": "base64"}, "b": {"content": half, "encoding": "base64"}}
    assert sum(len(file.content) for file in read(files)) == MAX_CONTENT_BYTES
    with pytest.raises(TooLarge, match="at most 20000000"):
        read({**files, "c": "x"})
