"""Valid entrypoints and variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builderd.domain.versions import MAX_ENTRYPOINT_BYTES, PLATFORM_ENV, entrypoint_error, env_error, env_size_error


@pytest.mark.parametrize(
    "entrypoint",
    [
        "python3 main.py",
        "a",
        "sh -c 'x; y' | tee log",
        "a\nb",
        "é",
        "x" * MAX_ENTRYPOINT_BYTES,
        "é" * (MAX_ENTRYPOINT_BYTES // 2),
    ],
)
def test_a_command_is_an_entrypoint(entrypoint: str) -> None:
    assert entrypoint_error(entrypoint) is None


@pytest.mark.parametrize(
    ("entrypoint", "why"),
    [
        ("", "blank"),
        (" \t\n", "blank"),
        ("\u3000", "blank"),
        ("a\0b", "NUL"),
        ("a\ud800", "Unicode"),
        ("x" * (MAX_ENTRYPOINT_BYTES + 1), "4096"),
        ("é" * (MAX_ENTRYPOINT_BYTES // 2 + 1), "4096"),
    ],
)
def test_unusable_entrypoint_is_rejected_with_a_reason(entrypoint: str, why: str) -> None:
    assert why in (entrypoint_error(entrypoint) or "")


@pytest.mark.parametrize("name", ["A", "a", "_", "MY_FLAG", "a1", "port", "N" * 1000])
@pytest.mark.parametrize("value", ["", "1", "a b\nc", "é", "x" * 100_000])
def test_a_plain_variable_is_taken(name: str, value: str) -> None:
    assert env_error(name, value) is None


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\n", "É", "A\0", "BASH_FUNC_x%%", "N" * 1001])
def test_invalid_variable_name_is_rejected(name: str) -> None:
    assert "name" in (env_error(name, "1") or "")


@pytest.mark.parametrize("name", sorted(PLATFORM_ENV))
def test_platform_variables_cannot_be_set(name: str) -> None:
    assert "platform" in (env_error(name, "1") or "")


@pytest.mark.parametrize(("value", "why"), [("\0", "NUL"), ("\udfff", "Unicode"), ("x" * 100_001, "100000")])
def test_invalid_variable_value_is_rejected_with_a_reason(value: str, why: str) -> None:
    assert why in (env_error("A", value) or "")


def test_all_variables_together_must_fit_into_a_process() -> None:
    assert env_size_error({f"V{number}": "x" * 99_000 for number in range(10)}) is None
    assert "in all" in (env_size_error({f"V{number}": "x" * 100_000 for number in range(10)}) or "")
    assert env_size_error({}) is None


@given(st.text(), st.text())
def test_every_accepted_variable_can_be_handed_to_a_process(name: str, value: str) -> None:
    if env_error(name, value) is None:
        text = f"{name}={value}".encode()
        assert b"\0" not in text
        assert name.isascii()
        assert text.partition(b"=")[0] == name.encode()
