"""Masking of secrets: the forms in which a value appears, and what is left alone."""

import json

import pytest

from builderd.domain.credentials import MASK, Masker

SECRET = 'tok"en/ä-1234567'


@pytest.mark.parametrize(
    "text", [SECRET, json.dumps(SECRET), json.dumps(SECRET, ensure_ascii=False), "?key=tok%22en%2F%C3%A4-1234567"]
)
def test_a_value_is_masked_in_each_form(text: str) -> None:
    masked = Masker([SECRET]).text(f"before {text} after")
    assert MASK in masked
    assert "1234567" not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def test_a_value_of_several_lines_is_masked_line_by_line() -> None:
    assert Masker(["first-line\nsecond-line"]).text("x second-line y") == f"x {MASK} y"


def test_the_longest_of_overlapping_values_is_masked() -> None:
    assert Masker(["secret", "secret-and-more"]).text("secret-and-more") == MASK


def test_short_values_are_left() -> None:
    assert not Masker(["true", "8080", ""])


def test_a_document_keeps_its_names_and_numbers() -> None:
    masker = Masker(["status", "12345678"])
    assert masker.document({"status": ["status", 12345678, None]}) == {"status": [MASK, 12345678, None]}


def test_bytes_that_are_no_text_stay() -> None:
    assert Masker(["secret-1"]).data(b"\xff\x00secret-1\xfe") == b"\xff\x00" + MASK.encode() + b"\xfe"


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_value_across_pieces_is_masked_while_bytes_go_on(size: int) -> None:
    masker = Masker(["secret-value", "secret"])
    content = b"a secret-value, a secret and \xff the sec of a secret-valu"
    out, held = b"", b""
    for start in range(0, len(content), size):
        masked, held = masker.beginning(held + content[start : start + size])
        out += masked
        assert len(held) < 12 + size
    assert out + masker.data(held) == masker.data(content)
